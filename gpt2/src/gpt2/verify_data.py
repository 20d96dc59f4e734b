"""Check the cached tokens of a data set, every file, and list all that is wrong at once.

`python -m gpt2.verify_data --data shakespeare`. Training makes the same checks but stops at the
first problem; the remedy for any of them is to delete the folder, and it will be made again.
"""

from dataclasses import dataclass
from pathlib import Path

from gpt2.data import BYTES, DEFAULT_DATA, PARTS, TOKENIZER, corpus_folder
from gpt2.model import PRESETS
from minbpe import RegexTokenizer
from minbpe.errors import TokenizerError
from shared import cli, files
from shared.datasets import resolve, resolve_default
from shared.errors import ArtefactError, UsageError
from shared.tokens import Tokens, verify_shards


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Whose tokens to check."""

    data: str = ""
    """A data set's name, a text file or a folder, as given to gpt2.train; its default if not."""
    vocab_size: int = PRESETS["tiny"].vocab_size
    """The vocabulary that it was encoded with."""


def main(config: VerifyConfig) -> None:
    """Check the cached tokens of a data set."""
    dataset = resolve(config.data) if config.data else resolve_default(DEFAULT_DATA)[0]
    folder = corpus_folder(dataset, config.vocab_size)
    if not folder.exists():
        raise UsageError(f"{dataset.name} has no tokens of --vocab-size {config.vocab_size} yet")
    problems = problems_of(folder)
    for problem in problems:
        print(problem)
    if problems:
        raise ArtefactError(
            f"{len(problems)} of the files in {folder} are damaged; delete the folder, and "
            "gpt2.train makes it again"
        )
    print(f"{folder}: all is whole")


def problems_of(folder: Path) -> list[str]:
    """Return a line for each damaged file of a corpus folder, beginning with its path."""
    problems = [problem for part in PARTS for problem in verify_shards(folder, part)]
    tokenizer = RegexTokenizer()
    try:
        tokenizer.load(str(folder / TOKENIZER))
    except TokenizerError as error:
        problems.append(str(error))
    try:
        files.read_json(folder / BYTES)
    except (ArtefactError, OSError) as error:
        problems.append(str(error))
    if not problems:  # every file is whole; do they belong together?
        for part in PARTS:
            try:
                Tokens.open(folder, part, tokenizer_sha256=tokenizer.digest(), verify=False)
            except ArtefactError as error:
                problems.append(str(error))
    return problems


if __name__ == "__main__":
    cli.run(main)

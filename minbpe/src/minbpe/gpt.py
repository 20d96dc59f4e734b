"""The published tokenizers, from GPT-2's to GPT-4o's: ids exactly as tiktoken gives them.

Adds to `regex` tokens that come with *ranks* instead of merges: a pair of neighbours merges when
its bytes together are a token, the lowest rank first, and a token's rank is its id. Ids may have
holes, and the single bytes need not be the ids 0..255.
"""

from pathlib import Path
from typing import Self

from minbpe.base import Tokenizer
from minbpe.basic import BasicTokenizer
from minbpe.encoder import RankMerges
from minbpe.errors import TokenizerFileError, UsageError
from minbpe.model_file import Model, RankModel, read_model
from minbpe.published import Ranks, load_ranks
from minbpe.recover import recover_merges
from minbpe.regex import RegexTokenizer
from minbpe.textbook import Pair


class RankTokenizer(Tokenizer):
    """A tokenizer by ranks, from what `load_ranks` takes: a name such as "o200k_base", or a file.

    `ranks` maps a token's bytes to its id; `merges` is worked out from them when it is first asked
    for, which takes a second or two (see `minbpe.recover`). It cannot be trained. Raises what
    `load_ranks` raises, and TokenizerFileError for a file with a pattern or special tokens that
    cannot work.
    """

    def __init__(self, source: Ranks | str | Path = "cl100k_base") -> None:
        self._recovered: dict[Pair, int] | None = None
        found = source if isinstance(source, Ranks) else load_ranks(source)
        try:
            super().__init__(found.pattern or None)
            self._set_ranks(found.ranks)
            self.register_special_tokens(found.special_tokens)
        except UsageError as error:
            if isinstance(source, Ranks):
                raise
            raise TokenizerFileError(f"{source}: {error}") from None

    @classmethod
    def from_file(cls, model_file: str | Path) -> Self:
        """Return the tokenizer that `save` wrote; `GPT4Tokenizer().load` needs cl100k_base first.

        Raises as `load` does.
        """
        tokenizer = cls(Ranks("bytes", "", {bytes([byte]): byte for byte in range(256)}, {}))
        tokenizer.load(model_file)
        return tokenizer

    def _set_ranks(self, ranks: dict[bytes, int]) -> None:
        self.ranks = ranks
        self._recovered = None
        vocab = {rank: token for token, rank in ranks.items()}
        self._set_vocab(vocab, RankMerges(ranks, vocab))

    @property
    def merges(self) -> dict[Pair, int]:
        """The merges that the ranks amount to; tokens that no merge can make are not among them."""
        if self._recovered is None:
            self._recovered = recover_merges(self.ranks)
        return self._recovered

    def check_training(self, vocab_size: int, tie_break: str = "smallest") -> None:  # noqa: ARG002
        """Raise UsageError: these tokens are given."""
        raise UsageError("a published tokenizer cannot be trained; train a RegexTokenizer")

    def _model(self) -> RankModel:
        return RankModel(self.pattern or None, self.ranks, self.special_tokens)

    def _refusal(self, model: Model | RankModel) -> str | None:
        if isinstance(model, RankModel):
            return None
        return "is a trained tokenizer; load it with RegexTokenizer or BasicTokenizer"

    def _take(self, model: Model | RankModel) -> None:
        assert isinstance(model, RankModel)  # or it was refused
        self._set_ranks(model.ranks)


GPT4Tokenizer = RankTokenizer
"""karpathy's name for it; without an argument it is GPT-4's, cl100k_base."""


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Return the tokenizer of a `.model` file, or of anything that `load_ranks` takes.

    Raises UsageError for what does not exist, TokenizerFileError for a file that is broken.
    """
    if Path(source).suffix != ".model":
        return RankTokenizer(source)
    model = read_model(Path(source))
    if isinstance(model, RankModel):
        return RankTokenizer.from_file(source)
    tokenizer: Tokenizer = BasicTokenizer() if model.pattern is None else RegexTokenizer()
    tokenizer.load(source)
    return tokenizer

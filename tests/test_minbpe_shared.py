"""minbpe stands alone, and yet its data sets and token shards are those of `shared`."""

import os
from pathlib import Path

import numpy as np
import pytest

from minbpe import UsageError, shards
from minbpe import datasets as ours
from shared import datasets as theirs
from shared import registry, tokens


def test_names_and_files_of_the_data_sets_that_are_text_are_the_same() -> None:
    """In the same order."""
    listed = {
        source.name: tuple(entry.stored.path for entry in source.entries)
        for source in registry.sources().values()
        if source.text
    }
    assert listed == ours.DATA_SETS


def test_digests_of_the_data_sets_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of $MLE_DATA's manifests, which minbpe reads, and those that `shared` knows."""
    try:
        found = {name: ours.find_corpus(name) for name in ours.DATA_SETS}
    except UsageError as error:
        pytest.skip(str(error))
    listed = ours._digests(Path(os.environ["MLE_DATA"]))
    for name, files in found.items():
        entries = registry.sources()[name].entries
        assert [listed[entry.stored.path] for entry in entries] == [
            entry.stored.sha256 for entry in entries
        ]
        assert theirs.resolve(name).files == tuple(files)


@pytest.mark.parametrize(("vocab_size", "shard_tokens"), [(300, 100), (70_000, 64), (300, 1000)])
def test_token_shards_are_the_same_to_the_byte(
    tmp_path: Path, vocab_size: int, shard_tokens: int
) -> None:
    """As one shard or several, of either type; and `shared` reads them."""
    ids = np.random.default_rng(0).integers(0, vocab_size, 256)
    kind = {"vocab_size": vocab_size, "tokenizer_sha256": "ab" * 32, "shard_tokens": shard_tokens}
    for folder, module in [("ours", shards), ("theirs", tokens)]:
        with module.ShardWriter(tmp_path / folder, "train", **kind) as writer:
            for part in np.split(ids, [7, 150]):
                writer.append(part)
    written = {
        folder: {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("ours", "theirs")
    }
    assert len(written["ours"]) == 1 + -(-256 // shard_tokens)
    assert written["ours"] == written["theirs"]
    read = tokens.Tokens.open(
        tmp_path / "ours", "train", vocab_size=vocab_size, tokenizer_sha256="ab" * 32
    )
    assert read.read(0, len(read)).tolist() == ids.tolist()

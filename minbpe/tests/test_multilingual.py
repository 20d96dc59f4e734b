"""The Universal Declaration of Human Rights in 46 languages: what comes back is what went in."""

import json
import os
from pathlib import Path

import pytest

from minbpe import UsageError
from minbpe.gpt import RankTokenizer
from minbpe.published import PUBLISHED, fill_tiktoken_cache, load_ranks


@pytest.fixture(scope="module")
def languages() -> dict[str, str]:
    """Return the text by language, or skip where the data are not at hand."""
    path = Path(os.environ.get("MLE_DATA", "")) / "multilingual" / "udhr_multiscript.jsonl"
    if not path.is_file():
        pytest.skip("multilingual/udhr_multiscript.jsonl is not in $MLE_DATA")
    lines = path.read_text(encoding="utf-8").splitlines()
    return {entry["id"]: entry["text"] for entry in map(json.loads, lines)}


@pytest.mark.usefixtures("more_ranks")
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_language_round_trips_and_equals_tiktoken(
    name: str, languages: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each published encoding that is at hand."""
    tiktoken = pytest.importorskip("tiktoken", reason="the peer we compare with is not installed")
    try:
        ours = RankTokenizer(load_ranks(name, download=False))
    except UsageError as error:
        pytest.skip(str(error))
    fill_tiktoken_cache(name, tmp_path, download=False)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    theirs = tiktoken.get_encoding(name)
    assert len(languages) == 46
    for language, text in languages.items():
        ids = ours.encode_ordinary(text)
        assert ids == theirs.encode_ordinary(text), language
        assert ours.decode(ids) == text, language

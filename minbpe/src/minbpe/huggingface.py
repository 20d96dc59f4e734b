"""Hugging Face's tokenizer.json, as far as it describes a byte-level BPE like GPT-2's and GPT-4's.

Read and written here are

    {"added_tokens": [{"id": 257, "content": "<|endoftext|>", ...}],
     "normalizer": null,
     "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
         {"type": "Split", "pattern": {"Regex": ...}, "behavior": "Isolated", "invert": false},
         {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]},
     "post_processor": null or ByteLevel, "decoder": {"type": "ByteLevel"},
     "model": {"type": "BPE", "vocab": {"h": 71, "hu": 256}, "merges": [["h", "u"]]}}

or a pre_tokenizer that is ByteLevel alone: with `use_regex` it splits as GPT-2, without it not at
all. What a file says beyond that is refused and not approximated: other ids would come out.

Added tokens are our special tokens. `tokenizers` always looks for them, as `allowed_special="all"`.
"""

from pathlib import Path
from typing import Any

from minbpe.errors import DataError, TokenizerFileError
from minbpe.pretokens import GPT2_SPLIT_PATTERN, GPT4_SPLIT_PATTERN, O200K_SPLIT_PATTERN
from minbpe.rank_files import bytes_of, check_ranks, letters_of, parse_vocabulary
from minbpe.recover import differing_token, recover_merges
from minbpe.textbook import Pair

SPELLINGS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": GPT4_SPLIT_PATTERN,
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+": GPT4_SPLIT_PATTERN,
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": (
        GPT2_SPLIT_PATTERN
    ),
    O200K_SPLIT_PATTERN: O200K_SPLIT_PATTERN,
}
"""Patterns that split as ours do, and leave no text unmatched, as files in the wild write them."""

_OFF = (None, False, "", 0)


class _Refusal(Exception):
    """What a file asks for that we can't do."""


def parse_tokenizer_json(path: Path, file: Any) -> tuple[str, dict[bytes, int], dict[str, int]]:
    """Return the pattern ("" for none), ranks and special tokens that a tokenizer.json describes.

    `file` is what the JSON holds. Raises TokenizerFileError when it asks for what we can't do.
    """
    try:
        if not isinstance(file, dict) or not isinstance(file.get("model"), dict):
            raise _Refusal("it has no model")
        model = file["model"]
        _check_settings(file, model)
        pattern = _pattern(file.get("pre_tokenizer"))
        special = _special(file.get("added_tokens") or [])
        vocabulary = parse_vocabulary(path, model.get("vocab"))
        ranks = _ranks(vocabulary, special)
        check_ranks(path, ranks, special)
        _check_merges(ranks, model)
    except _Refusal as refusal:
        raise TokenizerFileError(
            f"{path}: {refusal}; only a byte-level BPE like GPT-2's or GPT-4's can be read"
        ) from None
    return pattern, ranks, special


def _check_settings(file: dict[str, Any], model: dict[str, Any]) -> None:
    """Refuse what would change the ids and is not there in GPT-2's and GPT-4's files."""
    if model.get("type", "BPE") != "BPE":
        raise _Refusal(f"its model is {_name(model.get('type'))}")
    for name in (
        "dropout",
        "unk_token",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "byte_fallback",
    ):
        if model.get(name) not in _OFF:
            raise _Refusal(f"its model has {name}={_name(model[name])}")
    for name in ("normalizer", "truncation", "padding"):
        if file.get(name) is not None:
            raise _Refusal(f"it has {name} {_name(file[name])}")
    decoder, post = file.get("decoder"), file.get("post_processor")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise _Refusal(f"its decoder is {_name(decoder)}, not ByteLevel")
    if post is not None and not (isinstance(post, dict) and post.get("type") == "ByteLevel"):
        raise _Refusal(
            f"it adds tokens around a text (post_processor {_name(post)}; put null there for "
            "the ids without)"
        )


def _pattern(found: Any) -> str:
    """Return the split pattern of a pre_tokenizer."""
    if not isinstance(found, dict):
        raise _Refusal(f"its pre_tokenizer is {_name(found)}")
    steps = found.get("pretokenizers") if found.get("type") == "Sequence" else [found]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise _Refusal("its pre_tokenizer is no sequence of objects")
    kinds = [step.get("type") for step in steps]
    if kinds not in (["ByteLevel"], ["Split", "ByteLevel"]):
        raise _Refusal(f"its pre_tokenizer is {' + '.join(map(_name, steps))}")
    if steps[-1].get("add_prefix_space", True) is not False:
        raise _Refusal("its pre_tokenizer puts a space before each text (add_prefix_space)")
    by_regex = steps[-1].get("use_regex", True)
    if len(steps) == 1:
        return GPT2_SPLIT_PATTERN if by_regex else ""
    if by_regex:
        raise _Refusal("its pre_tokenizer splits twice, by Split and by ByteLevel (use_regex)")
    return _split_pattern(steps[0])


def _split_pattern(split: dict[str, Any]) -> str:
    pattern = split.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(regex, str) or not regex:
        raise _Refusal("its Split is not by a regular expression")
    how = (split.get("behavior"), split.get("invert", False))
    # "Removed", inverted, drops what the pattern leaves unmatched: nothing, for patterns we know.
    if how != ("Isolated", False) and (how != ("Removed", True) or regex not in SPELLINGS):
        raise _Refusal(f"its Split has behavior={_name(how[0])}, invert={_name(how[1])}")
    return SPELLINGS.get(regex, regex)


def _special(added: Any) -> dict[str, int]:
    special: dict[str, int] = {}
    for token in added if isinstance(added, list) else [None]:
        if not isinstance(token, dict):
            raise _Refusal("its added_tokens are no list of objects")
        content, idx = token.get("content"), token.get("id")
        if not isinstance(content, str) or type(idx) is not int or content in special:
            raise _Refusal(f"its added token {_name(content)} is no text, or there twice")
        for name in ("single_word", "lstrip", "rstrip"):
            if token.get(name):
                raise _Refusal(f"its added token {content!r} has {name}")
        special[content] = idx
    return special


def _ranks(vocabulary: dict[str, int], special: dict[str, int]) -> dict[bytes, int]:
    """Return the tokens that are not special, in bytes."""
    ranks: dict[bytes, int] = {}
    taken = {idx: content for content, idx in special.items()}
    for letters, idx in vocabulary.items():
        if special.get(letters) == idx:
            continue
        if letters in special or idx in taken:
            raise _Refusal(f"token {letters!r} and an added token get in each other's way")
        try:
            ranks[bytes_of(letters)] = idx
        except KeyError as error:
            raise _Refusal(f"token {letters!r}: {error.args[0]!r} stands for no byte") from None
    return ranks


def _check_merges(ranks: dict[bytes, int], model: dict[str, Any]) -> None:
    """Refuse merges that are not what the ranks say (see `minbpe.recover`)."""
    expected = recover_merges(ranks)
    merges = _merges(ranks, model.get("merges"))
    ids = [idx for _, idx in merges]
    if ids != sorted(ids):
        raise _Refusal("its merges are not in the order of the ids they make")
    if missing := expected.keys() - dict(merges).keys():
        raise _Refusal(f"its merges lack the one that makes token {expected[min(missing)]}")
    if (odd := differing_token(ranks, expected)) is not None:
        raise _Refusal(f"no merges make token {odd}, but two tokens spell it")
    if not model.get("ignore_merges") and len(expected) + 256 < len(ranks):
        lost = min(set(ranks.values()) - set(expected.values()) - _bytes(ranks))
        raise _Refusal(f"no merges make token {lost}, and ignore_merges is off")


def _bytes(ranks: dict[bytes, int]) -> set[int]:
    return {ranks[bytes([byte])] for byte in range(256)}


def _merges(ranks: dict[bytes, int], found: Any) -> list[tuple[Pair, int]]:
    """Return each merge as its pair of ids and the id it makes."""
    if not isinstance(found, list):
        raise _Refusal("its merges are no list")
    merges: list[tuple[Pair, int]] = []
    for number, merge in enumerate(found):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2:
            raise _Refusal(f"its merge number {number} is {_name(merge)}, not two tokens")
        try:
            left, right = bytes_of(parts[0]), bytes_of(parts[1])
            merges.append(((ranks[left], ranks[right]), ranks[left + right]))
        except (KeyError, TypeError):
            raise _Refusal(f"its merge number {number} is of or makes no token") from None
    return merges


def _name(value: Any) -> str:
    """Return a short name for a part of the file."""
    shown = value.get("type", "an object") if isinstance(value, dict) else value
    return repr(shown)[:60] if not isinstance(shown, str) else shown[:60]


# ---- writing


def render_tokenizer_json(
    pattern: str,
    ranks: dict[bytes, int],
    merges: dict[Pair, int],
    special_tokens: dict[str, int],
) -> dict[str, Any]:
    """Return what a tokenizer.json says, as `json.dumps` takes it; raise DataError if it can't.

    `merges` are those of the ranks, in their order (see `minbpe.recover`).
    """
    letters = {idx: letters_of(token) for token, idx in ranks.items()}
    vocabulary = {text: idx for idx, text in letters.items()}
    for text, idx in special_tokens.items():
        # `tokenizers` keeps an added token's id only where the vocabulary has it too.
        if text in vocabulary:
            raise DataError(
                f"special token {text!r} is spelled like the token {vocabulary[text]} in Hugging "
                "Face's letters, and would get its id; give it another text"
            )
        vocabulary[text] = idx
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(text, idx) for text, idx in special_tokens.items()],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(pattern),
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": len(merges) + 256 < len(ranks),
            "vocab": vocabulary,
            "merges": [f"{letters[left]} {letters[right]}" for left, right in merges],
        },
    }


_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}


def _added_token(text: str, idx: int) -> dict[str, Any]:
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": idx, "content": text, **off, "special": True}


def _pre_tokenizer(pattern: str) -> dict[str, Any]:
    if not pattern:
        return _BYTE_LEVEL
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL]}

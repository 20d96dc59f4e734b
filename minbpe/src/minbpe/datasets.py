"""Data sets by name: files under $MLE_DATA, each checked by its SHA-256 before it is used.

The names are those of `python -m shared.datasets`. Sizes and digests come from the manifests that
lie in the folder, so that nothing but the names is written here.
"""

import difflib
import hashlib
import json
import os
from pathlib import Path

from minbpe.errors import TokenizerFileError, UsageError

DATA_SETS: dict[str, tuple[str, ...]] = {
    "shakespeare": ("tinyshakespeare.txt",),
    "names": ("names.txt",),
    "wikitext-2": ("wikitext-2/train.txt.xz", "wikitext-2/valid.txt", "wikitext-2/test.txt"),
    "wikitext-2-raw": ("wikitext-2/wiki.test.raw",),
    "english-novels": ("pretrain/english_novels.jsonl.xz",),
    "tinystories": ("pretrain/tinystories_2mib.txt",),
    "fineweb-edu": ("pretrain/fineweb_edu_sample.txt",),
    "c4-a": ("pretrain/c4_sample_a.jsonl",),
    "c4-b": ("pretrain/c4_sample_b.jsonl",),
    "udhr": ("multilingual/udhr_multiscript.jsonl",),
    "rotten-tomatoes": ("rotten_tomatoes/rt-polarity.pos", "rotten_tomatoes/rt-polarity.neg"),
    "lambada": ("eval/lambada_test.jsonl",),
}
"""The files of each data set that is text, in order."""

MANIFESTS = ("manifest-text.json", "manifest-ir-recsys.json")


def find_corpus(name: str) -> list[Path]:
    """Return the files of a data set, or [path] for what is not one's name.

    A data set's name is never taken for a path; write `./names` for a file of that name. Raises
    UsageError where $MLE_DATA has no such data set, and for a path that does not exist;
    TokenizerFileError for a file whose digest is not the manifest's.
    """
    if name not in DATA_SETS:
        path = Path(name)
        if not path.exists():
            raise UsageError(_unknown(name))
        return [path]
    chosen = os.environ.get("MLE_DATA")
    if not chosen:
        raise UsageError(
            f"the data set {name!r} is looked up in $MLE_DATA, which is not set: set it to the "
            f"folder of data sets, or give a path (./{name} for a file of that name)"
        )
    folder = Path(chosen).expanduser()
    digests = _digests(folder)
    for file in DATA_SETS[name]:
        _check(folder / file, name, digests.get(file))
    return [folder / file for file in DATA_SETS[name]]


def _unknown(name: str) -> str:
    message = f"{name} cannot be read: No such file or directory"
    near = difflib.get_close_matches(name.lower(), DATA_SETS, n=2, cutoff=0.6)
    return f"{message}; did you mean the data set {' or '.join(near)}?" if near else message


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that the folder's manifests list."""
    digests: dict[str, str] = {}
    for name in MANIFESTS:
        path = folder / name
        try:
            read = json.loads(path.read_bytes())
            for entry in read["entries"] if isinstance(read, dict) else read:
                for file in entry.get("files") or [{**entry, "path": entry["file"]}]:
                    digests[file["path"]] = file["sha256"]
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UsageError(f"$MLE_DATA: {path} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TokenizerFileError(f"{path} is no list of files ({error!r})") from None
    if not digests:
        raise UsageError(f"$MLE_DATA is {folder}, where no {' or '.join(MANIFESTS)} lies")
    return digests


def _check(path: Path, name: str, expected: str | None) -> None:
    """Raise unless the file is the one that the manifest means."""
    if expected is None or not path.is_file():
        raise UsageError(f"$MLE_DATA does not have {path.name} of the data set {name!r}: {path}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise TokenizerFileError(
            f"{path} is not the file of the data set {name!r}: its SHA-256 is {digest}, and the "
            f"manifest says {expected}"
        )

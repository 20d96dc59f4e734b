"""Models as JSON.

A model file is a JSON object that can be read in an editor. Its `sha256` is that of everything else
in it, so that a file that was cut, or changed by hand, is refused. No pickle is involved.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NoReturn

from micrograd.errors import ArtefactError, UsageError
from micrograd.files import write_whole

FORMAT = "micrograd model 1"
MAX_FILE_BYTES = 64 << 20
"""A scalar network of a million parameters has about 20 MB."""


def write_model(path: Path, model: dict[str, Any]) -> None:
    """Write a model, of what JSON can hold, with its checksum."""
    body = {"format": FORMAT, **model}
    text = json.dumps(body | {"sha256": _digest(body)}, indent=1, allow_nan=False)
    write_whole(path, text + "\n")


def read_model(path: Path) -> dict[str, Any]:
    """Return what `write_model` wrote.

    Raises UsageError where the file can't be read, ArtefactError where anything in it is wrong.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ArtefactError(f"{path} has over {MAX_FILE_BYTES} bytes, it is no model of ours")
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    try:
        model = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} is torn or no JSON: {error}") from None
    if not isinstance(model, dict) or "format" not in model:
        raise ArtefactError(f"{path} is no micrograd model")
    if model["format"] != FORMAT:
        raise ArtefactError(f"{path} is {model['format']!r}; this program reads {FORMAT!r}")
    if model.pop("sha256", None) != _digest(model):
        raise ArtefactError(f"{path} was altered: its checksum is another")
    return model


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")

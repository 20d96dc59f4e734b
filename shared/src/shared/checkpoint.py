"""Checkpoints: folders that are complete and unaltered, or refused with the reason.

    checkpoints/
      step-00000250/
        model.safetensors     weights
        state.pt              optimizer, schedule, sampler, trainer, random state
        config.json
        MANIFEST.json         schema version, step, size and sha256 of each file; written last
      latest                  the name of the newest step folder; replaced after it is in place
      best                    the same for the best one

A save writes into `.step-00000250.tmp` and renames that folder at the end, so that a kill at any
moment leaves the previous checkpoint, or the new one, and perhaps a temporary folder that
`Checkpoints.discard_leftovers` removes. Nothing is read before its size and digest are checked,
and no pickle of foreign objects is ever loaded.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from shared import files
from shared.errors import ArtefactError, ResourceError, UsageError
from shared.faults import kill_point

SCHEMA_VERSION = 1
MANIFEST = "MANIFEST.json"
MODEL = "model.safetensors"
STATE = "state.pt"
CONFIG = "config.json"
_MANIFEST_KEYS = {"schema", "step", "files", "manifest_sha256"}
MAX_FILES = 10_000  # more than any checkpoint of ours has

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")  # no separator: never leaves a folder
_SHA256 = re.compile(r"[0-9a-f]{64}")
# `.old` is a checkpoint whose replacement, of the same step, was killed between two renames.
_STEP_FOLDER = re.compile(r"step-(\d{8,18})(\.old)?")
_PLAIN_TYPES = frozenset({type(None), bool, int, float, str, bytes, torch.Size, torch.dtype})

Fingerprint = tuple[tuple[str, int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """What a manifest says of one file: its size in bytes and its sha256 in hex."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One checkpoint whose every file was found to be what its manifest says.

    `refused` holds a line for each newer checkpoint that was skipped in favour of this one.
    """

    path: Path
    step: int
    files: Mapping[str, FileEntry]
    refused: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Verify a step folder.

        Raises ArtefactError, with file and reason, for a missing, foreign, truncated or altered
        file, for a manifest that is torn, altered or of a newer version, and for a folder that
        cannot be read.
        """
        try:
            step, entries = _read_manifest(path)
            _check_files(path, entries)
        except OSError as error:
            raise ArtefactError(f"{path}: cannot be read ({error})") from error
        return cls(path, step, entries)

    def file(self, name: str) -> Path:
        """Path of a verified file. Raises ArtefactError when the checkpoint has none so named."""
        if name not in self.files:
            raise ArtefactError(f"{self.path}: has no {name}, only {', '.join(self.files)}")
        return self.path / name

    def tensors(self, name: str = MODEL, device: str | torch.device = "cpu") -> dict[str, Tensor]:
        """Load the tensors of a safetensors file; tied names get the same tensor.

        Raises ArtefactError when the file is absent or cannot be understood.
        """
        path = self.file(name)
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                aliases = json.loads((file.metadata() or {}).get("aliases", "{}"))
            return tensors | {alias: tensors[kept] for alias, kept in aliases.items()}
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise ArtefactError(f"{path}: not the tensors we wrote ({error})") from error

    def state(self, name: str = STATE, map_location: str | torch.device = "cpu") -> Any:
        """Load what `write_state` wrote, refusing anything but plain data and tensors.

        Raises ArtefactError when the file is absent or cannot be understood.
        """
        path = self.file(name)
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # torch.load raises half a dozen types for a bad file
            reason = str(error).strip().partition("\n")[0]
            raise ArtefactError(f"{path}: not the state we wrote ({reason})") from error

    def json(self, name: str = CONFIG) -> Any:
        """Load a JSON file. Raises ArtefactError when it is absent or not JSON."""
        return files.read_json(self.file(name))


class PendingCheckpoint:
    """A checkpoint being written; not one until `Checkpoints.commit` has renamed its folder.

    `Checkpoints.begin` makes it. When a write fails, its temporary folder `path` is removed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / f".{_step_name(step)}.tmp"
        self.step = step

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors of any device as safetensors; names tied to one tensor stay tied.

        Raises ResourceError when the disk refuses.
        """
        with self._discarding_on_failure():
            kept, aliases = _without_sharing(tensors)
            # One entry only: safetensors writes several in random order, and equal
            # weights should give equal files.
            metadata = {"aliases": json.dumps(aliases, sort_keys=True)}
            self._write(name, lambda path: save_file(kept, path, metadata))

    def write_state(self, name: str, value: Any) -> None:
        """Write nested dicts, lists and tuples of tensors, numbers and strings.

        Raises TypeError, naming the place, for anything that could not be loaded again with
        `weights_only=True`; ResourceError when the disk refuses.
        """

        def save(path: Path) -> None:
            # A Python file passes on the reason of a failure; torch's own writer hides it.
            with path.open("wb") as file:
                torch.save(value, file)

        with self._discarding_on_failure():
            _check_plain(value, name)
            self._write(name, save)

    def write_json(self, name: str, value: Any) -> None:
        """Write JSON. Raises ResourceError when the disk refuses."""
        with self._discarding_on_failure():
            self._write(name, files.json_bytes(value))

    def discard(self) -> None:
        """Give this save up: remove its folder. Never raises for a disk that refuses."""
        with contextlib.suppress(OSError, ResourceError):
            files.remove_folder(self.path)

    def _write(self, name: str, data: Any) -> None:
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise ValueError(f"{name!r} cannot be the name of a file in a checkpoint")
        files.write_file(self.path / name, data)

    @contextlib.contextmanager
    def _discarding_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.discard()
            raise


class Checkpoints:
    """The checkpoints of one run, in `folder`.

    Keeps the newest `keep` checkpoints that verify, and the best. One process (rank 0) writes.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep} would delete every checkpoint; the least is 1")
        self.folder = folder
        self.keep = keep
        self.refused: list[str] = []  # why newest() skipped what it skipped
        self._verified: dict[Path, Fingerprint] = {}

    # Saving

    def begin(self, step: int) -> PendingCheckpoint:
        """Start a checkpoint, wiping what a killed save of the same step left.

        Raises ResourceError when the disk refuses.
        """
        kill_point("save:begin")
        pending = PendingCheckpoint(self.folder, step)
        try:
            files.remove_folder(pending.path)
            files.make_folder(pending.path)
        except BaseException:
            pending.discard()
            raise
        return pending

    def commit(
        self, pending: PendingCheckpoint, best: bool = False, also_keep: int = -1
    ) -> Checkpoint:
        """Seal a checkpoint, put it in place, then remove the ones no longer kept.

        The one of step `also_keep` is kept too. A checkpoint of the same step is replaced. On any
        failure the temporary folder is gone and the previous checkpoint is as it was. Raises
        ResourceError when the disk refuses.
        """
        final = self.folder / _step_name(pending.step)
        try:
            entries = _seal(pending)
            kill_point("save:before-rename")
            self._put_in_place(pending.path, final)
            self._verified[final] = _fingerprint(final)
            kill_point("save:before-latest")
            name = f"{final.name}\n".encode()
            files.write_file(self.folder / "latest", name)
            if best:
                kill_point("save:before-best")
                files.write_file(self.folder / "best", name)
            self.prune(also_keep)
        except BaseException:
            with contextlib.suppress(OSError, ResourceError):
                self.discard_leftovers()
            raise
        kill_point("save:end")
        return Checkpoint(final, pending.step, entries)

    def prune(self, also_keep: int = -1) -> None:
        """Remove what is older than the newest `keep` verified checkpoints.

        The best one and the one of step `also_keep` stay. A damaged checkpoint does not count,
        and one of a later step than the newest (a run continued from an earlier step) is left
        alone. Raises ResourceError when the disk refuses.
        """
        newest = next((path for path in self._ranked() if self._verifies(path)), None)
        if newest is None:
            return
        best, kept = self._pointer("best"), 1
        for path in self._by_step():
            if _step_of(path) >= _step_of(newest):
                continue
            if kept < self.keep:
                kept += self._verifies(path)
            elif path != best and _step_of(path) != also_keep:
                self._remove(path)

    def discard_leftovers(self) -> None:
        """Clean up after a killed run; for the run's owner, before `newest`.

        Removes temporary files and folders, and ends a replacement that was cut short. Raises
        ResourceError when the disk refuses.
        """
        for path in sorted(self.folder.glob(".step-*.tmp")):
            files.remove_folder(path)
        files.discard_temporaries(self.folder)
        for old in sorted(self.folder.glob("step-*.old")):
            final = old.with_suffix("")
            if final.exists() and self._verifies(final):
                self._remove(old)
            else:
                self._remove(final)
                files.replace(old, final)

    def _put_in_place(self, temporary: Path, final: Path) -> None:
        """Rename the finished folder; at each moment a verified checkpoint of the step stays."""
        old = final.with_name(f"{final.name}.old")
        if final.exists() and self._verifies(final):
            self._remove(old)
            files.replace(final, old)
        else:
            self._remove(final)
        files.replace(temporary, final)
        self._remove(old)

    def _remove(self, path: Path) -> None:
        """Delete a step folder; renamed first, so that a kill leaves no half of a checkpoint."""
        if path.exists():
            hidden = path.with_name(f".{path.name}.gone.tmp")
            files.remove_folder(hidden)
            files.replace(path, hidden)
            files.remove_folder(hidden)
        self._verified.pop(path, None)

    # Loading

    def newest(self, last_step: int | None = None) -> Checkpoint | None:
        """Find the newest checkpoint that verifies, or None; with `last_step`, of none later.

        The one that `latest` names comes first, then the others by step number, never by the
        clock. `refused` tells what was skipped and why, also when the result is None.
        """
        self.refused = []
        for path in self._ranked():
            if last_step is not None and _step_of(path) > last_step:
                continue
            try:
                found = Checkpoint.open(path)
            except ArtefactError as error:
                self.refused.append(str(error))
            else:
                return dataclasses.replace(found, refused=tuple(self.refused))
        return None

    def best(self) -> Checkpoint | None:
        """Open the checkpoint marked as best; None when none was.

        Raises ArtefactError when it does not verify.
        """
        path = self._pointer("best")
        return None if path is None else Checkpoint.open(path)

    def best_step(self) -> int:
        """Tell the step of the checkpoint marked as best, without verifying it; -1 for none."""
        path = self._pointer("best")
        return -1 if path is None else _step_of(path)

    def at(self, step: int) -> Checkpoint:
        """Open the checkpoint of a step.

        Raises UsageError, naming the steps there are, when there is none of that step;
        ArtefactError when it does not verify.
        """
        path = self.folder / _step_name(step)
        if not path.is_dir():
            steps = ", ".join(str(step) for step in self.steps()) or "none"
            raise UsageError(f"{self.folder}: no checkpoint of step {step}; there are: {steps}")
        return Checkpoint.open(path)

    def steps(self) -> list[int]:
        """List the steps of which there is a checkpoint, verified or not, in order."""
        return sorted({_step_of(path) for path in self._by_step()})

    def _by_step(self) -> list[Path]:
        """Step folders, latest step first; of one step the `.old` one last."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _STEP_FOLDER.fullmatch(path.name)]
        return sorted(found, key=lambda path: (-_step_of(path), path.name))

    def _ranked(self) -> list[Path]:
        """Step folders in the order in which to resume from them."""
        latest = self._pointer("latest")
        return sorted(self._by_step(), key=lambda path: path != latest)

    def _pointer(self, name: str) -> Path | None:
        """Read `latest` or `best`; a torn or missing one points nowhere."""
        try:
            with (self.folder / name).open("rb") as file:
                target = file.read(64).decode("ascii", "replace").strip()
        except OSError:
            return None
        return self.folder / target if _STEP_FOLDER.fullmatch(target) else None

    def _verifies(self, path: Path) -> bool:
        """Verify a checkpoint, once for as long as its files stay untouched."""
        try:
            fingerprint = _fingerprint(path)
            if self._verified.get(path) != fingerprint:
                Checkpoint.open(path)
                self._verified[path] = fingerprint
        except (ArtefactError, OSError):
            return False
        return True


def open_checkpoint(path: Path, best: bool = False) -> Checkpoint:
    """Open a checkpoint for reading, given a run folder, a checkpoints folder or a step folder.

    Of several, the newest that verifies, or with `best` the one marked so (the newest when none
    is). Raises UsageError when there is no checkpoint, ArtefactError when none verifies.
    """
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder; name a run folder or a checkpoint in one")
    if (path / MANIFEST).exists() or _STEP_FOLDER.fullmatch(path.name):
        return Checkpoint.open(path)
    checkpoints = Checkpoints(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    found = (checkpoints.best() if best else None) or checkpoints.newest()
    if found is not None:
        return found
    if checkpoints.refused:
        raise ArtefactError("no checkpoint is intact: " + "; ".join(checkpoints.refused))
    raise UsageError(f"{path}: holds no checkpoint yet")


def misfits(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return a line for each tensor that is absent, foreign or of another shape than `model`'s.

    The shapes of buffers may depend on the data, so that those are left to the model.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    expected = model.state_dict().keys()
    lines = []
    for name in sorted(expected | tensors.keys()):
        if name not in tensors:
            lines.append(f"{name}: absent")
        elif name not in expected:
            lines.append(f"{name}: unknown")
        elif name in shapes and tuple(tensors[name].shape) != shapes[name]:
            lines.append(f"{name}: {tuple(tensors[name].shape)}, expected {shapes[name]}")
    return lines


def _step_name(step: int) -> str:
    if step < 0:
        raise ValueError(f"step={step} is negative")
    return f"step-{step:08d}"


def _step_of(path: Path) -> int:
    found = _STEP_FOLDER.fullmatch(path.name)
    assert found is not None, path
    return int(found[1])


def _fingerprint(path: Path) -> Fingerprint:
    """Collect what changes when a file in a folder is written: names, sizes, times, inodes."""
    entries = ((item.name, item.stat()) for item in sorted(path.iterdir()))
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in entries)


def _seal(pending: PendingCheckpoint) -> dict[str, FileEntry]:
    """Hash what was written and write the manifest, the last file of a checkpoint."""
    entries = {}
    for path in sorted(pending.path.iterdir()):
        if not _FILE_NAME.fullmatch(path.name):
            raise ValueError(f"{path}: still being written, or not by us")
        with files.disk_errors(path):
            entries[path.name] = FileEntry(path.stat().st_size, files.sha256_of(path))
    kill_point("save:before-manifest")
    manifest = _manifest_bytes(
        {
            "schema": SCHEMA_VERSION,
            "step": pending.step,
            "files": {name: dataclasses.asdict(entry) for name, entry in entries.items()},
        }
    )
    files.write_file(pending.path / MANIFEST, manifest)
    return entries


def _manifest_bytes(content: Mapping[str, Any]) -> bytes:
    """Render a manifest with its own digest, which no other text of it can have."""
    digest = hashlib.sha256(files.json_bytes(content)).hexdigest()
    return files.json_bytes({**content, "manifest_sha256": digest})


def _read_manifest(folder: Path) -> tuple[int, dict[str, FileEntry]]:
    """Read and check a manifest by itself, before anything that it names is touched."""
    path = folder / MANIFEST
    content = files.read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise ArtefactError(f"{path}: not a manifest (no schema version)")
    if content["schema"] > SCHEMA_VERSION:
        raise ArtefactError(
            f"{path}: schema version {content['schema']} is newer than {SCHEMA_VERSION}, which "
            "this program knows; update it"
        )
    if content["schema"] < 1 or content.keys() != _MANIFEST_KEYS:
        raise ArtefactError(f"{path}: not a manifest (its keys are not {sorted(_MANIFEST_KEYS)})")
    step, listed = content["step"], content["files"]
    if type(step) is not int or not isinstance(listed, dict) or len(listed) > MAX_FILES:
        raise ArtefactError(f"{path}: lacks a step or a list of at most {MAX_FILES} files")
    entries = {name: _entry(path, name, listed[name]) for name in listed}
    del content["manifest_sha256"]
    if path.read_bytes() != _manifest_bytes(content):
        raise ArtefactError(f"{path}: altered, its own sha256 does not fit")
    named = _STEP_FOLDER.fullmatch(folder.name)
    if named is not None and int(named[1]) != step:
        raise ArtefactError(f"{path}: is of step {step}, not of the folder it lies in")
    return step, entries


def _entry(manifest: Path, name: str, value: Any) -> FileEntry:
    if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
        raise ArtefactError(f"{manifest}: {name!r} is not the name of a file beside it")
    match value:
        case {"size": int(size), "sha256": str(sha256), **rest}:
            if not rest and size >= 0 and _SHA256.fullmatch(sha256):
                return FileEntry(size, sha256)
    raise ArtefactError(f"{manifest}: no size and sha256 for {name}")


def _check_files(folder: Path, entries: Mapping[str, FileEntry]) -> None:
    """Hold the folder against its manifest: names and sizes first, digests after."""
    found = {path.name: path for path in folder.iterdir() if path.name != MANIFEST}
    for name in sorted(entries.keys() - found.keys()):
        raise ArtefactError(f"{folder / name}: missing")
    for name in sorted(found.keys() - entries.keys()):
        raise ArtefactError(f"{folder / name}: foreign, the manifest does not know it")
    for name, entry in entries.items():
        path = found[name]
        if path.is_symlink() or not path.is_file():
            raise ArtefactError(f"{path}: not a plain file")
        if (size := path.stat().st_size) != entry.size:
            raise ArtefactError(f"{path}: has {size} bytes, the manifest says {entry.size}")
    for name, entry in entries.items():
        if (sha256 := files.sha256_of(found[name])) != entry.sha256:
            raise ArtefactError(
                f"{found[name]}: altered, sha256 is {sha256}, the manifest says {entry.sha256}"
            )


def _without_sharing(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Prepare tensors for safetensors, which refuses memory shared between names.

    Returns the tensors to write and, for each name that is the very same tensor as an earlier
    one (tied weights), that earlier name. Tensors that merely overlap are copied.
    """
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first_names: dict[object, str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        where = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        first = first_names.setdefault(where, name)
        if first != name:
            aliases[name] = first
            continue
        copy = tensor.detach().cpu().contiguous()
        if copy.untyped_storage().data_ptr() in storages:
            copy = copy.clone()
        storages.add(copy.untyped_storage().data_ptr())
        kept[name] = copy
    return kept, aliases


def _check_plain(value: Any, where: str) -> None:
    """Refuse at saving what `torch.load(weights_only=True)` would refuse at loading."""
    if isinstance(value, Tensor) or type(value) in _PLAIN_TYPES:
        return
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"{where}: a key")
            _check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple, set):
        for number, item in enumerate(value):
            _check_plain(item, f"{where}[{number}]")
    else:
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{where} is a {name}, which is not plain data; convert it first")

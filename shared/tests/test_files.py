"""Files are whole or not there, and a disk that refuses is reported as such."""

import dataclasses
import errno
import hashlib
import json
import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shared import files
from shared.errors import ArtefactError, ResourceError
from shared.faults import count_operations, fail_nth


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _save_tensors(path: Path) -> None:
    save_file({"w": torch.ones(100_000)}, path)


def _save_state(path: Path) -> None:
    with path.open("wb") as file:
        torch.save(torch.ones(100_000), file)


def _write_fails(path: Path, data: bytes | Callable[[Path], None]) -> bool:
    """Write, and say whether the disk refused."""
    try:
        files.write_file(path, data)
    except ResourceError:
        return True
    return False


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file of this process can outgrow 64 KiB, the nearest to a full disk without a mount."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("data", [b"new", lambda path: path.write_bytes(b"new")])
def test_a_failure_at_any_operation_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, data: bytes | Callable[[Path], None]
) -> None:
    """Fail operation 1, 2, ... until a write goes through: never torn, no temporary file left."""
    path = tmp_path / "file"
    n = 0
    while True:
        n += 1
        path.write_bytes(b"old")
        with fail_nth(n) as operations:
            if _write_fails(path, data):
                assert path.read_bytes() == (b"old" if n < 5 else b"new")
                assert _names(tmp_path) == ["file"]
                continue
        break
    assert operations.failed == 0
    assert [kind for kind, _ in operations.seen] == [
        *("open", "write", "fsync", "rename", "fsync_folder")
    ]
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_refusing_disk_is_a_resource_error_naming_file_and_reason(
    tmp_path: Path, number: int
) -> None:
    """Exit code 5, and a message that a person can act on."""
    path = tmp_path / "weights"
    with fail_nth(2, OSError(number, os.strerror(number))), pytest.raises(ResourceError) as caught:
        files.write_file(path, b"data")
    assert caught.value.exit_code == 5
    assert str(path) in str(caught.value)
    assert os.strerror(number) in str(caught.value)


def test_an_error_of_ours_keeps_its_type(tmp_path: Path) -> None:
    """Only what the machine refuses becomes a ResourceError; a missing folder is a defect."""
    with pytest.raises(FileNotFoundError):
        files.write_file(tmp_path / "absent" / "file", b"data")


def test_the_first_failure_is_told_when_cleaning_up_fails_too(tmp_path: Path) -> None:
    """A disk that turned read-only refuses the removal of the temporary file as well."""
    error = OSError(errno.EROFS, os.strerror(errno.EROFS))
    with (
        fail_nth(3, error, lasting=True) as operations,
        pytest.raises(ResourceError, match="Read-only") as caught,
    ):
        files.write_file(tmp_path / "file", b"data")
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'file'}:")
    assert [kind for kind, _ in operations.seen] == ["open", "write", "fsync", "unlink"]


@pytest.mark.parametrize("data", [bytes(2**17), _save_tensors, _save_state])
@pytest.mark.usefixtures("small_disk")
def test_a_disk_that_fills_up_midway_is_seen_through_every_library(
    tmp_path: Path, data: bytes | Callable[[Path], None]
) -> None:
    """Safetensors and torch.save wrap the system's error, each in its own way."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ResourceError, match="File too large"):
        files.write_file(path, data)
    assert path.read_bytes() == b"old"
    assert _names(tmp_path) == ["file"]


@pytest.mark.parametrize("data", [b"data", _save_tensors])
def test_a_written_file_may_be_read_by_whom_the_umask_allows(
    tmp_path: Path, data: bytes | Callable[[Path], None]
) -> None:
    """Safetensors by itself leaves a file that only its owner may read."""
    before = os.umask(0o022)
    try:
        files.write_file(tmp_path / "file", data)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_a_new_folder_and_a_rename_are_synced_into_the_folder_above(tmp_path: Path) -> None:
    """Without it a power cut could lose the name, whatever the file holds."""
    with count_operations() as operations:
        files.make_folder(tmp_path / "a" / "b")
        files.replace(tmp_path / "a" / "b", tmp_path / "c")
    assert operations.seen == [
        ("mkdir", tmp_path / "a"),
        ("fsync_folder", tmp_path),
        ("mkdir", tmp_path / "a" / "b"),
        ("fsync_folder", tmp_path / "a"),
        ("rename", tmp_path / "c"),
        ("fsync_folder", tmp_path),
    ]
    assert (tmp_path / "c").is_dir()


def test_only_one_process_can_make_a_new_folder(tmp_path: Path) -> None:
    """The second learns that it came second."""
    files.make_new_folder(tmp_path / "run")
    with pytest.raises(FileExistsError):
        files.make_new_folder(tmp_path / "run")


def test_removing_what_is_not_there_is_fine(tmp_path: Path) -> None:
    """Cleaning up twice must not fail; what is there goes."""
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for _ in range(2):
        files.remove_folder(tmp_path / "folder")
        files.remove_file(tmp_path / "file")
    assert _names(tmp_path) == []


def test_discarding_temporaries_spares_all_else(tmp_path: Path) -> None:
    """Only hidden files that end in .tmp are what a killed write leaves."""
    leftover = files.temporary_path(tmp_path / "latest")
    for name in (leftover.name, "latest", "notes.tmp", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    files.discard_temporaries(tmp_path)
    assert _names(tmp_path) == [".hidden", "latest", "notes.tmp"]


def test_temporary_names_never_repeat(tmp_path: Path) -> None:
    """Two threads writing one file must not share a temporary file."""
    path = tmp_path / "file"
    assert files.temporary_path(path) != files.temporary_path(path)
    assert files.temporary_path(path).parent == path.parent


@dataclasses.dataclass
class _Config:
    n_layer: int
    data: Path


def test_json_takes_what_configurations_hold(tmp_path: Path) -> None:
    """Dataclasses, paths, sets and NumPy or torch scalars become plain JSON."""
    value = {
        "config": _Config(4, Path("data/x.txt")),
        "names": {"b", "a"},
        "loss": np.float32(0.5),
        "steps": torch.tensor(3),
        "text": "é",
    }
    files.write_json(tmp_path / "x.json", value)
    assert files.read_json(tmp_path / "x.json") == {
        "config": {"n_layer": 4, "data": "data/x.txt"},
        "names": ["a", "b"],
        "loss": 0.5,
        "steps": 3,
        "text": "é",
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_other_readers_cannot_read(tmp_path: Path, value: float) -> None:
    """NaN is no JSON, though Python would write it."""
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x.json", {"loss": value})
    assert _names(tmp_path) == []


def test_json_refuses_a_foreign_object(tmp_path: Path) -> None:
    """The message names the type, not only that there was one."""
    with pytest.raises(TypeError, match="Generator has no place"):
        files.write_json(tmp_path / "x.json", {"rng": torch.Generator()})


@pytest.mark.parametrize(
    "data",
    [b'{"step": 1', b"", b"\xff\xfe{}", b"[" * 100_000, b"9" * 5000],
    ids=["torn", "empty", "not text", "deep", "huge number"],
)
def test_bad_json_is_an_artefact_error_naming_the_file(tmp_path: Path, data: bytes) -> None:
    """Exit code 4, never a traceback from inside the parser."""
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"x\.json: not valid JSON"):
        files.read_json(path)


def test_missing_and_oversized_json_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """The size is looked at first: a sparse file of 1 TiB costs nothing."""
    path = tmp_path / "x.json"
    with pytest.raises(ArtefactError, match=r"x\.json: missing"):
        files.read_json(path)
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(ArtefactError, match="larger than"):
        files.read_json(path)


@pytest.mark.parametrize("size", [0, 1, 2**20, 3 * 2**20 + 7])
def test_sha256_is_hashlibs_and_progress_adds_up(tmp_path: Path, size: int) -> None:
    """Read in pieces, the digest is that of the whole."""
    data = np.random.default_rng(0).bytes(size)
    (tmp_path / "x").write_bytes(data)
    seen: list[int] = []
    assert files.sha256_of(tmp_path / "x", seen.append) == hashlib.sha256(data).hexdigest()
    assert sum(seen) == size
    assert files.sha256_of(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_json_bytes_are_the_same_for_equal_values() -> None:
    """Manifests compare their own bytes, so rendering has to be stable."""
    value = {"b": 1, "a": [1.5, None, True]}
    assert files.json_bytes(json.loads(files.json_bytes(value))) == files.json_bytes(value)

"""A checkpoint is whole and unaltered, or refused with the reason; one good one always stays."""

import dataclasses
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from shared import files
from shared.checkpoint import (
    Checkpoint,
    Checkpoints,
    PendingCheckpoint,
    misfits,
    open_checkpoint,
)
from shared.errors import ArtefactError, ResourceError, UsageError
from shared.faults import corrupt, fail_nth, run_and_kill


def _fill(pending: PendingCheckpoint, value: float) -> None:
    """Write the files that a trainer writes."""
    weight = torch.full((3, 2), value)
    pending.write_tensors("model.safetensors", {"w": weight, "tied": weight})
    pending.write_state("state.pt", {"step": pending.step, "moments": [torch.ones(2) * value]})
    pending.write_state("rng-0.pt", torch.get_rng_state())
    pending.write_json("config.json", {"n_layer": 2})


def _save(checkpoints: Checkpoints, step: int, value: float = 0.0, **how: Any) -> Checkpoint:
    pending = checkpoints.begin(step)
    _fill(pending, value)
    return checkpoints.commit(pending, **how)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _rewrite_manifest(path: Path, **changes: Any) -> None:
    """Change a manifest and give it a fitting digest, as a hostile hand would."""
    content = json.loads((path / "MANIFEST.json").read_bytes())
    content |= changes
    del content["manifest_sha256"]
    content["manifest_sha256"] = hashlib.sha256(files.json_bytes(content)).hexdigest()
    (path / "MANIFEST.json").write_bytes(files.json_bytes(content))


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    """Return the checkpoints of an empty run."""
    return Checkpoints(tmp_path / "checkpoints")


# What is written is read


def test_what_is_saved_is_loaded(checkpoints: Checkpoints) -> None:
    """Tensors, state and JSON come back as they were, with the step."""
    _save(checkpoints, 7, 0.5)
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 7
    assert found.refused == ()
    torch.testing.assert_close(found.tensors()["w"], torch.full((3, 2), 0.5), rtol=0, atol=0)
    state = found.state()
    assert state["step"] == 7
    torch.testing.assert_close(state["moments"][0], torch.ones(2) * 0.5, rtol=0, atol=0)
    assert found.json() == {"n_layer": 2}
    assert found.state("rng-0.pt").dtype == torch.uint8
    assert _names(checkpoints.folder) == ["latest", "step-00000007"]
    assert (checkpoints.folder / "latest").read_text() == "step-00000007\n"


def test_no_checkpoint_yet_is_none(checkpoints: Checkpoints) -> None:
    """A run that was killed early starts anew, without an error."""
    assert checkpoints.newest() is None
    assert checkpoints.best() is None
    assert checkpoints.refused == []
    assert checkpoints.steps() == []
    checkpoints.discard_leftovers()


def test_tied_weights_stay_tied_and_are_stored_once(checkpoints: Checkpoints) -> None:
    """GPT-2's output layer is its embedding: one tensor, two names."""
    embedding = torch.randn(100, 10)
    pending = checkpoints.begin(1)
    pending.write_tensors(
        "model.safetensors", {"wte": embedding, "lm_head": embedding, "x.y": embedding}
    )
    found = checkpoints.commit(pending)
    loaded = found.tensors()
    assert loaded.keys() == {"wte", "lm_head", "x.y"}
    assert all(torch.equal(tensor, embedding) for tensor in loaded.values())
    assert loaded["wte"].data_ptr() == loaded["lm_head"].data_ptr()
    assert found.files["model.safetensors"].size < 1.1 * embedding.nbytes


def test_views_of_one_memory_come_back_each_with_its_values(checkpoints: Checkpoints) -> None:
    """Overlapping, transposed and empty tensors are not the same tensor."""
    base = torch.arange(16.0).view(4, 4)
    tensors = {
        "base": base,
        "row": base[1],
        "flat": base.view(16),
        "start": base[0],
        "transposed": base.t(),
        "bits": base.view(torch.int32),
        "empty": torch.zeros(0, 3),
        "empty_too": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
    }
    pending = checkpoints.begin(1)
    pending.write_tensors("model.safetensors", tensors)
    loaded = checkpoints.commit(pending).tensors()
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        torch.float16,
        torch.float64,
        torch.bool,
        torch.uint8,
        torch.int32,
        torch.int64,
    ],
)
def test_every_dtype_of_a_model_survives(checkpoints: Checkpoints, dtype: torch.dtype) -> None:
    """Masks are bool, counters int, weights perhaps bfloat16."""
    tensor = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    pending = checkpoints.begin(1)
    pending.write_tensors("model.safetensors", {"x": tensor})
    pending.write_state("state.pt", {"x": tensor})
    found = checkpoints.commit(pending)
    for loaded in (found.tensors()["x"], found.state()["x"]):
        assert loaded.dtype == dtype
        assert torch.equal(loaded, tensor)


def test_equal_weights_give_equal_files(tmp_path: Path) -> None:
    """A hash of the file is a hash of the weights, so runs can be compared by it."""
    weight = torch.randn(5, 5)
    tensors = dict.fromkeys("abcdefgh", weight) | {"z": torch.randn(3)}
    digests = set()
    for run in range(4):
        checkpoints = Checkpoints(tmp_path / str(run))
        pending = checkpoints.begin(1)
        pending.write_tensors("model.safetensors", tensors)
        digests.add(checkpoints.commit(pending).files["model.safetensors"].sha256)
    assert len(digests) == 1


def test_optimizer_state_with_live_momentum_resumes(checkpoints: Checkpoints) -> None:
    """What AdamW calls its state passes the check for plain data and loads again."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    pending = checkpoints.begin(1)
    pending.write_state("state.pt", optimizer.state_dict())
    again = torch.optim.AdamW(torch.nn.Linear(2, 2).parameters())
    again.load_state_dict(checkpoints.commit(pending).state())
    moments = [s["exp_avg"] for s in optimizer.state_dict()["state"].values()]
    loaded = [s["exp_avg"] for s in again.state_dict()["state"].values()]
    assert len(loaded) == 2
    assert all(torch.equal(a, b) for a, b in zip(moments, loaded, strict=True))


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"loss": np.float64(1.0)}, r"state\.pt\['loss'\] is a numpy\.float64"),
        ({"a": [1, {"rng": object()}]}, r"state\.pt\['a'\]\[1\]\['rng'\] is a builtins\.object"),
        ({Path("x"): 1}, r"state\.pt: a key is a pathlib"),
    ],
)
def test_what_could_not_be_loaded_again_is_refused_at_saving(
    checkpoints: Checkpoints, value: Any, where: str
) -> None:
    """A NumPy float pickles well and is then refused on resume, when it is too late."""
    pending = checkpoints.begin(1)
    with pytest.raises(TypeError, match=where):
        pending.write_state("state.pt", value)
    assert _names(checkpoints.folder) == []


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "MANIFEST.json", "", "x" * 300])
def test_a_checkpoint_holds_plainly_named_files_only(checkpoints: Checkpoints, name: str) -> None:
    """A name never leads out of the folder or to the manifest."""
    with pytest.raises(ValueError, match="cannot be the name"):
        checkpoints.begin(1).write_json(name, {})


def test_a_file_half_written_stops_the_commit(checkpoints: Checkpoints) -> None:
    """A torn file is never sealed."""
    pending = checkpoints.begin(3)
    files.temporary_path(pending.path / "state.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match="still being written"):
        checkpoints.commit(pending)
    assert _names(checkpoints.folder) == []


# What is damaged is refused


def test_a_random_byte_flip_anywhere_is_refused() -> None:
    """Any bit of any file, the manifest included."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = _save(Checkpoints(Path(folder)), 1)
        everything = sorted(checkpoint.path.iterdir())
        assert len(everything) == 5

        @given(st.data())
        @settings(max_examples=300, deadline=None)
        def flip(data: st.DataObject) -> None:
            path = data.draw(st.sampled_from(everything))
            before = path.read_bytes()
            after = bytearray(before)
            place = data.draw(st.integers(0, len(before) - 1))
            after[place] ^= data.draw(st.integers(1, 255))
            path.write_bytes(after)
            try:
                with pytest.raises(ArtefactError) as caught:
                    Checkpoint.open(checkpoint.path)
                # The name may be that of a file that the manifest, altered, no longer knows.
                assert str(checkpoint.path) in str(caught.value)
            finally:
                path.write_bytes(before)

        flip()
        Checkpoint.open(checkpoint.path)


@pytest.mark.parametrize("how", ["truncate", "flip", "swap", "extend"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "state.pt", "rng-0.pt", "config.json", "MANIFEST.json"]
)
def test_a_damaged_file_is_refused_by_name(
    checkpoints: Checkpoints, name: str, how: Literal["truncate", "flip", "swap", "extend"]
) -> None:
    """Exit code 4 and the file's name, for each kind of damage to each file."""
    path = _save(checkpoints, 1).path / name
    corrupt(path, how, seed=3)
    with pytest.raises(ArtefactError, match=name) as caught:
        Checkpoint.open(path.parent)
    assert caught.value.exit_code == 4


def test_a_missing_file_is_refused(checkpoints: Checkpoints) -> None:
    """Also the manifest itself: without it a folder is no checkpoint."""
    path = _save(checkpoints, 1).path
    for name in ("state.pt", "MANIFEST.json"):
        (path / name).unlink()
        with pytest.raises(ArtefactError, match=rf"{name}: missing"):
            Checkpoint.open(path)


def test_what_cannot_be_read_is_refused(checkpoints: Checkpoints) -> None:
    """A folder in place of the manifest, a file in place of the folder: exit code 4."""
    path = _save(checkpoints, 1).path
    with pytest.raises(ArtefactError, match=r"state\.pt: cannot be read"):
        Checkpoint.open(path / "state.pt")
    (path / "MANIFEST.json").unlink()
    (path / "MANIFEST.json").mkdir()
    with pytest.raises(ArtefactError, match="cannot be read"):
        Checkpoint.open(path)


def test_a_foreign_file_or_folder_is_refused(checkpoints: Checkpoints) -> None:
    """What the manifest does not know was not saved by us."""
    path = _save(checkpoints, 1).path
    (path / "extra.bin").write_bytes(b"")
    with pytest.raises(ArtefactError, match=r"extra\.bin: foreign"):
        Checkpoint.open(path)
    (path / "extra.bin").unlink()
    (path / "folder").mkdir()
    with pytest.raises(ArtefactError, match="folder: foreign"):
        Checkpoint.open(path)


def test_a_link_in_place_of_a_file_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Even to the same bytes: they lie outside, and may change."""
    path = _save(checkpoints, 1).path
    (path / "state.pt").rename(tmp_path / "elsewhere")
    (path / "state.pt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtefactError, match=r"state\.pt: not a plain file"):
        Checkpoint.open(path)


def test_a_newer_schema_is_refused_with_the_remedy(checkpoints: Checkpoints) -> None:
    """Guessing at a format of the future would load nonsense."""
    path = _save(checkpoints, 1).path
    _rewrite_manifest(path, schema=2, something_new=True)
    with pytest.raises(ArtefactError, match=r"version 2 is newer than 1, .* update it"):
        Checkpoint.open(path)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "a/b", "MANIFEST.json", "", "\ud800"]
)
def test_a_manifest_cannot_name_a_file_outside(
    checkpoints: Checkpoints, tmp_path: Path, name: str
) -> None:
    """The path is refused before it is opened, with a digest that fits."""
    path = _save(checkpoints, 1).path
    (path.parent / "outside").write_bytes(b"")
    listed = {name: {"size": 0, "sha256": "0" * 64}}
    # `\ud800` has no UTF-8 form, but an escaped form in JSON.
    text = json.dumps({"schema": 1, "step": 1, "files": listed, "manifest_sha256": "0" * 64})
    (path / "MANIFEST.json").write_text(text)
    with pytest.raises(ArtefactError, match="is not the name of a file beside it"):
        Checkpoint.open(path)


def test_absurd_sizes_and_counts_are_refused_without_reading(checkpoints: Checkpoints) -> None:
    """A claim is compared with what is there; nothing is allocated by it."""
    path = _save(checkpoints, 1).path
    listed = json.loads((path / "MANIFEST.json").read_bytes())["files"]
    listed["state.pt"]["size"] = 2**62
    _rewrite_manifest(path, files=listed)
    with pytest.raises(
        ArtefactError, match=rf"state\.pt: has \d+ bytes, the manifest says {2**62}"
    ):
        Checkpoint.open(path)
    many = {f"f{i}": {"size": 0, "sha256": "0" * 64} for i in range(10_001)}
    _rewrite_manifest(path, files=many)
    with pytest.raises(ArtefactError, match="at most 10000 files"):
        Checkpoint.open(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": None},
        {"schema": "1"},
        {"schema": 0},
        {"step": "1"},
        {"step": None},
        {"files": []},
        {"extra": 1},
        {"files": {"state.pt": {"size": -1, "sha256": "0" * 64}}},
        {"files": {"state.pt": {"size": "1", "sha256": "0" * 64}}},
        {"files": {"state.pt": {"size": 1, "sha256": "0"}}},
        {"files": {"state.pt": {"size": 1}}},
        {"files": {"state.pt": {"size": 1, "sha256": "0" * 64, "more": 1}}},
        {"files": {"state.pt": 1}},
    ],
    ids=str,
)
def test_a_manifest_of_another_shape_is_refused(
    checkpoints: Checkpoints, changes: dict[str, Any]
) -> None:
    """With a reason about the manifest, though its digest fits; never a KeyError."""
    path = _save(checkpoints, 1).path
    _rewrite_manifest(path, **changes)
    with pytest.raises(ArtefactError, match=r"MANIFEST\.json: (not a manifest|lacks|no size)"):
        Checkpoint.open(path)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"x"', "{}"])
def test_json_that_is_no_manifest_is_refused(checkpoints: Checkpoints, text: str) -> None:
    """Valid JSON of any type."""
    path = _save(checkpoints, 1).path
    (path / "MANIFEST.json").write_text(text)
    with pytest.raises(ArtefactError, match="not a manifest"):
        Checkpoint.open(path)


def test_a_folder_under_another_steps_name_is_refused(checkpoints: Checkpoints) -> None:
    """It would resume at the wrong step; under a name of the user's own it is fine."""
    path = _save(checkpoints, 1).path
    other = shutil.copytree(path, path.with_name("step-00000002"))
    with pytest.raises(ArtefactError, match="is of step 1, not of the folder"):
        Checkpoint.open(other)
    mine = shutil.copytree(path, path.with_name("my-best-model"))
    assert Checkpoint.open(mine).step == 1


def test_state_that_would_run_code_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """A file with a fitting digest can still be a hostile pickle; it is never unpickled."""

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    pending = checkpoints.begin(1)
    torch.save(Hostile(), pending.path / "state.pt")
    (pending.path / "model.safetensors").write_bytes(b"\xff" * 64)
    (pending.path / "rng-0.pt").write_bytes(b"not a pickle")
    found = checkpoints.commit(pending)
    with pytest.raises(ArtefactError, match=r"state\.pt: not the state we wrote"):
        found.state()
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ArtefactError, match=r"rng-0\.pt: not the state we wrote"):
        found.state("rng-0.pt")
    with pytest.raises(ArtefactError, match=r"model\.safetensors: not the tensors we wrote"):
        found.tensors()


@pytest.mark.parametrize("aliases", ["[1]", '{"a": "absent"}', "{", '{"a": []}'])
def test_tied_names_that_lead_nowhere_are_refused(checkpoints: Checkpoints, aliases: str) -> None:
    """The record of tied names is input like any other."""
    pending = checkpoints.begin(1)
    save_file({"w": torch.ones(2)}, pending.path / "model.safetensors", {"aliases": aliases})
    with pytest.raises(ArtefactError, match="not the tensors we wrote"):
        checkpoints.commit(pending).tensors()


def test_asking_for_an_absent_file_names_those_there_are(checkpoints: Checkpoints) -> None:
    """The message names what there is."""
    found = _save(checkpoints, 1)
    with pytest.raises(ArtefactError, match=r"no rng-3\.pt, only .*rng-0\.pt"):
        found.state("rng-3.pt")


# Which one to resume from


def test_newest_falls_back_to_an_older_verified_one_with_the_reason(
    checkpoints: Checkpoints,
) -> None:
    """Resume goes on from what is good, and can say what it passed over."""
    _save(checkpoints, 1)
    corrupt(_save(checkpoints, 2).path / "state.pt", "flip")
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 1
    assert len(found.refused) == 1
    assert "step-00000002" in found.refused[0]
    assert "state.pt: altered" in found.refused[0]
    assert checkpoints.refused == list(found.refused)
    corrupt(found.path / "config.json", "truncate")
    assert checkpoints.newest() is None
    assert len(checkpoints.refused) == 2


def test_newest_prefers_what_latest_names_and_else_goes_by_step_not_by_time(
    checkpoints: Checkpoints,
) -> None:
    """A clock set back must not turn the order around."""
    _save(checkpoints, 100)
    _save(checkpoints, 20)
    assert (checkpoints.folder / "latest").read_text() == "step-00000020\n"
    for path, seconds in (("step-00000100", 1000), ("step-00000020", 2000)):
        os.utime(checkpoints.folder / path, (seconds, seconds))
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 20
    for text in ("", "../step-00000020", "step-00000999", "\xff" * 300):
        (checkpoints.folder / "latest").write_text(text)
        found = checkpoints.newest()
        assert found is not None
        assert found.step == 100
    (checkpoints.folder / "latest").unlink()
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 100


def test_best_and_at_open_what_they_name(checkpoints: Checkpoints) -> None:
    """The best is marked apart; a step not there is a user's mistake, naming those there are."""
    _save(checkpoints, 1, best=True)
    _save(checkpoints, 2)
    best = checkpoints.best()
    assert best is not None
    assert best.step == 1
    assert checkpoints.at(2).step == 2
    assert checkpoints.steps() == [1, 2]
    with pytest.raises(UsageError, match="no checkpoint of step 3; there are: 1, 2"):
        checkpoints.at(3)
    corrupt(best.path / "state.pt", "extend")
    with pytest.raises(ArtefactError, match=r"state\.pt"):
        checkpoints.best()
    # A pointer that leads out of the folder points nowhere.
    shutil.copytree(checkpoints.folder / "step-00000002", checkpoints.folder.parent / "outside")
    (checkpoints.folder / "best").write_text("../outside")
    assert checkpoints.best() is None


def test_open_checkpoint_takes_a_run_its_checkpoints_or_one_of_them(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """Whatever a user points at, with a clear error where nothing is."""
    with pytest.raises(UsageError, match="no such folder"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(UsageError, match="holds no checkpoint yet"):
        open_checkpoint(tmp_path)
    first = _save(checkpoints, 1, best=True).path
    _save(checkpoints, 2)
    assert open_checkpoint(tmp_path).step == 2
    assert open_checkpoint(checkpoints.folder).step == 2
    assert open_checkpoint(first).step == 1
    assert open_checkpoint(tmp_path, best=True).step == 1
    (checkpoints.folder / "best").unlink()
    assert open_checkpoint(tmp_path, best=True).step == 2
    corrupt(checkpoints.folder / "step-00000002" / "state.pt", "flip")
    found = open_checkpoint(tmp_path)
    assert found.step == 1
    assert len(found.refused) == 1
    corrupt(first / "state.pt", "flip")
    with pytest.raises(ArtefactError, match=r"no checkpoint is intact: .*00002.*; .*00001"):
        open_checkpoint(tmp_path)
    with pytest.raises(ArtefactError, match=r"state\.pt: altered"):
        open_checkpoint(first)
    (first / "MANIFEST.json").unlink()
    with pytest.raises(ArtefactError, match=r"MANIFEST\.json: missing"):
        open_checkpoint(first)


# Retention


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    """And nothing else."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 4, 5):
        _save(checkpoints, step, best=step == 2)
    assert checkpoints.steps() == [2, 4, 5]
    _save(checkpoints, 6, best=True)
    assert checkpoints.steps() == [5, 6]
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)


def test_retention_never_deletes_the_newest_verified_one(tmp_path: Path) -> None:
    """With all newer ones damaged, the old good one stays, however many newer there are."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    _save(checkpoints, 1)
    for step in (2, 3, 4):
        shutil.copytree(tmp_path / "step-00000001", tmp_path / f"step-{step:08d}")
    (tmp_path / "latest").write_text("step-00000004\n")
    for fresh in (checkpoints, Checkpoints(tmp_path, keep=1)):
        fresh.prune()
        found = fresh.newest()
        assert found is not None
        assert found.step == 1


def test_a_damaged_checkpoint_does_not_count_among_those_kept(tmp_path: Path) -> None:
    """Damage after this process verified it is seen too."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    _save(checkpoints, 1)
    damaged = _save(checkpoints, 2)
    corrupt(damaged.path / "state.pt", "flip")
    _save(checkpoints, 3)
    assert checkpoints.steps() == [1, 2, 3]
    _save(checkpoints, 4)
    assert checkpoints.steps() == [3, 4]


def test_a_run_continued_from_an_earlier_step_keeps_its_own_past(tmp_path: Path) -> None:
    """Checkpoints of the future that was left are neither counted nor deleted."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    _save(checkpoints, 10)
    _save(checkpoints, 30)
    (tmp_path / "latest").write_text("step-00000010\n")
    _save(checkpoints, 20)
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 20
    assert checkpoints.steps() == [10, 20, 30]


def test_retention_verifies_an_untouched_checkpoint_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saving does not read all kept checkpoints again and again."""
    checkpoints = Checkpoints(tmp_path, keep=3)
    read: list[Path] = []
    sha256_of = files.sha256_of

    def counted(path: Path) -> str:
        read.append(path)
        return sha256_of(path)

    monkeypatch.setattr(files, "sha256_of", counted)
    for step in (1, 2, 3, 4):
        _save(checkpoints, step)
    assert len(read) == 4 * 4  # each file once, when it was sealed


# Faults while saving


def _error_of_saving(checkpoints: Checkpoints, step: int) -> ResourceError | None:
    try:
        _save(checkpoints, step, 2.0, best=True)
    except ResourceError as error:
        return error
    return None


@pytest.mark.parametrize("step", [2, 1], ids=["another step", "the same step"])
def test_a_full_disk_at_any_operation_leaves_a_verified_checkpoint(
    tmp_path: Path, step: int
) -> None:
    """Fail operation 1, 2, ... until a save goes through: exit 5, no leftovers, none lost."""
    n = 0
    while True:
        n += 1
        checkpoints = Checkpoints(tmp_path / str(n), keep=1)
        _save(checkpoints, 1, 1.0, best=True)
        before = _names(checkpoints.folder)
        with fail_nth(n) as operations:
            error = _error_of_saving(checkpoints, step)
        if error is None:
            break
        assert error.exit_code == 5
        assert "No space left" in str(error)
        found = Checkpoints(checkpoints.folder).newest()
        assert found is not None
        value = found.tensors()["w"][0, 0].item()
        assert (found.step, value) in ((1, 1.0), (step, 2.0))
        left = _names(checkpoints.folder)
        assert [name for name in left if name.endswith((".tmp", ".old"))] == []
        if ("rename", checkpoints.folder / f"step-{step:08d}") not in operations.seen:
            assert left == before
        _save(checkpoints, step, 2.0)  # with room again, all goes on
    assert operations.failed == 0
    assert n > 30
    assert _names(checkpoints.folder) == ["best", "latest", f"step-{step:08d}"]


def test_a_failing_save_removes_its_folder_at_once(checkpoints: Checkpoints) -> None:
    """A disk that stays full must not stay full of half a checkpoint."""
    pending = checkpoints.begin(1)
    with (
        fail_nth(2, kinds={"write"}, lasting=True),
        pytest.raises(ResourceError, match=r"state\.pt: No space left"),
    ):
        _fill(pending, 1.0)
    assert _names(checkpoints.folder) == []


@pytest.mark.parametrize("kind", ["tensors", "state"])
def test_a_disk_that_fills_up_midway_is_a_resource_error(
    checkpoints: Checkpoints, kind: str
) -> None:
    """A real refusal inside safetensors and torch, by a limit on the size of files."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    pending = checkpoints.begin(1)
    large = {"w": torch.zeros(100_000)}
    write = pending.write_tensors if kind == "tensors" else pending.write_state
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        with pytest.raises(ResourceError, match="File too large"):
            write("file", large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert _names(checkpoints.folder) == []


def test_discarding_leftovers_takes_half_written_pointers_along(checkpoints: Checkpoints) -> None:
    """A kill while `latest` was being replaced leaves its temporary file."""
    _save(checkpoints, 1)
    checkpoints.begin(2).write_json("config.json", {})
    files.temporary_path(checkpoints.folder / "latest").write_bytes(b"step-")
    checkpoints.discard_leftovers()
    assert _names(checkpoints.folder) == ["latest", "step-00000001"]


_SAVE = """
import sys
from pathlib import Path
import torch
from shared.checkpoint import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]), keep=1)
pending = checkpoints.begin(int(sys.argv[2]))
pending.write_tensors("model.safetensors", {"w": torch.full((3, 2), 2.0)})
pending.write_json("config.json", {})
checkpoints.commit(pending)
"""


@pytest.mark.parametrize("step", [2, 1], ids=["another step", "the same step"])
@pytest.mark.parametrize(
    ("point", "values"),
    [
        ("save:begin", {1.0}),
        ("save:before-manifest", {1.0}),
        ("save:before-rename", {1.0}),
        ("save:before-latest", {1.0, 2.0}),
        ("save:end", {2.0}),
    ],
)
def test_a_kill_at_any_point_of_a_save_leaves_the_previous_or_the_new_one(
    tmp_path: Path, point: str, values: set[float], step: int
) -> None:
    """Never a torn one, and what was left behind is cleaned up."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    _save(checkpoints, 1, 1.0)
    done = run_and_kill([sys.executable, "-c", _SAVE, str(tmp_path), str(step)], at=point)
    assert done.returncode == -signal.SIGKILL, done.stderr
    for _ in range(2):  # once as a reader finds it, once cleaned up
        found = checkpoints.newest()
        assert found is not None
        assert found.refused == ()
        assert found.tensors()["w"][0, 0].item() in values
        checkpoints.discard_leftovers()
    assert all(name in ("latest", "step-00000001", "step-00000002") for name in _names(tmp_path))
    _save(checkpoints, 3)
    assert checkpoints.steps() == [3]


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path: Path) -> None:
    """The old checkpoint of the step is found under its other name, and put back."""
    checkpoints = Checkpoints(tmp_path)
    path = _save(checkpoints, 1, 1.0).path
    path.rename(path.with_name("step-00000001.old"))
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 1
    assert checkpoints.steps() == [1]
    checkpoints.discard_leftovers()
    assert _names(tmp_path) == ["latest", "step-00000001"]
    # Killed after the second rename: the new one stays, unless it is damaged.
    for damaged in (False, True):
        shutil.copytree(path, path.with_name("step-00000001.old"))
        new = _fresh_copy(tmp_path, path)
        if damaged:
            corrupt(new / "state.pt", "flip")
        checkpoints.discard_leftovers()
        assert _names(tmp_path) == ["latest", "step-00000001"]
        value = Checkpoint.open(path).tensors()["w"][0, 0].item()
        assert value == 2.0


def _fresh_copy(tmp_path: Path, path: Path) -> Path:
    """Put a checkpoint of value 2 in place of `path`."""
    other = Checkpoints(tmp_path.with_name("other"))
    shutil.rmtree(path)
    return Path(shutil.copytree(_save(other, 1, 2.0).path, path))


def test_begin_wipes_what_a_killed_save_left(checkpoints: Checkpoints) -> None:
    """A file of the killed save must not end up in the new checkpoint."""
    checkpoints.begin(1).write_json("stale.json", {})
    found = _save(checkpoints, 1)
    assert "stale.json" not in found.files


def test_saving_a_step_again_replaces_it_even_when_it_is_damaged(checkpoints: Checkpoints) -> None:
    """After resuming from an older checkpoint a run comes past the damaged one."""
    _save(checkpoints, 1, 1.0)
    for value in (2.0, 3.0):
        corrupt(_save(checkpoints, 1, value).path / "state.pt", "flip")
    assert _save(checkpoints, 1, 4.0).tensors()["w"][0, 0].item() == 4.0
    assert _names(checkpoints.folder) == ["latest", "step-00000001"]


def test_a_checkpoint_cannot_be_changed_by_its_reader(checkpoints: Checkpoints) -> None:
    """It stands for what was verified."""
    found = _save(checkpoints, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.step = 2  # type: ignore[misc]


@pytest.mark.parametrize("step", [-1, 123456789])
def test_steps_of_any_size_have_a_name(checkpoints: Checkpoints, step: int) -> None:
    """Nine digits sort by number, not by text; a negative step is a mistake."""
    if step < 0:
        with pytest.raises(ValueError, match="negative"):
            checkpoints.begin(step)
        return
    _save(checkpoints, 99999999)
    _save(checkpoints, step)
    (checkpoints.folder / "latest").unlink()
    found = checkpoints.newest()
    assert found is not None
    assert found.step == step


def test_one_more_checkpoint_is_kept_when_asked(checkpoints: Checkpoints) -> None:
    """The one of step `also_keep`, beside the newest two and the best."""
    for step in range(1, 7):
        _save(checkpoints, step, best=step == 1, also_keep=2)
    assert checkpoints.steps() == [1, 2, 5, 6]
    assert checkpoints.best_step() == 1
    _save(checkpoints, 7)
    assert checkpoints.steps() == [1, 6, 7]


def test_the_newest_up_to_a_step(checkpoints: Checkpoints) -> None:
    """Later ones do not count, whatever `latest` says; nor are they reported as refused."""
    assert checkpoints.best_step() == -1
    for step in (3, 5):
        _save(checkpoints, step)
    corrupt(checkpoints.folder / "step-00000005" / "state.pt", "truncate")
    for last_step, expected in ((2, None), (3, 3), (4, 3)):
        found = checkpoints.newest(last_step)
        assert (found.step if found else None) == expected
        assert not checkpoints.refused


def test_what_does_not_fit_a_model_is_named() -> None:
    """Absent, unknown, of another shape; a buffer may have any, and what fits has no line."""
    model = torch.nn.Linear(2, 3)
    model.register_buffer("counts", torch.zeros(4))
    tensors = {**model.state_dict(), "counts": torch.zeros(9)}
    assert misfits(model, tensors) == []
    del tensors["bias"]
    tensors |= {"weight": torch.zeros(3, 5), "strange": torch.zeros(1)}
    assert misfits(model, tensors) == [
        "bias: absent",
        "strange: unknown",
        "weight: (3, 5), expected (3, 2)",
    ]

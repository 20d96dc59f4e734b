"""Model files: exact, whole or not there, and refused when anything in them is wrong."""

import errno
import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from micrograd import saving
from micrograd.errors import ArtefactError, ResourceError, UsageError
from micrograd.nn import MLP


@pytest.fixture
def model() -> MLP:
    """Return a network whose numbers have all their digits, and some odd ones."""
    model = MLP(2, [3, 2], activation="tanh", rng=random.Random(0))
    for p, x in zip(model.parameters(), (5e-324, -0.0, 1.7e308, 1 / 3, 1e22, -1e-7), strict=False):
        p.data = x
    return model


def sealed(body: dict[str, Any]) -> str:
    """Return a model file's text with the checksum that belongs to it."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps(body | {"sha256": digest})


def test_a_saved_model_comes_back_to_the_bit(model: MLP, tmp_path: Path) -> None:
    """Sizes, activation and every number; the file is JSON that names its format."""
    path = tmp_path / "model.json"
    model.save(path)
    again = MLP.load(str(path))
    assert repr(again) == repr(model)
    assert again.sizes == model.sizes == [2, 3, 2]
    hexes = [[p.data.hex() for p in m.parameters()] for m in (model, again)]
    assert hexes[0] == hexes[1]  # so that -0.0 is not 0.0
    again.save(tmp_path / "twice.json")
    assert (tmp_path / "twice.json").read_bytes() == path.read_bytes()
    assert json.loads(path.read_text())["format"] == "micrograd model 1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "twice.json"]


def test_a_plain_model_saves_the_same_file(tmp_path: Path) -> None:
    """How a network computes is no part of what it knows."""
    for fused in (True, False):
        MLP(2, [3, 1], fused=fused, rng=random.Random(1)).save(tmp_path / f"{fused}.json")
    assert (tmp_path / "True.json").read_bytes() == (tmp_path / "False.json").read_bytes()


def test_a_file_cut_anywhere_is_refused(model: MLP, tmp_path: Path) -> None:
    """With exit code 4 and a line that names the file; only the last newline may go."""
    path = tmp_path / "model.json"
    model.save(path)
    whole = path.read_bytes()
    for end in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:end])
        with pytest.raises(ArtefactError, match=r"model.json is torn or no JSON") as caught:
            MLP.load(path)
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)


def test_a_file_with_a_digit_changed_is_refused(model: MLP, tmp_path: Path) -> None:
    """Wherever that is, the checksum tells."""
    path = tmp_path / "model.json"
    model.save(path)
    text = path.read_text()
    places = [i for i, c in enumerate(text) if c.isdigit()]
    for i in places[::9]:
        path.write_text(text[:i] + str((int(text[i]) + 1) % 10) + text[i + 1 :])
        with pytest.raises(ArtefactError, match=r"altered|reads 'micrograd model 1'|torn|no JSON"):
            MLP.load(path)


GOOD: dict[str, Any] = {
    "format": "micrograd model 1",
    "sizes": [2, 1],
    "activation": "relu",
    "state": {"layers.0.neurons.0": [1.0, 2.0, 3.0]},
}


def test_the_smallest_file_that_loads(tmp_path: Path) -> None:
    """What the next test breaks is right before."""
    (tmp_path / "m.json").write_text(sealed(GOOD))
    assert MLP.load(tmp_path / "m.json")([10.0, 1.0]).data == 15.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "micrograd model 2"}, "is 'micrograd model 2'; this program reads 'microgr"),
        ({"sizes": [2, 2]}, "holds no MLP: its numbers are not those"),
        ({"sizes": [3, 1]}, "its numbers are not those of layers of sizes"),
        ({"sizes": [2]}, "its numbers are not those"),
        ({"sizes": []}, "holds no MLP"),
        ({"sizes": 5}, "holds no MLP"),
        ({"sizes": {"a": 1}}, "holds no MLP"),
        ({"sizes": [2, -1]}, "-1 is no size of a layer"),
        ({"sizes": [2, "1"]}, "'1' is no size of a layer"),
        ({"activation": "gelu"}, "activation='gelu' must be one of"),
        ({"activation": ["relu"]}, "holds no MLP"),
        ({"state": []}, "holds no MLP"),
        ({"sizes": [10**9, 10**9]}, "its numbers are not those"),  # and no memory is asked for
        ({"state": {}}, "its numbers are not those"),
        ({"state": {"layers.0.neurons.0": 5}}, "holds no MLP"),
        ({"state": {"layers.0.neurons.0": [1.0, 2.0, "3"]}}, "'3' is of type str"),
        ({"state": {"layers.0.neurons.0": [1.0, 2.0, None]}}, "of type NoneType"),
        ({"state": {"layers.0.neurons.0": [1.0, 2.0, 10**400]}}, "too large for a float"),
    ],
)
def test_a_file_with_a_right_checksum_and_wrong_content_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """As made by another program: one line that says what is wrong, exit code 4."""
    path = tmp_path / "m.json"
    path.write_text(sealed(GOOD | change))
    with pytest.raises(ArtefactError, match=message) as caught:
        MLP.load(path)
    assert caught.value.exit_code == 4
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'["format"]', "is no micrograd model"),
        (b"{}", "is no micrograd model"),
        (b"\xff\xfe", "torn or no JSON"),
        (b"[" * 100_000, "torn or no JSON"),
        (b'{"format": NaN}', "NaN is no number"),
        (json.dumps(GOOD).encode(), "its checksum is another"),
        (sealed(GOOD | {"state": {"a": [1e308]}}).replace("1e+308", "1e999").encode(), "altered"),
    ],
)
def test_what_is_no_model_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    """Other JSON, other bytes, numbers that are none, no checksum."""
    (tmp_path / "m.json").write_bytes(content)
    with pytest.raises(ArtefactError, match=message):
        MLP.load(tmp_path / "m.json")


def test_a_huge_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its size, before it takes memory."""
    monkeypatch.setattr(saving, "MAX_FILE_BYTES", 100)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("read"))
    (tmp_path / "m.json").write_text(sealed(GOOD))
    with pytest.raises(ArtefactError, match="has over 100 bytes"):
        MLP.load(tmp_path / "m.json")


def test_a_file_that_is_not_there_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    """Exit code 2; so is a folder."""
    for path, reason in ((tmp_path / "none.json", "No such file"), (tmp_path, "directory")):
        with pytest.raises(UsageError, match=f"cannot be read: .*{reason}") as caught:
            MLP.load(path)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file(
    call: str, model: MLP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 5, nothing else left in the folder."""
    path = tmp_path / "model.json"
    model.save(path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os if call == "fsync" else Path, call, fail)
    with pytest.raises(ResourceError, match=r"model.json cannot be written: No space") as caught:
        MLP(2, [1]).save(path)
    assert caught.value.exit_code == 5
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_is_written_fully_before_it_gets_its_name(
    model: MLP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Synced, renamed, and the folder synced, in this order."""
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def sync(handle: int) -> None:
        is_file = bool(events) is False
        events.append("file" if is_file else "folder")
        fsync(handle)

    def rename(self: Path, target: Path) -> Path:
        assert json.loads(self.read_text())["sizes"] == [2, 3, 2]
        assert self.parent == target.parent
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    model.save(tmp_path / "model.json")
    assert events == ["file", "rename", "folder"]


def test_a_missing_folder_is_named(model: MLP, tmp_path: Path) -> None:
    """It is not made silently."""
    with pytest.raises(ResourceError, match=r"none/model.json cannot be written: No such file"):
        model.save(tmp_path / "none" / "model.json")

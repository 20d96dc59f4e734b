import errno
import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from shared import metrics
from shared.errors import ArtefactError, ResourceError, UsageError
from shared.faults import fail_nth
from shared.metrics import Console, JsonLines, Metrics, TensorBoard, Wandb, read_metrics


class Terminal(StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Claim to be one."""
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Return a terminal of 120 columns."""
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def test_each_record_is_one_json_object_on_its_own_line(tmp_path: Path) -> None:
    """Step and kind come first, and a record is in the file as soon as it is logged."""
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.log(3, {"loss": 2.5, "n": 7})
    sink.log(4, {"val_loss": 2.25}, "val")
    expected = (
        '{"step": 3, "kind": "train", "loss": 2.5, "n": 7}\n'
        '{"step": 4, "kind": "val", "val_loss": 2.25}\n'
    )
    assert (tmp_path / "metrics.jsonl").read_text() == expected
    sink.close()


def test_numbers_that_json_lacks_survive(tmp_path: Path) -> None:
    """NaN and infinities are strings in the file, which stays valid JSON, and floats again."""
    path = tmp_path / "metrics.jsonl"
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5}
    sink = JsonLines(path)
    sink.log(1, values, "skip")
    sink.close()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads(path.read_text(), parse_constant=refuse)
    assert record == {"step": 1, "kind": "skip", "a": "nan", "b": "inf", "c": "-inf", "d": 1.5}
    (read,) = read_metrics(path)
    assert math.isnan(read.pop("a"))
    assert read == {"step": 1, "kind": "skip", "b": math.inf, "c": -math.inf, "d": 1.5}


def test_tensors_and_numpy_scalars_are_numbers(tmp_path: Path) -> None:
    """What `float` takes can be logged, finite or not."""
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.log(1, {"a": torch.tensor(0.5), "b": np.float32(0.25)})  # type: ignore[dict-item]
    sink.log(2, {"a": torch.tensor(math.nan), "b": np.float32(0.25)})  # type: ignore[dict-item]
    sink.close()
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert (first["a"], first["b"]) == (0.5, 0.25)
    assert math.isnan(second["a"])
    assert second["b"] == 0.25


def test_a_torn_last_line_is_cut_off_when_writing_goes_on(tmp_path: Path) -> None:
    """A record after a torn one starts on a line of its own; reading skips a torn one."""
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 1, "kind": "train"}\n'
    path.write_bytes(whole + b'{"step": 2, "ki')
    assert read_metrics(path) == [{"step": 1, "kind": "train"}]
    sink = JsonLines(path)
    assert path.read_bytes() == whole
    sink.log(2, {})
    sink.close()
    assert path.read_bytes() == whole + b'{"step": 2, "kind": "train"}\n'


def test_resuming_drops_later_records_and_keeps_the_rest_to_the_byte(tmp_path: Path) -> None:
    """Records after the resumed step go, whatever their order; odd spacing stays as it is."""
    path = tmp_path / "metrics.jsonl"
    kept = b'{"step":1,   "kind":"train"}\n', b'{"step": 2, "loss": 1.50}\n'
    path.write_bytes(kept[0] + b'{"step": 3}\n' + kept[1] + b'{"step": 4}\n{"step"')
    sink = JsonLines(path)
    sink.truncate_after(2)
    assert path.read_bytes() == b"".join(kept)
    sink.log(3, {})
    sink.close()
    assert path.read_bytes() == b"".join(kept) + b'{"step": 3, "kind": "train"}\n'


def test_resuming_drops_what_is_made_again_at_the_step_itself(tmp_path: Path) -> None:
    """An evaluation that no checkpoint remembers is logged once, not twice."""
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.log(1, {"val_loss": 3.0}, kind="val")
    sink.log(2, {"loss": 2.0})
    sink.log(2, {"val_loss": 2.5}, kind="val")
    sink.truncate_after(2, remade=("val",))
    sink.close()
    kept = [(record["step"], record["kind"]) for record in read_metrics(sink.path)]
    assert kept == [(1, "val"), (2, "train")]


def test_resuming_at_the_last_record_does_not_rewrite_the_file(tmp_path: Path) -> None:
    """Nothing to drop means no new file."""
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path)
    sink.log(1, {})
    before = path.stat().st_ino
    sink.truncate_after(1)
    assert path.stat().st_ino == before
    sink.truncate_after(0)
    assert path.stat().st_ino != before
    sink.close()


@pytest.mark.parametrize("line", [b"{torn", b"[1]", b"7", b'{"loss": 1}', b'{"step": "1"}'])
def test_a_line_that_is_no_record_is_named(line: bytes, tmp_path: Path) -> None:
    """Damage before the last line is an error with file and line, as no kill can cause it."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(ArtefactError, match=r"metrics\.jsonl:2: not a record of metrics; remove"):
        read_metrics(path)


def test_a_full_disk_is_reported_by_name(tmp_path: Path) -> None:
    """A record that cannot be written is a ResourceError that names the file."""
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.log(1, {})
    with fail_nth(1, kinds={"write"}), pytest.raises(ResourceError, match=r"metrics\.jsonl: No sp"):
        sink.log(2, {})
    sink.close()
    assert [record["step"] for record in read_metrics(sink.path)] == [1]


def test_a_record_that_is_written_in_pieces_is_whole(tmp_path: Path) -> None:
    """The system may take part of a write; the rest follows."""
    sink = JsonLines(tmp_path / "metrics.jsonl")
    file = sink._file
    sink._file = SimpleNamespace(write=lambda data: file.write(data[:5]))
    sink.log(1, {"loss": 2.0})
    sink._file = file
    sink.close()
    assert read_metrics(sink.path) == [{"step": 1, "kind": "train", "loss": 2.0}]


def test_a_killed_process_loses_no_record(tmp_path: Path) -> None:
    """What was logged before SIGKILL is in the file."""
    path = tmp_path / "metrics.jsonl"
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom shared.metrics import JsonLines\n"
        "sink = JsonLines(Path(sys.argv[1]))\n"
        "for step in range(100): sink.log(step, {'loss': 1.0})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [record["step"] for record in read_metrics(path)] == list(range(100))


def test_without_a_terminal_each_record_is_a_plain_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines go to stderr, with the time left at the speed so far; stdout stays clean."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    sink = Console(total_steps=2000, first_step=100)
    sink.log(100, {"loss": 3.0})
    now += 30
    sink.log(200, {"loss": 2.5, "lr": 3e-4, "tok_per_sec": 37312.6, "[x]": 0.0})
    sink.log(200, {"val_loss": 2.25}, "val")
    now += 4770
    sink.log(300, {"loss": 2.0})
    sink.close()
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "step   100/2,000  loss 3.0000  eta -",
        "step   200/2,000  loss 2.5000  lr 3.00e-04  tok_per_sec 37,313  [x] 0  eta 9:00",
        "step   200/2,000  val: val_loss 2.2500",
        "step   300/2,000  loss 2.0000  eta 11:20:00",
    ]
    assert captured.out == ""


def test_in_a_terminal_a_bar_moves_and_evaluations_are_lines_above(terminal: Terminal) -> None:
    """The bar shows step, losses and speed; a record of another kind scrolls by."""
    sink = Console(total_steps=200, stream=terminal)
    sink.log(100, {"loss": 2.5, "tok_per_sec": 37312.6})
    sink.log(100, {"val_loss": 2.25}, "val")
    sink.print("[saved]")
    sink.log(200, {"loss": 2.0, "tok_per_sec": 400.0})
    sink.close()
    shown = terminal.getvalue()
    assert "step 100/200  val: val_loss 2.2500" in shown
    assert "[saved]" in shown
    assert "loss 2.5000  eta" not in shown
    last = " ".join(part for part in _without_escapes(shown).splitlines()[-1].split())
    assert last.startswith("step 200/200 ")
    assert "loss 2.0000 val 2.2500 400 tok/s" in last


def test_the_bar_leaves_piped_results_alone(
    terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed while the bar is up reaches stdout, not the terminal."""
    sink = Console(total_steps=200, stream=terminal)
    print("a result")
    sink.close()
    assert capsys.readouterr().out == "a result\n"
    assert "a result" not in terminal.getvalue()


def test_the_bar_is_drawn_now_and_then(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand records within one tick of the clock are one drawing."""
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    sink = Console(total_steps=2000, stream=terminal)
    sink.log(0, {"loss": 1.0})
    size = len(terminal.getvalue())
    for step in range(1000):
        sink.log(step, {"loss": 1.0})
    assert len(terminal.getvalue()) == size
    sink.close()


def test_a_dumb_terminal_gets_plain_lines(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a bar cannot move, it is not drawn."""
    monkeypatch.setenv("TERM", "dumb")
    sink = Console(total_steps=200, stream=terminal)
    sink.log(0, {"loss": 1.0})
    sink.close()
    assert terminal.getvalue() == "step   0/200  loss 1.0000  eta -\n"


def test_tensorboard_shows_every_value_under_its_kind(tmp_path: Path) -> None:
    """Each value is a scalar named kind/name, at its step."""
    sink = TensorBoard(tmp_path / "tensorboard")
    assert list(tmp_path.iterdir()) == []  # a run that never logs leaves nothing behind
    sink.log(10, {"loss": 2.5, "lr": 0.125})
    sink.log(20, {"loss": 1.5}, "val")
    sink.close()
    sink.close()
    scalars = _tensorboard_scalars(tmp_path / "tensorboard")
    assert scalars == {
        "train/loss": [(10, 2.5)],
        "train/lr": [(10, 0.125)],
        "val/loss": [(20, 1.5)],
    }


def test_tensorboard_hides_what_a_resumed_run_repeats(tmp_path: Path) -> None:
    """Records from `purge_step` on are those of the resumed run."""
    for first, purge_step, value in ((1, None, 1.0), (3, 3, 2.0)):
        sink = TensorBoard(tmp_path, purge_step)
        for step in range(first, 5):
            sink.log(step, {"loss": value})
        sink.close()
    scalars = _tensorboard_scalars(tmp_path)
    assert scalars == {"train/loss": [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]}


def test_tensorboard_costs_nothing_before_the_first_record() -> None:
    """Making the sink imports nothing; `--help` and short runs stay quick."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom shared.metrics import TensorBoard\n"
        "TensorBoard(Path('unused'))\nprint('tensorboard' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


class FakeWandb:
    """Stands in for the wandb module and the run that its `init` returns."""

    def __init__(self, api_key: str | None = None, error: Exception | None = None) -> None:
        self.api = SimpleNamespace(api_key=api_key)
        self.error = error
        self.calls: list[tuple[str, Any]] = []

    def init(self, mode: str, **settings: object) -> "FakeWandb":
        """Start a run; fail once where told to."""
        self.calls.append((f"init {mode}", settings))
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take values."""
        self.calls.append((f"log {step}", values))

    def finish(self) -> None:
        """End the run."""
        self.calls.append(("finish", None))


def use_wandb(monkeypatch: pytest.MonkeyPatch, fake: FakeWandb | None) -> None:
    """Make `import wandb` give the fake, or fail."""
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)


def test_wandb_without_a_login_works_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked for a key; the run is kept in the folder."""
    fake = FakeWandb()
    use_wandb(monkeypatch, fake)
    sink = Wandb(tmp_path, "gpt2", {"seed": 1}, name="first")
    sink.log(7, {"loss": 2.0}, "val")
    sink.close()
    settings = {"project": "gpt2", "name": "first", "dir": str(tmp_path), "config": {"seed": 1}}
    assert fake.calls == [
        ("init offline", settings),
        ("log 7", {"val/loss": 2.0}),
        ("finish", None),
    ]


def test_wandb_mode_follows_login_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user with a key is online, unless `WANDB_MODE` says otherwise."""
    fake = FakeWandb(api_key="key")
    use_wandb(monkeypatch, fake)
    Wandb(tmp_path, "gpt2", {})
    monkeypatch.setenv("WANDB_MODE", "disabled")
    Wandb(tmp_path, "gpt2", {})
    assert [call for call, _ in fake.calls] == ["init online", "init disabled"]


def test_wandb_goes_offline_when_the_server_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing network costs a line, not the run; a failure offline is an error."""
    fake = FakeWandb(api_key="key", error=ConnectionError("no route"))
    use_wandb(monkeypatch, fake)
    Wandb(tmp_path, "gpt2", {})
    assert [call for call, _ in fake.calls] == ["init online", "init offline"]
    assert capsys.readouterr().err == "wandb: ConnectionError; going on offline\n"
    use_wandb(monkeypatch, FakeWandb(error=OSError(errno.EROFS, "read-only")))
    with pytest.raises(OSError, match="read-only"):
        Wandb(tmp_path, "gpt2", {})


def test_wandb_that_is_not_installed_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how to get it and how to do without."""
    use_wandb(monkeypatch, None)
    with pytest.raises(UsageError, match=r"pip install wandb.*leave out --wandb"):
        Wandb(tmp_path, "gpt2", {})


class Recorder:
    """A sink that keeps what it gets, and can fail to close."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.records: list[tuple[int, Mapping[str, float], str]] = []
        self.closed = 0

    def log(self, step: int, values: Mapping[str, float], kind: str = "train") -> None:
        """Keep a record."""
        self.records.append((step, values, kind))

    def close(self) -> None:
        """Count, and fail where told to."""
        self.closed += 1
        if self.error is not None:
            raise self.error


def test_metrics_reach_every_sink() -> None:
    """All sinks get each record, and are closed once at the end of the block."""
    sinks = [Recorder(), Recorder()]
    with Metrics(sinks) as sent:
        sent.log(1, {"loss": 2.0})
        sent.log(2, {"loss": 1.0}, "val")
    assert [sink.closed for sink in sinks] == [1, 1]
    sent.close()
    for sink in sinks:
        assert sink.records == [(1, {"loss": 2.0}, "train"), (2, {"loss": 1.0}, "val")]
        assert sink.closed == 1


def test_a_sink_that_fails_to_close_does_not_keep_others_open() -> None:
    """All are closed, and the failure is not lost."""
    sinks = [Recorder(ResourceError("full")), Recorder(), Recorder(ResourceError("full"))]
    with pytest.raises(ResourceError, match="full"):
        Metrics(sinks).close()
    assert [sink.closed for sink in sinks] == [1, 1, 1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12, "12"),
        (37300, "37,300"),
        (37300.4, "37,300"),
        (3.21044, "3.2104"),
        (-0.5, "-0.5000"),
        (3e-4, "3.00e-04"),
        (0.0, "0"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_numbers_are_written_as_a_person_would(value: float, text: str) -> None:
    """Counts whole, losses with four decimals, small rates with an exponent."""
    assert metrics.format_value(value) == text


def _tensorboard_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read what TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def _without_escapes(text: str) -> str:
    """Remove colours and cursor moves; a line that was cleared starts anew."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.replace("\x1b[2K", "\n"))

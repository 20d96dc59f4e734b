"""What training survives: rows 22 to 31 of the project's list of faults, with whole processes.

A run that was not disturbed is made with the real command; the disturbed ones are forked from a
process that has the imports done (`programs/server.py`), or run under the real torchrun.
"""

import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt2.data import corpus_folder, load_corpus
from gpt2.train import main, resumed
from gpt2.verify_data import main as verify_data
from minbpe import RegexTokenizer
from shared import cli, files
from shared.checkpoint import open_checkpoint
from shared.datasets import resolve
from shared.faults import corrupt, run_and_kill
from shared.metrics import read_metrics
from shared.tokens import HEADER_BYTES, header_bytes

PROGRAMS = Path(__file__).parent / "programs"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
STEPS = 24
VOCAB = 280
SHAPE = ("--vocab-size", VOCAB, "--block-size", 16, "--n-layer", 1, "--n-head", 2, "--n-embd", 16)
EVERY = ("--eval-every", 8, "--checkpoint-every", 6, "--log-every", 1, "--eval-batch-size", 4)
CPU = ("--device", "cpu", "--threads", 1, "--precision", "fp32")
TINY = (*SHAPE, *EVERY, *CPU, "--max-steps", STEPS, "--sample-tokens", 5)
ONE = (*TINY, "--batch-size", 4, "--dropout", 0.1)  # dropout: the random state matters too
TWO = (*TINY, "--batch-size", 2, "--dropout", 0)
TIMED = {"step_ms", "tok_per_sec", "mfu"}
RESUME = "--resume"
Torchrun = Callable[..., subprocess.CompletedProcess[str]]


@dataclass
class Lab:
    """A text, a cache of its own, and the processes that train on it."""

    folder: Path
    server: subprocess.Popen[str]
    started: int = 0

    @property
    def text(self) -> Path:
        """The text."""
        return self.folder / "kings.txt"

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request to the server and return its answer."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        answer: dict[str, Any] = json.loads(self.server.stdout.readline())
        return answer

    def start(self, out: Path, *flags: object, **env: object) -> "Started":
        """Start training in `out`; `env` orders faults."""
        self.started += 1
        log = self.folder / f"{self.started}.log"
        argv = [str(word) for word in ("--data", self.text, "--out", out, *flags)]
        words = {name: str(value) for name, value in env.items()}
        pid = self.ask({"argv": argv, "env": words, "log": str(log)})["pid"]
        return Started(self, pid, log)

    def run(
        self, out: Path, *flags: object, at: str = "", signum: str = "SIGKILL", **env: object
    ) -> "Started":
        """Train in `out` to the end, with a signal at a kill point."""
        orders = {"MLE_KILL_AT": at, "MLE_KILL_SIGNAL": signum} if at else {}
        started = self.start(out, *flags, **orders, **env)
        started.wait()
        return started


@dataclass
class Started:
    """A process that trains, or has."""

    lab: Lab
    pid: int
    log: Path
    code: int | None = None

    @property
    def output(self) -> str:
        """All that it has printed."""
        return self.log.read_text()

    def until(self, text: str) -> None:
        """Wait until it has printed `text`."""
        end = time.monotonic() + 120
        while not (self.log.exists() and text in self.output):
            assert time.monotonic() < end, f"{text!r} did not come: {self.output}"
            time.sleep(0.01)

    def send(self, signum: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, signum)

    def wait(self) -> int:
        """Wait for its end and return its code."""
        if self.code is None:
            self.code = int(self.lab.ask({"wait": self.pid})["code"])
        return self.code


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Return the laboratory of this file; everything in it uses a cache of its own."""
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLE_CACHE", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("MPLBACKEND", "agg")
        server = subprocess.Popen(
            [sys.executable, str(PROGRAMS / "server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        lab = Lab(folder, server)
        words = ["the", "king", "and", "queen", "of", "a", "throne", "said", "to", "his", "lord"]
        rng = random.Random(0)
        lines = (" ".join(rng.choice(words) for _ in range(8)) for _ in range(150))
        lab.text.write_text("\n".join(lines))
        yield lab
        assert server.stdin is not None
        server.stdin.close()
        server.wait()


@pytest.fixture(scope="module")
def torchrun(lab: Lab) -> Torchrun:
    """Return a function that trains under torchrun with two processes."""

    def run(
        out: Path, *flags: object, program: str = "", restarts: int = 0, **env: object
    ) -> subprocess.CompletedProcess[str]:
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        launcher += [f"--max-restarts={restarts}", "--monitor-interval=0.1"]
        what = [str(PROGRAMS / program)] if program else ["-m", "gpt2.train"]
        words = [str(word) for word in ("--data", lab.text, "--out", out, *flags)]
        return run_and_kill(
            [sys.executable, "-m", *launcher, *what, *words],
            env={name: str(value) for name, value in env.items()},
            timeout=200,
        )

    return run


@dataclass
class Outcome:
    """What a run ended with: the digest of its last weights, and all metrics but the timed."""

    step: int
    weights: str
    metrics: list[dict[str, Any]]

    @classmethod
    def of(cls, folder: Path) -> "Outcome":
        """Read it off a run folder."""
        last = max(folder.glob("checkpoints/step-*"))
        lines = read_metrics(folder / "metrics.jsonl")
        return cls(
            open_checkpoint(last).step,
            files.sha256_of(last / "model.safetensors"),
            [{k: v for k, v in line.items() if k not in TIMED} for line in lines],
        )


@pytest.fixture(scope="module")
def straight(lab: Lab) -> Outcome:
    """Return the outcome of the real command, undisturbed."""
    words = ["--data", str(lab.text), "--out", str(lab.folder / "straight"), *map(str, ONE)]
    ended = run_and_kill([sys.executable, "-m", "gpt2.train", *words])
    assert ended.returncode == 0, ended.stderr
    outcome = Outcome.of(lab.folder / "straight")
    kinds = [record["kind"] for record in outcome.metrics]
    assert (kinds.count("train"), kinds.count("val"), outcome.step) == (STEPS, 3, STEPS)
    return outcome


@pytest.fixture(scope="module")
def pair(lab: Lab) -> Outcome:
    """Return the outcome of two undisturbed processes, started as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2}
    world |= {"LOCAL_WORLD_SIZE": 2}
    ranks = [
        lab.start(lab.folder / "pair", *TWO, **world, RANK=rank, LOCAL_RANK=rank)
        for rank in range(2)
    ]
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].output + ranks[1].output
    return Outcome.of(lab.folder / "pair")


# -- 22 and 26: tokens ---------------------------------------------------------------------------


@pytest.fixture
def tokens(lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the folder of the text's tokens, in a cache of this test alone."""
    monkeypatch.setenv("MLE_CACHE", str(tmp_path / "cache"))
    load_corpus(resolve(lab.text), VOCAB)
    return corpus_folder(resolve(lab.text), VOCAB)


def execute(lab: Lab, out: Path) -> int:
    """Run the training command in this process."""
    words = [str(word) for word in ("--data", lab.text, "--out", out, *ONE)]
    return cli.execute(main, words, "python -m gpt2.train", resumed)


def test_case_22_tokens_of_another_tokenizer_are_refused(
    lab: Lab, tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With another tokenizer beside the tokens: exit 4 with both digests, before a step."""
    other = RegexTokenizer()
    other.train("another text altogether " * 9, VOCAB - 20)
    other.save(str(tokens / "tokenizer"))
    assert execute(lab, tmp_path / "run") == 4
    error = capsys.readouterr().err
    assert "train.json" in error
    assert other.digest()[:12] in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def truncate(shard: Path) -> None:
    """Lose the end."""
    corrupt(shard, "truncate")


def widen(shard: Path) -> None:
    """Claim another type of numbers in the header."""
    head, ids = shard.read_bytes()[:HEADER_BYTES], shard.read_bytes()[HEADER_BYTES:]
    fields = json.loads(head.partition(b"\n")[2])
    shard.write_bytes(header_bytes({**fields, "dtype": "uint32"}) + ids)


def exceed(shard: Path) -> None:
    """Hold an id beyond the vocabulary, with all digests right."""
    head, ids = shard.read_bytes()[:HEADER_BYTES], shard.read_bytes()[HEADER_BYTES:]
    changed = np.frombuffer(ids, dtype="<u2").copy()
    changed[5] = VOCAB
    before = json.loads(head.partition(b"\n")[2])
    sha256 = hashlib.sha256(changed.tobytes()).hexdigest()
    shard.write_bytes(header_bytes({**before, "sha256": sha256}) + changed.tobytes())
    index = shard.with_name(shard.name.partition("-")[0] + ".json")
    index.write_text(index.read_text().replace(before["sha256"], sha256))


def remove(shard: Path) -> None:
    """Lose it."""
    shard.unlink()


DAMAGES: dict[Callable[[Path], None], str] = {
    truncate: "truncated",
    widen: "wrong dtype",
    exceed: "outside the voc",
    remove: "missing",
}


@pytest.mark.parametrize("damage", list(DAMAGES), ids=lambda damage: str(damage.__name__))
@pytest.mark.parametrize("part", ["train", "validation"])
def test_case_26_a_damaged_shard_is_refused_by_name_before_training(
    damage: Callable[[Path], None],
    part: str,
    lab: Lab,
    tokens: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line with the shard and the reason, exit 4, and no step was made."""
    damage(tokens / f"{part}-00000.tokens")
    assert execute(lab, tmp_path / "run") == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{part}-00000.tokens" in error
    assert DAMAGES[damage] in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_case_26_verify_data_finds_all_damage_in_one_pass(
    lab: Lab, tokens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both shards are named, each with its own reason; exit 4."""
    truncate(tokens / "train-00000.tokens")
    exceed(tokens / "validation-00000.tokens")
    words = ["--data", str(lab.text), "--vocab-size", str(VOCAB)]
    assert cli.execute(verify_data, words) == 4
    out = capsys.readouterr().out
    assert re.search("train-00000.tokens: .*truncated", out)
    assert re.search("validation-00000.tokens: .*outside the vocabulary", out)


# -- 23: kills -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_case_23_a_run_killed_everywhere_ends_with_the_same_bits(
    lab: Lab, straight: Outcome, tmp_path: Path
) -> None:
    """SIGKILL in steps, evaluations and at each stage of a save; the end is that of no kill."""
    out = tmp_path / "run"
    resume: list[str] = []
    points = ["step:3", "save:begin", "save:before-rename", "step:2", "save:before-latest"]
    points += ["evaluation:3", "save:end:2", "evaluation:2", "save:before-rename:2", "step:4"]
    for point in points:
        killed = lab.run(out, *ONE, *resume, at=point)
        assert killed.code == -signal.SIGKILL, killed.output
        resume = [RESUME]
    assert 6 < open_checkpoint(out).step < STEPS
    ended = lab.run(out, RESUME)
    assert ended.code == 0, ended.output
    assert Outcome.of(out) == straight
    assert (out / "result.json").exists()


@pytest.mark.slow
def test_case_23_the_script_of_random_kills_ends_with_the_same_bits(
    lab: Lab, tmp_path: Path
) -> None:
    """Five kills of the hundred that the benchmark makes of the real command."""
    words = ["random_kills.py", "--kills", "5", "--seed", "1", "--out", str(tmp_path)]
    ended = run_and_kill([sys.executable, str(BENCHMARKS / words[0]), *words[1:]], timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "random_kills.json").read_text())
    assert sum(found["landed"].values()) == 5
    assert found["lives_from_a_checkpoint"] > 0
    assert (found["same_weights"], found["same_metrics"], found["same_result"]) == (True,) * 3
    assert found["metrics_compared"] > found["steps"]
    assert "weights: the same" in (tmp_path / "random_kills.txt").read_text()


# -- 24: signals ---------------------------------------------------------------------------------


def test_case_24_a_signal_in_a_step_an_evaluation_or_a_save_loses_nothing(
    lab: Lab, straight: Outcome, tmp_path: Path
) -> None:
    """Exit 143 or 130 after a save of that moment's step; resumed, the end is that of no signal."""
    out = tmp_path / "run"
    resume: list[str] = []
    for at, name, step in (
        ("step:3", "SIGTERM", 4),
        ("evaluation:3", "SIGINT", 8),
        ("save:before-rename:3", "SIGTERM", 17),
    ):
        stopped = lab.run(out, *ONE, *resume, at=at, signum=name)
        assert stopped.code == 128 + signal.Signals[name], stopped.output
        assert f"stopped after step {step}, saved; continue with --resume" in stopped.output
        assert "Traceback" not in stopped.output
        assert open_checkpoint(out).step == step
        resume = [RESUME]
    ended = lab.run(out, RESUME)
    assert ended.code == 0, ended.output
    assert Outcome.of(out) == straight


def test_case_24_a_signal_while_compiling_ends_the_run_at_once(lab: Lab, tmp_path: Path) -> None:
    """There is nothing to save yet: exit 143 with a line that says so."""
    started = lab.start(tmp_path / "run", *ONE, "--compile", FAULT_COMPILE=1)
    started.until("compiling")
    started.send(signal.SIGTERM)
    assert started.wait() == 143, started.output
    assert "before the first step: nothing to save" in started.output
    assert "Traceback" not in started.output


def test_case_24_a_second_signal_exits_at_once(lab: Lab, tmp_path: Path) -> None:
    """In a step that takes a minute: the first signal waits for it, the second does not."""
    started = lab.start(tmp_path / "run", *ONE, FAULT_HANG=9)
    started.until("hanging in step 10")
    started.send(signal.SIGTERM)
    started.until("saving after this step; once more to exit at once")
    started.send(signal.SIGTERM)
    assert started.wait() == 143, started.output
    assert open_checkpoint(tmp_path / "run").step == 8


# -- 25: disk full -------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", [1, 4, 9, 16])
def test_case_25_a_full_disk_leaves_the_checkpoint_before(
    operation: int, lab: Lab, straight: Outcome, tmp_path: Path
) -> None:
    """Full from some operation of the second save on: exit 5, no leftovers, and resume adds up."""
    out = tmp_path / "run"
    failed = lab.run(out, *ONE, FAULT_FULL_DISK=f"2:{operation}")
    assert failed.code == 5, failed.output
    assert "No space left on device" in failed.output
    assert "Traceback" not in failed.output
    assert open_checkpoint(out).step == 6
    assert [path.name for path in out.rglob("*") if ".tmp" in path.name] == []
    ended = lab.run(out, RESUME)
    assert ended.code == 0, ended.output
    assert Outcome.of(out) == straight


# -- 27 and 28: numbers --------------------------------------------------------------------------


def kinds(folder: Path, *wanted: str) -> list[tuple[str, int]]:
    """Return kind and step of the events of a run, in order."""
    records = read_metrics(folder / "metrics.jsonl")
    return [(record["kind"], record["step"]) for record in records if record["kind"] in wanted]


EVENTS = [("skip", 6), *(("skip", step) for step in (12, 13, 14)), ("roll_back", 14)]
EVENTS += [("skip", step) for step in (15, 16, 17)]
NANS = ",".join(str(step - 1) for kind, step in EVENTS if kind == "skip")


def test_case_27_non_finite_losses_are_skipped_rolled_back_and_given_up(
    lab: Lab, tmp_path: Path
) -> None:
    """One is skipped, three roll back once, three more exit 6 with the step and a replay file."""
    out = tmp_path / "run"
    ended = lab.run(out, *ONE, FAULT_NAN=NANS)
    assert ended.code == 6, ended.output
    assert "last is step 17; last good checkpoint" in ended.output
    assert kinds(out, "skip", "roll_back") == EVENTS
    assert not (out / "result.json").exists()
    replay = torch.load(out / "replay-rank0.pt", weights_only=True)
    assert replay["step"] == 17
    assert replay["batches"][0][0].shape == (4, 16)


@pytest.mark.slow
def test_case_27_a_nan_on_one_rank_is_handled_by_all(torchrun: Torchrun, tmp_path: Path) -> None:
    """Rank 1 alone has the NaNs: rank 0 logs them, both give up in the same step, alike."""
    out = tmp_path / "run"
    ended = torchrun(out, *TWO, program="faulty.py", FAULT_NAN=NANS, FAULT_RANK=1)
    assert ended.returncode == 1, ended.stderr
    codes = set(re.findall(r"exitcode *: *(-?\d+)", ended.stderr))
    # On a busy machine torchrun may end the second process in the middle of its own exit.
    assert "6" in codes, ended.stderr
    assert codes <= {"6", "-15", "143"}, ended.stderr
    assert kinds(out, "skip", "roll_back") == EVENTS
    ours, theirs = (
        torch.load(out / f"replay-rank{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert [ours["step"], theirs["step"]] == [17, 17]
    for name, weight in ours["model"].items():
        assert torch.equal(weight, theirs["model"][name])
    assert not torch.equal(ours["batches"][0][0], theirs["batches"][0][0])


def test_case_28_a_loss_spike_is_skipped_and_logged_with_its_examples(
    lab: Lab, tmp_path: Path
) -> None:
    """The step leaves the weights alone, training goes on, and metrics.jsonl names the batch."""
    out = tmp_path / "run"
    often = ("--max-steps", 60, "--checkpoint-every", 1, "--keep-checkpoints", 9)
    ended = lab.run(out, *ONE, *often, FAULT_SPIKE="55")
    assert ended.code == 0, ended.output
    assert "step 56: skipped, loss spike" in ended.output
    weights = {
        step: files.sha256_of(out / "checkpoints" / f"step-{step:08d}" / "model.safetensors")
        for step in (54, 55, 56, 57)
    }
    assert weights[54] != weights[55] == weights[56] != weights[57]
    skips = [r for r in read_metrics(out / "metrics.jsonl") if r["kind"] == "skip"]
    assert [skip["step"] for skip in skips] == [56]
    assert len(set(skips[0]["examples"])) == 4
    assert skips[0]["loss"] > 100


# -- 29 to 31: several processes -----------------------------------------------------------------


@pytest.mark.slow
def test_case_29_torchrun_restarts_a_run_whose_worker_was_killed(
    torchrun: Torchrun, pair: Outcome, tmp_path: Path
) -> None:
    """A worker dies in step 10: the other stops, torchrun starts both again, and all is as before.

    The real command, from a kill to the weights of no kill without a word from anybody.
    """
    out = tmp_path / "run"
    ended = torchrun(out, *TWO, restarts=1, MLE_KILL_AT="step:10", MLE_KILL_RANK=1)
    assert ended.returncode == 0, ended.stderr
    assert "Signal 9 (SIGKILL)" in ended.stderr or "exitcode: -9" in ended.stderr, ended.stderr
    assert Outcome.of(out) == pair


@pytest.mark.slow
def test_case_30_a_hanging_worker_ends_the_run_with_the_stacks_of_all(
    torchrun: Torchrun, tmp_path: Path
) -> None:
    """Rank 1 sleeps in a step: within --dist-timeout all exit 7 and say where they were."""
    out = tmp_path / "run"
    orders: dict[str, object] = {"FAULT_HANG": 4, "FAULT_RANK": 1}
    ended = torchrun(out, *TWO, "--dist-timeout", 5, program="faulty.py", **orders)
    assert ended.returncode == 1, ended.stderr
    assert "no progress for" in ended.stderr
    assert re.findall(r"exitcode *: *(-?\d+)", ended.stderr)[-1] == "7", ended.stderr
    assert "faulty.py" in (out / "stack-rank1.txt").read_text()
    waiting = (out / "stack-rank0.txt").read_text()
    assert "trainer.py" in waiting


def windows(prefix: Path, batch_size: int) -> list[list[int]]:
    """Return the windows that the ranks of a run drew, in the order of their global batches."""
    ranks = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(prefix.parent.glob(f"{prefix.name}-*.jsonl"))
    ]
    rounds = range(0, len(ranks[0]), batch_size)
    return [window for at in rounds for rank in ranks for window in rank[at : at + batch_size]]


@pytest.mark.slow
def test_case_31_another_world_size_keeps_the_exact_order_of_samples(
    lab: Lab, torchrun: Torchrun, tmp_path: Path
) -> None:
    """One process, then two of a quarter of its batch: each window comes when it was due.

    The two find out by themselves that they have to accumulate two micro-batches.
    """
    flags = (*TINY, "--dropout", 0)
    whole = lab.run(tmp_path / "whole", *flags, "--batch-size", 4, RECORD=tmp_path / "w")
    assert whole.code == 0, whole.output
    out = tmp_path / "run"
    orders: dict[str, object] = {"at": "step:9", "signum": "SIGTERM", "RECORD": tmp_path / "a"}
    first = lab.run(out, *flags, "--batch-size", 4, **orders)  # type: ignore[arg-type]
    assert first.code == 143, first.output
    words = (*flags, "--batch-size", 1, RESUME)
    ended = torchrun(out, *words, program="faulty.py", RECORD=tmp_path / "b")
    assert ended.returncode == 0, ended.stderr
    parts = windows(tmp_path / "a", 4), windows(tmp_path / "b", 1)
    assert [len(part) for part in parts] == [10 * 4, (STEPS - 10) * 4]
    assert parts[0] + parts[1] == windows(tmp_path / "w", 4)
    ours, theirs = (
        [r["loss"] for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "train"]
        for folder in (out, tmp_path / "whole")
    )
    assert len(ours) == STEPS
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_case_31_what_cannot_keep_the_order_is_refused_with_the_reason(
    lab: Lab, straight: Outcome
) -> None:
    """Batches of three do not divide a run's batches of four: exit 2, and which would."""
    refused = lab.run(lab.folder / "straight", RESUME, "--batch-size", 3, "--max-steps", 30)
    assert refused.code == 2, refused.output
    assert "steps have 4 examples" in refused.output
    assert "choose a --batch-size that divides 4" in refused.output
    assert Outcome.of(lab.folder / "straight") == straight

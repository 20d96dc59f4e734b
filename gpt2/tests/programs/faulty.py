"""The command `python -m gpt2.train` with faults to order, for tests of a whole process.

The environment says what shall go wrong:

    FAULT_NAN          steps (from 0), "3,7", whose loss is NaN
    FAULT_SPIKE        steps whose loss is 100 times too large
    FAULT_HANG         the step that sleeps for a minute
    FAULT_RANK         the rank on which these happen (0)
    FAULT_COMPILE      "1": torch.compile is replaced by one whose first call sleeps for a minute
    FAULT_FULL_DISK    "2:5": from the 5th file operation of the 2nd save on, the disk is full
    RECORD             a file prefix: the first tokens of all windows go to PREFIX-RANK.jsonl
"""

import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt2 import train
from shared import cli
from shared.checkpoint import PendingCheckpoint
from shared.faults import fail_nth
from shared.trainer import Trainer

SPACE_NEEDED = {"open", "write", "fsync", "rename", "fsync_folder", "mkdir"}  # deleting needs none
running: list["KnownTrainer"] = []
lasting = ExitStack()  # a disk that is full stays full
real_loss = train.loss


class KnownTrainer(Trainer[Any]):
    """A trainer that the faults can ask for its step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        running.append(self)
        self.saves = 0
        self.begin_save, self.checkpoints.begin = self.checkpoints.begin, self.begin  # type: ignore[method-assign]

    def begin(self, step: int) -> PendingCheckpoint:
        """Start a save; at the one ordered, start the full disk too."""
        self.saves += 1
        save, _, operation = os.environ.get("FAULT_FULL_DISK", "0:0").partition(":")
        if self.saves == int(save):
            fault = fail_nth(int(operation), kinds=SPACE_NEEDED, lasting=True)
            lasting.enter_context(fault)
        return self.begin_save(step)


def ordered(name: str, step: int) -> bool:
    """Say whether a fault is to happen on this rank at this step."""
    mine = os.environ.get("RANK", "0") == os.environ.get("FAULT_RANK", "0")
    return mine and str(step) in os.environ.get(f"FAULT_{name}", "").split(",")


def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the loss of gpt2.train, with the faults of this step."""
    value, step = real_loss(module, batch), running[-1].state.step
    if not module.training:
        return value
    record(batch[0])
    if ordered("HANG", step):
        print(f"hanging in step {step + 1}", file=sys.stderr, flush=True)
        time.sleep(60)
    value = value * float("nan") if ordered("NAN", step) else value
    return value * 100 if ordered("SPIKE", step) else value


def record(idx: Tensor) -> None:
    """Append the windows (B, T) of a batch, one a line."""
    if prefix := os.environ.get("RECORD"):
        with Path(f"{prefix}-{os.environ.get('RANK', '0')}.jsonl").open("a") as file:
            file.writelines(json.dumps(window) + "\n" for window in idx.tolist())


def compile_for_long(module: nn.Module) -> nn.Module:
    """Stand in for torch.compile: the first call takes a minute."""

    def sleep(*_: object) -> None:
        print("compiling", file=sys.stderr, flush=True)
        time.sleep(60)

    module.register_forward_pre_hook(sleep)
    return module


def order_faults() -> None:
    """Put the faults in place."""
    train.loss = loss
    train.Trainer = KnownTrainer  # type: ignore[attr-defined]
    if os.environ.get("FAULT_COMPILE"):
        torch.compile = compile_for_long  # type: ignore[assignment]


if __name__ == "__main__":
    order_faults()
    cli.run(train.main, prog="python -m gpt2.train", defaults=train.resumed)

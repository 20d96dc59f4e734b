"""Runs `faulty.py` in forked processes, which saves each of them the seconds that imports take.

Reads one JSON request a line on stdin and answers with one line on stdout:

    {"argv": [...], "env": {...}, "log": "path"}   ->  {"pid": 123}    stdout and stderr go to log
    {"wait": 123}                                  ->  {"code": -9}    as subprocess counts
"""

import json
import os
import sys
from typing import Any

import faulty  # type: ignore[import-not-found]  # lies beside this program
import matplotlib.pyplot  # noqa: F401 - imported here once, for all children
import torch._dynamo
import torch.utils.tensorboard  # noqa: F401
from tensorboard.compat.proto import summary_pb2  # noqa: F401

from gpt2 import train
from shared import cli, faults


def start(argv: list[str], env: dict[str, str], log: str) -> int:
    """Fork a process that trains; return its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.update(env)
        # Read once when shared.faults was imported, which was before the fork.
        faults._kill_name, faults._kills_left = faults._kill_setting(os.environ)
        sys.argv = ["gpt2.train", *argv]
        faulty.order_faults()
        code = cli.execute(train.main, argv, "python -m gpt2.train", train.resumed)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def main() -> None:
    """Serve until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever prints, the answers stay clean
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        else:
            answer = {"pid": start(**request)}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()

"""Training throughput of `gpt2.model` beside transformers' GPT2LMHeadModel.

    python gpt2/benchmarks/throughput.py --size 10m --out gpt2/results

Both do the same step in a plain PyTorch loop: the same weights, batch, fp32, no dropout, fused
AdamW. They take turns in one process, so that a busy machine slows all; see
`shared.profiling.compare`. GPT2LMHeadModel takes part twice: as it comes, which is what a plain
loop gets, and without the key-value cache that it fills even in training.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt2.model import GPT, PRESETS, GPTConfig
from shared import files
from shared.profiling import compare, table


@dataclasses.dataclass(frozen=True)
class Size:
    """A model, the batch of a step, and how many steps make a round of some seconds."""

    config: GPTConfig
    batch_size: int
    steps: int


SIZES = {
    # nanoGPT's 10M model (config/train_shakespeare_char.py: 6 x 384, context 256, 65 characters).
    "10m": Size(GPTConfig(vocab_size=65, block_size=256, n_layer=6, n_head=6, n_embd=384), 8, 2),
    "124m": Size(dataclasses.replace(PRESETS["gpt2"], block_size=512), 2, 1),
}


class Transformers(nn.Module):
    """GPT2LMHeadModel with a GPT's weights, behind its signature."""

    def __init__(self, model: GPT, use_cache: bool) -> None:
        from transformers import GPT2LMHeadModel

        super().__init__()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            self.model = GPT2LMHeadModel.from_pretrained(folder, use_cache=use_cache)

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002
        """Map idx and targets (B, T) to the loss; it shifts by itself, so idx are the labels."""
        loss: Tensor = self.model(input_ids=idx, labels=idx).loss
        return loss


def stepper(model: nn.Module, size: Size) -> Callable[[], None]:
    """Return a function that trains `model` for a round of steps on the same random tokens."""
    generator = torch.Generator().manual_seed(0)
    shape = (size.batch_size, size.config.block_size + 1)
    tokens = torch.randint(size.config.vocab_size, shape, generator=generator)
    idx, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()

    def steps() -> None:
        for _ in range(size.steps):
            optimizer.zero_grad(set_to_none=True)
            model(idx, targets).backward()
            optimizer.step()

    return steps


def run(name: str, rounds: int) -> dict[str, Any]:
    """Compare at one size; print the table and return what goes into the JSON."""
    torch.manual_seed(0)
    size = SIZES[name]
    model = GPT(size.config)
    print(f"{name}: {rounds} rounds of {size.steps} steps, in turns", file=sys.stderr, flush=True)
    peers = {
        "gpt2.model": stepper(model, size),
        "transformers": stepper(Transformers(model, use_cache=True), size),
        "transformers, use_cache=False": stepper(Transformers(model, use_cache=False), size),
    }
    rows = compare({peer: told(peer, steps) for peer, steps in peers.items()}, rounds)
    tokens = size.batch_size * size.config.block_size * size.steps
    ratios = {
        row.name: {"wall": row.ratio, "cpu": row.cpu_seconds / rows[0].cpu_seconds}
        for row in rows[1:]
    }
    text = (
        f"{name}: training, batch {size.batch_size} x {size.config.block_size}, fp32,"
        f" {torch.get_num_threads()} threads, {tokens} tokens a round\n{table(rows)}\n"
        f"{tokens / rows[0].seconds:.0f} tok/s\n"
        + "".join(
            f"{ratio['wall']:.2f} times {peer} by wall clock, {ratio['cpu']:.2f} by CPU time\n"
            for peer, ratio in ratios.items()
        )
    )
    print(text, flush=True)
    return {
        "size": name,
        "config": dataclasses.asdict(size.config),
        "batch_size": size.batch_size,
        "tokens_per_round": tokens,
        "ratios": ratios,
        "rows": [dataclasses.asdict(row) for row in rows],
        "text": text,
    }


def told(name: str, steps: Callable[[], None]) -> Callable[[], None]:
    """Return `steps`, telling on stderr each time how long it took."""

    def tell() -> None:
        begin = time.perf_counter()
        steps()
        print(f"  {name}: {time.perf_counter() - begin:.2f} s", file=sys.stderr, flush=True)

    return tell


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), nargs="+", default=sorted(SIZES))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for throughput.json and throughput.txt")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = [run(name, args.rounds) for name in args.size]
    if args.out:
        files.make_folder(args.out)
        texts = "\n".join(result.pop("text") for result in results)
        files.write_file(args.out / "throughput.txt", texts.encode())
        values = {"torch": torch.__version__, "threads": args.threads, "sizes": results}
        files.write_json(args.out / "throughput.json", values)


if __name__ == "__main__":
    main()

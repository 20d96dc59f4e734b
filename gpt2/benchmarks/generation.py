"""Tokens per second of `gpt2.generate` beside transformers' generate and beside no cache at all.

    python gpt2/benchmarks/generation.py --size 10m --out gpt2/results

One greedy continuation of 16 tokens by 256, batch 1, fp32, the same weights. The loop without a
cache reads the whole text again for each token, as nanoGPT does, with our model. They take turns in
one process; see `shared.profiling.compare`.
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
from torch import Tensor

from gpt2.generate import generate
from gpt2.model import GPT, PRESETS, GPTConfig
from shared import files
from shared.profiling import compare, table

SIZES = {
    "10m": GPTConfig(vocab_size=65, block_size=512, n_layer=6, n_head=6, n_embd=384),
    "124m": PRESETS["gpt2"],
}
PROMPT_TOKENS = 16


def ours(model: GPT, idx: Tensor, new: int) -> Tensor:
    """Continue idx (1, T) with the cache; return all tokens."""
    return torch.stack([*idx[0, :, None], *generate(model, idx, new, temperature=0.0)], dim=1)


@torch.no_grad()
def uncached(model: GPT, idx: Tensor, new: int) -> Tensor:
    """Continue idx (1, T) by reading everything again for each token."""
    for _ in range(new):
        logits = model.head(model.features(idx)[:, -1])
        idx = torch.cat([idx, logits.argmax(-1, keepdim=True)], dim=1)
    return idx


def transformers(model: GPT) -> Callable[[Tensor, int], Tensor]:
    """Return transformers' cached generate, with the weights of `model`."""
    from transformers import GPT2LMHeadModel

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        peer: Any = GPT2LMHeadModel.from_pretrained(folder)
    peer.eval()

    def continue_(idx: Tensor, new: int) -> Tensor:
        found: Tensor = peer.generate(
            idx,
            attention_mask=torch.ones_like(idx),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )
        return found

    return continue_


def told(name: str, function: Callable[[], object]) -> Callable[[], None]:
    """Return `function`, telling on stderr each time how long it took."""

    def tell() -> None:
        begin = time.perf_counter()
        function()
        print(f"  {name}: {time.perf_counter() - begin:.2f} s", file=sys.stderr, flush=True)

    return tell


def run(name: str, new: int, rounds: int) -> dict[str, Any]:
    """Compare at one size; print the table and return what goes into the JSON."""
    torch.manual_seed(0)
    model = GPT(SIZES[name]).eval()
    idx = torch.randint(SIZES[name].vocab_size, (1, PROMPT_TOKENS))
    peer = transformers(model)
    same = torch.equal(ours(model, idx, new), peer(idx, new))
    cached = {
        "gpt2.generate": told("gpt2.generate", lambda: ours(model, idx, new)),
        "transformers": told("transformers", lambda: peer(idx, new)),
    }
    rows = compare(cached, rounds, warmup=0)
    slow = told("without a cache", lambda: uncached(model, idx, new))
    # A minute at 124M: one round, beside a round of ours.
    rows += compare(
        {"gpt2.generate": cached["gpt2.generate"], "without a cache": slow}, 1, warmup=0
    )[1:]
    text = (
        f"{name}: {new} tokens after {PROMPT_TOKENS}, fp32, {torch.get_num_threads()} threads;"
        f" {'same' if same else 'other'} text as transformers\n{table(rows)}\n"
        + "".join(
            f"{row.name}: {new / row.seconds:.1f} tok/s by wall clock,"
            f" {new / row.cpu_seconds:.1f} by CPU time\n"
            for row in rows
        )
    )
    print(text, flush=True)
    return {
        "size": name,
        "config": dataclasses.asdict(SIZES[name]),
        "new_tokens": new,
        "same_text": same,
        "rows": [dataclasses.asdict(row) for row in rows],
        "text": text,
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), nargs="+", default=sorted(SIZES))
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for generation.json and generation.txt")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = [run(name, args.tokens, args.rounds) for name in args.size]
    if args.out:
        files.make_folder(args.out)
        texts = "\n".join(result.pop("text") for result in results)
        files.write_file(args.out / "generation.txt", texts.encode())
        values = {"torch": torch.__version__, "threads": args.threads, "sizes": results}
        files.write_json(args.out / "generation.json", values)


if __name__ == "__main__":
    main()

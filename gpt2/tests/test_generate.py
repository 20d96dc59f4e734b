import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gpt2 import generate as program
from gpt2.generate import GenerateConfig, generate, long_runs, sample, sample_text, stream_text
from gpt2.load import load_run
from gpt2.model import GPT
from minbpe import RegexTokenizer
from shared import cli
from shared.checkpoint import Checkpoints
from shared.errors import NumericalError, UsageError

MakeModel = Callable[..., GPT]


def take(model: GPT, idx: torch.Tensor, count: int, **settings: object) -> torch.Tensor:
    return torch.stack(list(generate(model, idx, count, **settings)), dim=1)  # type: ignore[arg-type]


def test_generation_equals_the_uncached_loop_across_the_sliding_edge(
    make_model: MakeModel,
) -> None:
    """The window grows to block_size, then restarts from its later half."""
    model, idx = make_model(block_size=8), torch.randint(61, (2, 3))
    found = take(model, idx, 30, temperature=0.0)
    text, start = idx, 0
    for _ in range(30):
        if text.size(1) - start > 8:
            start = text.size(1) - 4
        text = torch.cat([text, model(text[:, start:])[:, -1].argmax(-1)[:, None]], dim=1)
    assert torch.equal(found, text[:, 3:])
    assert len(set(found.flatten().tolist())) > 3  # else any window would do


def test_the_logits_along_the_sliding_edge_are_those_without_a_cache(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every position's scores, not just the likeliest token."""
    seen: list[torch.Tensor] = []

    def spy(logits: torch.Tensor, **_: object) -> torch.Tensor:
        seen.append(logits)
        return logits.argmax(-1)

    monkeypatch.setattr(program, "sample", spy)
    model, idx = make_model(block_size=6), torch.randint(61, (1, 2))
    text = torch.cat([idx, take(model, idx, 15)], dim=1)
    start = 0
    for n, logits in enumerate(seen, start=2):
        if n - start > 6:
            start = n - 3
        torch.testing.assert_close(logits, model(text[:, start:n])[:, -1])


def test_weights_in_long_runs_are_the_same_weights(make_model: MakeModel) -> None:
    """Wide ones lie by columns while generating, give the same logits, and are put back."""
    model, idx = make_model(), torch.randint(61, (1, 9))
    logits, where = model(idx), [p.data_ptr() for p in model.parameters()]
    with contextlib.suppress(KeyError), long_runs(model):
        wide = [n for n, p in model.named_parameters() if p.ndim == 2 and not p.is_contiguous()]
        torch.testing.assert_close(model(idx), logits)
        raise KeyError
    layers = range(model.config.n_layer)
    assert wide == ["wte.weight"] + [
        f"h.{i}.{name}.weight" for i in layers for name in ("attn.c_attn", "mlp.c_fc")
    ]
    assert [p.data_ptr() for p in model.parameters()] == where
    assert all(p.is_contiguous() for p in model.parameters())


def test_training_between_two_tokens_is_not_lost(make_model: MakeModel) -> None:
    """A weight changed while its copy is in use keeps the change; generators may be left open."""
    model = make_model()
    weight = model.get_parameter("h.0.mlp.c_fc.weight")
    tokens = generate(model, torch.tensor([[5]]), 40)
    next(tokens)
    with torch.no_grad():
        weight.fill_(3.0)
    del tokens
    assert (weight == 3.0).all()
    assert all(p.is_contiguous() for p in model.parameters())


@pytest.mark.parametrize("count", [31, 32])
def test_few_tokens_are_not_worth_a_copy(make_model: MakeModel, count: int) -> None:
    """Below 32 the weights stay as they are."""
    model = make_model()
    tokens = generate(model, torch.tensor([[5]]), count)
    next(tokens)
    assert model.wte.weight.is_contiguous() == (count < 32)


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_the_shortest_contexts_generate(make_model: MakeModel, block_size: int) -> None:
    """A half of 1 is still one token."""
    model = make_model(block_size=block_size)
    assert take(model, torch.tensor([[5]]), 7).shape == (1, 7)


def test_case_16_of_a_long_prompt_the_end_is_read(make_model: MakeModel) -> None:
    """A prompt beyond block_size gives what its last block_size tokens give."""
    model, idx = make_model(), torch.randint(61, (1, 40))
    whole, end = (take(model, part, 5, temperature=0.0) for part in (idx, idx[:, -16:]))
    assert torch.equal(whole, end)


def test_case_16_an_empty_prompt_begins_a_text(
    make_model: MakeModel, tokenizer: RegexTokenizer
) -> None:
    """It reads <|endoftext|>; ids without any token are refused."""
    model = make_model(vocab_size=258)
    ids = [int(t) for t in generate(model, torch.tensor([[257]]), 6, temperature=0.0)]
    expected = tokenizer.decode([i for i in ids if i != 257])
    assert "".join(stream_text(model, tokenizer, "", 6, temperature=0.0)) == expected
    with pytest.raises(ValueError, match="no tokens to continue"):
        generate(model, torch.zeros(1, 0, dtype=torch.long), 3)


def test_ids_of_another_vocabulary_are_refused(make_model: MakeModel) -> None:
    """With the ids and the size in the message, not an index error."""
    with pytest.raises(ValueError, match=r"ids 3 to 61 do not fit vocab_size=61"):
        generate(make_model(), torch.tensor([[3, 61]]), 1)


def test_temperature_zero_is_greedy() -> None:
    """The largest logit, whatever the generator says."""
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert sample(logits, temperature=0.0).tolist() == [1, 0]


def test_a_tiny_temperature_is_greedy_too() -> None:
    """Dividing by 1e-39 must not overflow into NaN."""
    assert sample(torch.tensor([[1.0, 9.0, 8.0]]), temperature=1e-39).tolist() == [1]


def draws(logits: torch.Tensor, **settings: object) -> torch.Tensor:
    """Return the shares of each token in 20,000 draws."""
    generator = torch.Generator().manual_seed(1)
    drawn = sample(logits.expand(20_000, -1), generator=generator, **settings)  # type: ignore[arg-type]
    return drawn.bincount(minlength=logits.numel()) / 20_000


PROBS = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        ({"temperature": 0.5}, [0.0351, 0.5614, 0.0088, 0.3158, 0.0789]),  # squares, normalised
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_k": 9}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        ({"top_p": 0.75}, [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85]),
        ({"top_p": 0.01}, [0, 1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 0, 3 / 7, 0]),  # 0.4 / 0.85 is below 0.5
    ],
)
def test_samples_follow_the_distribution_asked_for(
    settings: dict[str, object], expected: list[float]
) -> None:
    """Within four standard errors, and never a token outside the support."""
    shares = draws(PROBS.log(), **settings)
    wanted = torch.tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(shares, wanted, rtol=0, atol=0.015)
    assert (shares[wanted == 0] == 0).all()


def test_the_same_seed_gives_the_same_text(
    make_model: MakeModel, tokenizer: RegexTokenizer
) -> None:
    """And another seed another one; global randomness plays no part."""
    model = make_model(vocab_size=258)
    first = sample_text(model, tokenizer, "the", 30, seed=3)
    torch.manual_seed(99)
    assert sample_text(model, tokenizer, "the", 30, seed=3) == first
    assert sample_text(model, tokenizer, "the", 30, seed=4) != first
    assert first.startswith("the")


def test_case_08_scores_that_are_not_finite_stop_generation() -> None:
    """NaN and infinity raise what the command line turns into exit code 6."""
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NumericalError, match="not finite") as error:
            sample(torch.tensor([[0.0, bad]]))
        assert error.value.exit_code == 6


def fixed(monkeypatch: pytest.MonkeyPatch, ids: list[int]) -> None:
    """Make generation yield these ids."""
    monkeypatch.setattr(
        program, "generate", lambda *_, **__: iter([torch.tensor([i]) for i in ids])
    )


def test_characters_of_several_tokens_are_streamed_whole(
    make_model: MakeModel, tokenizer: RegexTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """é and 🙂 come out when their last byte is there; a lone byte becomes U+FFFD."""
    fixed(monkeypatch, [*"é🙂a".encode(), 0xFF, 0xC3])
    pieces = list(stream_text(make_model(), tokenizer, "x", 9))
    assert pieces == ["é", "🙂", "a", "\ufffd", "\ufffd"]


def test_a_text_ends_at_its_end_token(
    make_model: MakeModel, tokenizer: RegexTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing after <|endoftext|> is shown, nor is it."""
    fixed(monkeypatch, [*b"ab", 257, *b"c"])
    assert "".join(stream_text(make_model(), tokenizer, "x", 9)) == "ab"


def test_generated_tokens_can_be_trained_on(make_model: MakeModel) -> None:
    """They are no inference tensors, which autograd refuses to save."""
    model = make_model()
    tokens = take(model, torch.tensor([[1]]), 4, temperature=0.0)
    model(tokens, tokens).backward()


def test_generation_leaves_the_model_in_its_mode(make_model: MakeModel) -> None:
    """Dropout is off while generating, and back on afterwards, also when stopped early."""
    model = make_model(dropout=0.5).train()
    steps = generate(model, torch.tensor([[1]]), 9, temperature=0.0)
    next(steps)
    assert not model.training
    steps.close()  # type: ignore[attr-defined]
    assert model.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be 0 or more"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
    ],
)
def test_settings_that_cannot_be_sampled_with_are_refused(
    changes: dict[str, object], message: str
) -> None:
    """The message names the value and the rule."""
    with pytest.raises(ValueError, match=message):
        GenerateConfig(**changes)  # type: ignore[arg-type]


def write_run(folder: Path, model: GPT, tokenizer: RegexTokenizer) -> Path:
    """Write what training leaves behind, as far as generation reads it."""
    checkpoints = Checkpoints(folder / "checkpoints")
    pending = checkpoints.begin(1)
    pending.write_tensors("model.safetensors", model.state_dict())
    made_with = {"tokenizer_sha256": tokenizer.digest()}
    shape = dataclasses.asdict(model.config)
    pending.write_json("config.json", {"model": shape, "corpus": made_with})
    checkpoints.commit(pending)
    tokenizer.save(folder / "tokenizer")
    return folder


def test_a_run_folder_generates_from_the_command_line(
    make_model: MakeModel,
    tokenizer: RegexTokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prompt and continuation on stdout, the same each time."""
    model = make_model(vocab_size=258).float()
    run = write_run(tmp_path, model, tokenizer)
    words = ["--run", str(run), "--prompt", "the ", "--max-new-tokens", "9", "--device", "cpu"]
    assert cli.execute(program.main, words) == 0
    first = capsys.readouterr().out
    assert cli.execute(program.main, words) == 0
    assert capsys.readouterr().out == first
    assert first == sample_text(model, tokenizer, "the ", 9, seed=0) + "\n"


def test_a_model_with_another_runs_tokenizer_is_refused(
    make_model: MakeModel, tokenizer: RegexTokenizer, tmp_path: Path
) -> None:
    """More tokens than the model has; and none at all."""
    run = write_run(tmp_path, make_model(vocab_size=200), tokenizer)
    with pytest.raises(ValueError, match="258 tokens, the model only 200"):
        load_run(run)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(UsageError, match=r"has no tokenizer.model"):
        load_run(run)


def test_one_source_of_weights_is_named_or_the_newest_run_is_taken(
    make_model: MakeModel,
    tokenizer: RegexTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both --run and --model are an error; neither takes the run started last, if there is one."""
    monkeypatch.chdir(tmp_path)
    assert cli.execute(program.main, ["--run", "a", "--model", "b"]) == 2
    assert "name one of --run" in capsys.readouterr().err
    assert cli.execute(program.main, ["--device", "cpu"]) == 2
    assert "runs/gpt2 holds no run" in capsys.readouterr().err
    write_run(tmp_path / "runs/gpt2/2026-01-01T00-00-00", make_model(vocab_size=258), tokenizer)
    assert cli.execute(program.main, ["--device", "cpu", "--prompt", "the "]) == 0
    assert capsys.readouterr().out.startswith("the ")

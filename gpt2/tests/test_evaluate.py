import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from gpt2 import evaluate as program
from gpt2.evaluate import (
    EvaluateConfig,
    Window,
    evaluate_hellaswag,
    evaluate_lambada,
    evaluate_text,
    hellaswag_question,
    read_rows,
    score,
    text_nats,
    windows,
)
from gpt2.model import GPT
from minbpe import RegexTokenizer
from shared.datasets import resolve
from shared.errors import DataError, UsageError

MakeModel = Callable[..., GPT]


class Unigram:
    """Stands for a GPT whose next token is always p(a) = 1/2, p(b) = 1/4, p(others) = 1/1024."""

    def __init__(self) -> None:
        probs = torch.full((258,), 1 / 1024)
        probs[ord("a")], probs[ord("b")] = 1 / 2, 1 / 4
        self.logprobs = probs.log()
        self.config = SimpleNamespace(block_size=64)
        self.wte = SimpleNamespace(weight=torch.zeros(1))

    def features(self, idx: Tensor) -> Tensor:
        """Map (B, T) to (B, T, 1)."""
        return torch.ones(*idx.shape, 1)

    def head(self, x: Tensor) -> Tensor:
        """Map (..., 1) to (..., 258)."""
        return x * self.logprobs


@pytest.fixture
def unigram() -> GPT:
    """Return the model with known log-probabilities."""
    return cast(GPT, Unigram())


def test_windows_score_each_prediction_once_with_enough_context() -> None:
    """For all small lengths, sizes and strides."""
    for n in range(1, 30):
        for block_size in range(1, 9):
            for stride in range(1, block_size + 1):
                scored = []
                for w in windows(n, block_size, stride):
                    assert 0 < w.end - w.begin <= block_size
                    for t in range(w.scored, w.end):
                        scored.append(t)
                        assert t - w.begin >= min(t, block_size - stride)
                assert scored == list(range(n))


def test_windows_are_the_documented_ones() -> None:
    """The docstring's example, and a stride beyond the context refused."""
    assert list(windows(6, 4, 2)) == [Window(0, 4, 0), Window(2, 6, 4)]
    with pytest.raises(ValueError, match=r"stride=5 must be from 1 to block_size=4"):
        list(windows(6, 4, 5))


@pytest.mark.parametrize(
    ("n", "stride"), [(2, 1), (16, 5), (17, 8), (18, 8), (50, 8), (41, 16), (23, 1)]
)
def test_bits_per_byte_equals_one_token_at_a_time(
    make_model: MakeModel, n: int, stride: int
) -> None:
    """A separate forward pass for each token, with the context its window gives it."""
    model = make_model()
    ids = torch.randint(61, (n,)).tolist()
    expected = 0.0
    for t in range(1, n):  # predict ids[t] from ids[begin:t]
        over = max(0, t - 16)  # predictions beyond the first window come in strides
        begin = min(math.ceil(over / stride) * stride, max(0, n - 1 - 16))
        logits = model(torch.tensor([ids[begin:t]]))[0, -1]
        expected -= logits.log_softmax(-1)[ids[t]].item()
    for batch_size in (1, 3):
        found = text_nats(model, ids, stride=stride, batch_size=batch_size)
        assert found == pytest.approx(expected, rel=1e-9)


def test_every_byte_of_a_text_counts(make_model: MakeModel, tokenizer: RegexTokenizer) -> None:
    """The first token too, after <|endoftext|>; bytes, not characters."""
    model = make_model(vocab_size=258)
    text = "thé the"
    found = evaluate_text(model, tokenizer, text)
    ids = [257, *tokenizer.encode_ordinary(text)]
    logprobs = model(torch.tensor([ids[:-1]])).log_softmax(-1)
    nats = -logprobs[0, range(len(ids) - 1), ids[1:]].sum().item()
    assert found["bytes"] == 8
    assert found["tokens"] == len(ids) - 1
    assert found["loss"] == pytest.approx(nats / (len(ids) - 1))
    assert found["bits_per_byte"] == pytest.approx(nats / 8 / math.log(2))
    assert found["perplexity"] == pytest.approx(math.exp(nats / (len(ids) - 1)))


def test_an_empty_text_is_refused(make_model: MakeModel, tokenizer: RegexTokenizer) -> None:
    """There is nothing to divide by."""
    with pytest.raises(DataError, match="no tokens"):
        evaluate_text(make_model(vocab_size=258), tokenizer, "")


def test_scores_are_the_sums_of_log_probabilities(make_model: MakeModel) -> None:
    """In a padded batch as alone, and with a context longer than the model's."""
    model = make_model()
    long = torch.randint(61, (30,)).tolist()
    pairs = [([1, 2, 3], [4, 5]), ([7], [8]), (long, [9, 10, 11])]
    for (context, continuation), (value, greedy) in zip(pairs, score(model, pairs), strict=True):
        ids = [*context, *continuation][-17:]
        logprobs = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)[-len(continuation) :]
        expected = logprobs[range(len(continuation)), continuation].sum().item()
        assert value == pytest.approx(expected, rel=1e-6)
        assert greedy == (logprobs.argmax(-1).tolist() == continuation)
    with pytest.raises(DataError, match="0 tokens of context"):
        score(model, [([], [1])])


def test_hellaswag_equals_a_hand_worked_case(unigram: GPT, tokenizer: RegexTokenizer) -> None:
    """log2 p of " b" is -10 - 2, of " aaaaaaaa" -10 - 8; by byte -12 / 1 and -18 / 8.

    acc takes the first, acc_norm the second; the labels of the two rows are 0 and 1.
    """
    rows = [
        {"activity_label": "x", "ctx": "y", "endings": ["b", "aaaaaaaa"], "label": label}
        for label in (0, 1, 1, 1)
    ]
    found = evaluate_hellaswag(unigram, tokenizer, rows)
    assert found == {"acc": 0.25, "acc_norm": 0.75, "questions": 4}


def test_lambada_equals_a_hand_worked_case(unigram: GPT, tokenizer: RegexTokenizer) -> None:
    """Every last word begins with a space, p = 1/1024, so greedy decoding never gives it."""
    rows = [{"text": "once a b"}, {"text": "and then aa\n"}]
    found = evaluate_lambada(unigram, tokenizer, rows)
    assert found["acc"] == 0.0
    # The two words have 2^-(10 + 2) and 2^-(10 + 2): per word 2^12.
    assert found["perplexity"] == pytest.approx(2.0**12, rel=1e-5)


def test_lambada_counts_a_word_that_greedy_decoding_gives(
    unigram: GPT, tokenizer: RegexTokenizer
) -> None:
    """With the space the likeliest token, only words of no letter but it would do; make one."""
    cast(Unigram, unigram).logprobs[ord(" ")] = 0.0
    cast(Unigram, unigram).logprobs[ord("a")] = -1.0
    assert [greedy for _, greedy in score(unigram, [([1], [32, 32]), ([1], [32, 97])])] == [
        True,
        False,
    ]
    assert evaluate_lambada(unigram, tokenizer, [{"text": "x a"}])["acc"] == 0.0
    # A tokenizer that gives the last word the one token that is the likeliest: half are right.
    cast(Unigram, unigram).logprobs[ord("b")] = 1.0
    known = cast(RegexTokenizer, SimpleNamespace(encode_ordinary=lambda text: [ord(text[-1])]))
    rows = [{"text": "x b"}, {"text": "x a"}]
    assert evaluate_lambada(unigram, known, rows)["acc"] == 0.5


def test_hellaswag_divides_by_characters_as_the_harness_does(
    unigram: GPT, tokenizer: RegexTokenizer
) -> None:
    """An é is one character of two bytes; by bytes the second pair would be judged otherwise."""
    row = {"activity_label": "x", "ctx": "y", "endings": ["ééé", "cdefghij"], "label": "1"}
    # " ééé" is 7 bytes of 2^-10 each, " cdefghij" 9: -70 / 3 = -23.3 and -90 / 8 = -11.25.
    assert evaluate_hellaswag(unigram, tokenizer, [row])["acc_norm"] == 1.0
    row["endings"] = ["ééé", "cdefg"]  # by character -23.3 and -12; by byte -11.7 and -12
    assert evaluate_hellaswag(unigram, tokenizer, [row])["acc_norm"] == 1.0


def test_a_continuation_longer_than_the_model_is_scored_by_its_end(make_model: MakeModel) -> None:
    """Only the last block_size tokens count, as if the ones before were context."""
    model = make_model()
    size = model.config.block_size
    ids = [(7 * i) % model.config.vocab_size for i in range(size + 9)]
    [(long, _)] = score(model, [([1, 2], ids)])
    [(end, _)] = score(model, [(ids[:9], ids[9:])])
    assert long == pytest.approx(end)
    with pytest.raises(DataError, match="both must have one"):
        score(model, [([1], [])])


def test_the_part_to_measure_is_one_the_model_has_not_seen(tmp_path: Path) -> None:
    """The run's own text by its validation part, another text as a whole, a named part as named."""
    file = tmp_path / "text.txt"
    file.write_text("0123456789" * 10)
    dataset = resolve(file)
    held_out = "0123456789"
    assert program.choose_text(dataset, None, dataset.sha256) == ("validation", held_out)
    assert program.choose_text(dataset, None, "another") == ("all", "0123456789" * 10)
    assert program.choose_text(dataset, "train", None) == ("train", "0123456789" * 9)
    with pytest.raises(UsageError, match="no part 'test'"):
        program.choose_text(dataset, "test", None)


def test_hellaswag_text_is_cleaned_as_the_harness_does() -> None:
    """WikiHow's marks go, the second half gets its capital, the activity stands first."""
    row = {
        "activity_label": "Folding",
        "ctx_a": "[header] How to fold [title] Take it.",
        "ctx_b": "then you",
        "ctx": "unused",
        "endings": ["fold.", "[substeps] cut  it."],
        "label": "1",
    }
    context, endings, label = hellaswag_question(row)
    assert context == "Folding: How to fold. Take it. Then you"
    assert endings == ["fold.", "cut it."]
    assert label == 1
    with pytest.raises(DataError, match="no row of HellaSwag"):
        hellaswag_question({"ctx": "a"})


def test_rows_that_are_no_json_are_named(tmp_path: Path) -> None:
    """With the file and the line; a limit stops before them."""
    path = tmp_path / "rows.txt"
    path.write_text('{"a": 1}\nnonsense\n')
    assert list(read_rows(resolve(path), limit=1)) == [{"a": 1}]
    with pytest.raises(DataError, match=r"rows.txt, line 2: not JSON"):
        list(read_rows(resolve(path)))


def test_a_result_is_printed_and_written(
    make_model: MakeModel,
    tokenizer: RegexTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The JSON names the text by its digest and holds what the table shows."""
    model = make_model(vocab_size=258)
    monkeypatch.setattr(program, "load", lambda *_: (model, tokenizer))
    (tmp_path / "text.txt").write_text("the text", newline="")
    text, out = str(tmp_path / "text.txt"), tmp_path / "o.json"
    config = EvaluateConfig(model="some", data=text, out=out, device="cpu")
    program.main(config)
    result: dict[str, Any] = json.loads((tmp_path / "o.json").read_text())
    expected = evaluate_text(model, tokenizer, "the text")
    assert result["bits_per_byte"] == pytest.approx(expected["bits_per_byte"])
    assert len(result["data"]["sha256"]) == 64
    assert f"{expected['bits_per_byte']:.4f}" in capsys.readouterr().out


def test_a_config_without_a_text_or_task_is_refused() -> None:
    """And numbers below 1."""
    with pytest.raises(ValueError, match="--data, or a --task"):
        EvaluateConfig()
    with pytest.raises(ValueError, match="stride=0"):
        EvaluateConfig(data="x", stride=0)

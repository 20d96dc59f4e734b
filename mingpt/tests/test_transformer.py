"""The encoder-decoder: what it may see, what it is made of, and how it is searched."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mingpt.layers import causal_mask, cross_entropy, sinusoidal_positions
from mingpt.transformer import (
    END,
    PAD,
    START,
    Decoding,
    EncoderLayer,
    Residual,
    Transformer,
    TransformerConfig,
    beam_search,
    greedy,
    length_penalty,
    loss,
    source_mask,
)
from shared.errors import NumericalError

KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"norm_place": "pre", "activation": "gelu"},
    {"positions": "learned", "n_hidden": 24},
    {"attention": "fused"},
)
TINY: dict[str, Any] = {"vocab_size": 9, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}


def build(seed: int = 0, **changes: Any) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(TransformerConfig(**{**TINY, **changes})).eval()


def sentences(rows: int, length: int, seed: int = 0) -> Tensor:
    """Return ids (rows, length) of text, without padding, start and end."""
    return torch.randint(3, 9, (rows, length), generator=torch.Generator().manual_seed(seed))


# -- what the model may see ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_target_changes_no_bit_before_it(kind: dict[str, Any]) -> None:
    """Changing target_in from place t on leaves the logits before t as they were."""
    model, source, target = build(**kind), sentences(3, 6), sentences(3, 7, seed=1)
    before = model(source, target)
    for t in range(1, 7):
        changed = target.clone()
        changed[:, t:] = 3 + (changed[:, t:] - 2) % 6
        after = model(source, changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.equal(after[:, t], before[:, t])


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_token_reaches_every_place(kind: dict[str, Any]) -> None:
    """The encoder looks both ways, and the first logits depend on all of the source."""
    model, source, target = build(**kind), sentences(1, 6), sentences(1, 2, seed=1)
    memory, logits = model.encode(source), model(source, target)
    for s in range(6):
        changed = source.clone()
        changed[:, s] = 3 + (changed[:, s] - 2) % 6
        assert ((model.encode(changed) - memory).abs().amax(-1) > 1e-6).all()
        assert not torch.allclose(model(changed, target), logits)


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_under_source_padding_changes_no_bit(kind: dict[str, Any]) -> None:
    """Noise in the embedding of padding leaves the logits bit for bit as they were."""
    model, target = build(**kind), sentences(2, 4, seed=1)
    source = torch.cat([sentences(2, 4), torch.full((2, 3), PAD)], dim=1)
    before = model(source, target)
    memory = model.encode(source)
    embed = model.embed

    def noisy(idx: Tensor, start: int = 0) -> Tensor:
        x = embed(idx, start)
        return torch.where((idx == PAD)[..., None], 1e3 * torch.randn_like(x), x)

    model.embed = noisy  # type: ignore[method-assign]
    assert torch.equal(model(source, target), before)
    assert torch.equal(model.encode(source)[:, :4], memory[:, :4])
    assert not torch.equal(model.encode(source)[:, 4:], memory[:, 4:])


@pytest.mark.parametrize("kind", KINDS)
def test_padding_of_source_or_target_changes_nothing_but_rounding(kind: dict[str, Any]) -> None:
    """A row alone and the same row padded beside longer ones have the same logits and texts."""
    model, short, target = build(**kind), sentences(1, 3), sentences(1, 4, seed=1)
    alone = model(short, target)
    source = sentences(3, 7, seed=2)
    source[1] = torch.cat([short[0], torch.full((4,), PAD)])
    targets = sentences(3, 8, seed=3)
    targets[1] = torch.cat([target[0], torch.full((4,), PAD)])
    beside = model(source, targets)[1:2, :4]
    torch.testing.assert_close(beside, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(greedy(model, source)[1], greedy(model, short, 8)[0])
    found, scores = beam_search(model, source)
    one, score = beam_search(model, short)
    assert torch.equal(found[1], one[0])
    assert scores[1].item() == pytest.approx(score.item(), abs=1e-5)


def test_the_loss_ignores_padded_targets_and_smooths_in_training_only() -> None:
    """Longer padding leaves the loss; label smoothing changes it in training, not in eval."""
    model = build(label_smoothing=0.1)
    source, target_in = sentences(2, 5), sentences(2, 4, seed=1)
    targets = sentences(2, 4, seed=2)
    targets[1, 2:] = -100
    plain = loss(model, (source, target_in, targets))
    logits = model(source, target_in)
    torch.testing.assert_close(plain, cross_entropy(logits, targets))
    padded = [nn.functional.pad(each, (0, 2), value=pad) for each, pad in (
        (target_in, PAD), (targets, -100),
    )]  # fmt: skip
    torch.testing.assert_close(loss(model, (source, padded[0], padded[1])), plain)
    smoothed = loss(model.train(), (source, target_in, targets))
    torch.testing.assert_close(smoothed, cross_entropy(logits, targets, 0.1))
    assert not torch.allclose(smoothed, plain)


# -- what it is made of --------------------------------------------------------------------------


def test_embeddings_are_shared_scaled_and_added_to_sinusoids() -> None:
    """One table reads source and target, times sqrt(n_embd), and scores the output (sec. 3.4)."""
    model, idx = build(), sentences(1, 5)
    x = model.wte.weight[idx] * math.sqrt(16) + sinusoidal_positions(8, 16)[:5]
    torch.testing.assert_close(model.embed(idx), x)
    assert [name for name, _ in model.named_parameters() if "wte" in name] == ["wte.weight"]
    assert not any(parameter.shape[0] == 9 for name, parameter in model.named_parameters()
                   if name != "wte.weight")  # fmt: skip
    state = model.start(idx)
    hidden: list[Tensor] = []
    model.decoder_norm.register_forward_hook(lambda _, __, out: hidden.append(out))
    logits = model.next_logits(idx[:, 0], state)
    torch.testing.assert_close(logits, hidden[0][:, 0] @ model.wte.weight.T)


def test_norms_stand_after_the_sum_unless_asked_for_before() -> None:
    """Post: LayerNorm(x + f(x)), so rows have mean 0, variance 1; pre: x + f(LayerNorm(x))."""
    x = 3 + 2 * torch.randn(2, 4, 16)
    post, pre = (Residual(TransformerConfig(**TINY, norm_place=place)) for place in ("post", "pre"))
    norm = nn.LayerNorm(16)
    torch.testing.assert_close(post(x, torch.sin), norm(x + x.sin()))
    torch.testing.assert_close(pre(x, torch.sin), x + norm(x).sin())
    assert TransformerConfig().norm_place == "post"
    assert isinstance(build().decoder_norm, nn.Identity)
    assert not isinstance(build(norm_place="pre").decoder_norm, nn.Identity)


def test_the_stacks_agree_with_torch_on_the_same_weights() -> None:
    """Encoder and decoder layers are torch's own, with its default post-norm."""
    model = build()
    source = torch.cat([sentences(2, 4), torch.full((2, 2), PAD)], dim=1)
    target = sentences(2, 5, seed=1)
    settings: dict[str, Any] = {"dim_feedforward": 64, "dropout": 0.0, "batch_first": True}
    x, hidden = model.embed(source), source == PAD
    for layer in model.encoder:
        assert isinstance(layer, EncoderLayer)
        theirs = nn.TransformerEncoderLayer(16, 2, **settings).train()  # eval has its own kernel
        copy_attention(theirs.self_attn, layer.attention)
        copy_rest(theirs, layer, ("around_attention", "around_feed_forward"))
        x = theirs(x, src_key_padding_mask=hidden)
    torch.testing.assert_close(model.encode(source)[:, :4], x[:, :4], rtol=1e-4, atol=1e-5)
    memory, y = model.encode(source), model.embed(target)
    for layer in model.decoder:
        decoder = nn.TransformerDecoderLayer(16, 2, **settings)
        copy_attention(decoder.self_attn, layer.attention)
        copy_attention(decoder.multihead_attn, layer.cross_attention)
        copy_rest(decoder, layer, ("around_attention", "around_cross", "around_feed_forward"))
        future = ~causal_mask(5, 5)
        y = decoder(y, memory, tgt_mask=future, memory_key_padding_mask=hidden)
    logits = model.decode(target, memory, source_mask(source))
    torch.testing.assert_close(logits, y @ model.wte.weight.T, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def copy_attention(theirs: nn.MultiheadAttention, ours: Any) -> None:
    assert theirs.in_proj_weight is not None
    assert theirs.in_proj_bias is not None
    parts = (ours.w_q, ours.w_k, ours.w_v)
    theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
    theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    theirs.out_proj.weight.copy_(ours.w_o.weight)
    theirs.out_proj.bias.copy_(ours.w_o.bias)


@torch.no_grad()
def copy_rest(theirs: Any, ours: Any, around: tuple[str, ...]) -> None:
    for name, linear in (("w_1", theirs.linear1), ("w_2", theirs.linear2)):
        linear.weight.copy_(getattr(ours.feed_forward, name).weight)
        linear.bias.copy_(getattr(ours.feed_forward, name).bias)
    for number, name in enumerate(around, 1):
        norm = getattr(ours, name).norm
        norm.weight.copy_(torch.randn(16))
        norm.bias.copy_(torch.randn(16))
        getattr(theirs, f"norm{number}").weight.copy_(norm.weight)
        getattr(theirs, f"norm{number}").bias.copy_(norm.bias)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 3}, "vocab_size=3 must be above 3"),
        ({"n_layer": 0}, "n_layer=0 must be at least 1"),
        ({"n_hidden": -1}, "n_hidden=-1 must be at least 0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 must be at least 0 and below 1"),
        ({"n_head": 3}, "n_embd=16 must be a multiple of n_head=3"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], said: str) -> None:
    """The error names the value and the rule."""
    with pytest.raises(ValueError, match=said):
        build(**changes)


# -- search --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_with_a_cache_equals_decoding_at_once(kind: dict[str, Any]) -> None:
    """Token by token, with rows reordered on the way, the logits are those of the whole."""
    model = build(**kind)
    source = torch.cat([sentences(3, 5), torch.full((3, 1), PAD)], dim=1)
    target = sentences(3, 8, seed=1)
    state = model.start(source)
    steps = [model.next_logits(target[:, t], state) for t in range(4)]
    order = torch.tensor([2, 0, 0, 1])
    state.select(order)
    whole = model(source[order], target[order])
    for t in range(4):
        torch.testing.assert_close(steps[t][order], whole[:, t], rtol=1e-5, atol=1e-5)
    for t in range(4, 8):
        step = model.next_logits(target[order][:, t], state)
        torch.testing.assert_close(step, whole[:, t], rtol=1e-5, atol=1e-5)
    assert state.caches[0].memory.length == 6  # the source was projected once


def sharp(seed: int) -> Transformer:
    """Return a model whose logits differ enough that texts end at different places."""
    model = build(seed, vocab_size=6, block_size=4, n_layer=1)
    model.wte.weight.data *= 3.0
    return model


def best_of_all(model: Transformer, source: Tensor, alpha: float) -> tuple[list[int], float]:
    """Score every text of up to 4 tokens that ends, one at a time and without a cache."""
    best: tuple[list[int], float] = ([], -math.inf)
    for length in range(4):
        for letters in itertools.product((3, 4, 5), repeat=length):
            text = [*letters, END]
            logits = model(source, torch.tensor([[START, *letters]]))[0].detach()
            logits[:, [PAD, START]] = -math.inf
            log_p = logits.log_softmax(-1)
            total = sum(log_p[t, token].item() for t, token in enumerate(text))
            score = total / ((5 + len(text)) / 6) ** alpha
            best = max(best, (text, score), key=lambda each: each[1])
    return best


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_wide_beam_finds_the_best_text_of_all(alpha: float) -> None:
    """With a place for every beginning, beam search is exhaustive search; lengths differ."""
    lengths = set()
    for seed in range(4):
        model, source = sharp(seed), sentences(2, 3, seed) % 3 + 3
        found, scores = beam_search(model, source, beam=40, alpha=alpha)
        for row in range(2):
            text, score = best_of_all(model, source[row : row + 1], alpha)
            assert found[row, : len(text)].tolist() == text
            assert (found[row, len(text) :] == PAD).all()
            assert scores[row].item() == pytest.approx(score, abs=1e-4)
            lengths.add(len(text))
    assert alpha == 0.0 or len(lengths) > 1


class Script(Transformer):
    """A model that ends at once with probability 0.55, or else says 3, 3, 3 and ends."""

    def next_logits(self, tokens: Tensor, state: Decoding) -> Tensor:
        """Return what the script says after so many tokens."""
        state.length += 1
        likely = {1: {END: 0.55, 3: 0.45}, 4: {END: 1.0}}.get(state.length, {3: 1.0})
        row = torch.full((6,), 1e-9)
        for token, p in likely.items():
            row[token] = p
        return row.log().repeat(len(tokens), 1)


def test_a_beam_goes_on_while_a_longer_text_could_still_win() -> None:
    """A short text is likelier; divided by its length's penalty, the long one is better."""
    model = Script(TransformerConfig(**{**TINY, "vocab_size": 6, "block_size": 4})).eval()
    source = sentences(1, 3) % 3 + 3
    found, scores = beam_search(model, source, alpha=2.0)
    assert found.tolist() == [[3, 3, 3, END]]
    assert scores.item() == pytest.approx(math.log(0.45) / (9 / 6) ** 2, abs=1e-5)
    assert beam_search(model, source, alpha=0.0)[0].tolist() == [[END, PAD, PAD, PAD]]


def test_a_beam_of_one_is_greedy_search() -> None:
    """For sixty random models and sources, ended or not."""
    ended = set()
    for seed in range(12):
        model, source = sharp(seed), sentences(5, 3, seed) % 3 + 3
        ids = greedy(model, source)
        found, _ = beam_search(model, source, beam=1)
        assert torch.equal(found[:, : ids.size(1)], ids)
        assert (found[:, ids.size(1) :] == PAD).all()
        ended |= set((ids == END).any(1).tolist())
    assert ended == {True, False}


def test_greedy_takes_the_likeliest_token_and_then_pads() -> None:
    """Each token is the argmax after those before it; after the end there is only padding."""
    model, source = sharp(1), sentences(6, 3, 1) % 3 + 3
    for row, text in enumerate(greedy(model, source).tolist()):
        said = [START]
        for token in text:
            if END in said:
                assert token == PAD
                continue
            logits = model(source[row : row + 1], torch.tensor([said]))[0, -1].detach()
            logits[[PAD, START]] = -math.inf
            assert token == logits.argmax()
            said.append(token)


def test_the_length_penalty_is_that_of_wu_et_al() -> None:
    """lp(Y) = ((5 + |Y|) / 6)^alpha: 1 for a single token, or without alpha."""
    assert length_penalty(1, 0.6) == 1.0
    assert length_penalty(7, 0.0) == 1.0
    assert length_penalty(7, 0.6) == pytest.approx(2**0.6)


def test_search_refuses_what_cannot_work() -> None:
    """Too long, no beam, a negative penalty; and weights that give no numbers."""
    model, source = build(), sentences(1, 3)
    with pytest.raises(ValueError, match="max_length=9 must be at most block_size=8"):
        greedy(model, source, 9)
    with pytest.raises(ValueError, match="beam=0 must be at least 1"):
        beam_search(model, source, beam=0)
    with pytest.raises(ValueError, match=r"alpha=-1\.0 at least 0"):
        beam_search(model, source, alpha=-1.0)
    with pytest.raises(ValueError, match="9 positions do not fit a table of 8"):
        model(source, sentences(1, 9))
    model.wte.weight.data[4] = math.nan
    with pytest.raises(NumericalError, match="not finite"):
        greedy(model, source)

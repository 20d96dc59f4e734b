"""One suite for every model, counted ones included: what the common contract promises."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from makemore.data import BOUNDARY, IGNORED, Items, Vocabulary
from makemore.generate import sample_items
from makemore.model import CharacterModel
from makemore.ngram import NGram
from makemore.recipes import RECIPES, build, build_saved, saved
from shared.checkpoint import Checkpoints
from shared.optim import make_optimizers

NAMES = [
    *("emma", "olivia", "ava", "isabella", "sophia", "charlotte", "mia", "amelia", "harper"),
    *("evelyn", "abigail", "emily", "ella", "elizabeth", "camila", "luna", "sofia", "avery"),
]
VOCABULARY = Vocabulary.of(NAMES)
ITEMS = Items(NAMES, VOCABULARY)

# Shapes that train in a second; all that tuning adds against overfitting is left out.
SMALL: dict[str, dict[str, Any]] = {
    "ngram": {"smoothing": "add_k", "k": 1e-6},
    "bigram": {},
    "bow": {"n_hidden": 128, "dropout": 0.0, "noise": 0.0},
    "mlp": {"n_hidden": 64, "n_layer": 1, "dropout": 0.0},
    "mlp-bn": {"n_hidden": 64, "n_layer": 1, "dropout": 0.0},
    "wavenet": {"n_hidden": 32, "dropout": 0.0, "noise": 0.0},
    "rnn": {"n_embd": 32, "n_hidden": 64, "n_layer": 1, "dropout": 0.0},
    "gru": {"n_embd": 32, "n_hidden": 64, "n_layer": 1, "dropout": 0.0},
    "lstm": {"n_embd": 32, "n_hidden": 64, "n_layer": 1, "dropout": 0.0},
    # A zero start scores everything alike, and shared prefixes cannot be told apart by a peek.
    "transformer": {
        "n_layer": 2, "n_embd": 32, "n_head": 2, "dropout": 0.0, "residual_init": "gpt2",
        "share_prefixes": False,
    },
}  # fmt: skip
NO_DROPOUT = ("embed_dropout", "weight_dropout", "attention_dropout", "noise")
COUNTED = [name for name, recipe in RECIPES.items() if recipe.trainer is None]
TRAINED = [name for name in RECIPES if name not in COUNTED]


def small(name: str, **changes: Any) -> CharacterModel:
    """Build a small model, an n-gram with its counts."""
    torch.manual_seed(0)
    shape = {each: 0.0 for each in NO_DROPOUT if hasattr(RECIPES[name].config, each)}
    model = build(name, len(VOCABULARY), **{**shape, **SMALL[name], **changes})
    if isinstance(model, NGram):
        model.fit(ITEMS)
    return model


def train(model: CharacterModel, steps: int = 300) -> float:
    """Fit the 18 names; return the loss of the last step."""
    idx, targets = ITEMS.batch(range(len(ITEMS)))
    (optimizer,) = make_optimizers(
        model.train(),
        name="adamw",
        learning_rate=0.02,
        muon_learning_rate=0.0,
        betas=(0.9, 0.95),
        weight_decay=0.0,
    )
    loss = torch.tensor(math.nan)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (1 - step / steps)
        loss = model(idx, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def entropy(context: int) -> float:
    """Return the nats per character of NAMES that no model of `context` characters can go below.

    The mean of -log(count of the context with its next character / count of the context).
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for name in NAMES:
        text = "." + name + "."
        for end in range(1, len(text)):
            start = max(0, end - context) if context else 0
            pad = "." * max(0, context - end)  # as windows are padded with boundaries
            pairs[pad + text[start:end], text[end]] += 1
    contexts: Counter[str] = Counter()
    for (before, _), count in pairs.items():
        contexts[before] += count
    nats = -sum(n * math.log(n / contexts[before]) for (before, _), n in pairs.items())
    return nats / pairs.total()


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_fits_one_batch_to_its_entropy_and_not_below(name: str) -> None:
    """What a model of that context can know is learned; to know more it would have to peek."""
    model = small(name)
    floor = entropy(model.block_size)
    trained = train(model) if name in TRAINED else model.loss(*ITEMS.batch(range(18))).item()
    assert floor - 1e-4 < trained < floor + 0.05


@pytest.mark.parametrize("name", RECIPES)
def test_no_model_looks_ahead(name: str) -> None:
    """Changing the characters from place 3 on leaves the scores before it bit for bit."""
    model = small(name).eval()
    idx, _ = ITEMS.batch([3, 4, 9])
    changed = idx.clone()
    changed[:, 3:] = changed[:, 3:] % (len(VOCABULARY) - 1) + 1
    before, after = model.logits(idx), model.logits(changed)
    assert torch.equal(before[:, :3], after[:, :3])
    if name != "ngram":  # an unseen context may well have the scores of a shorter one
        assert not torch.allclose(before[:, 3:], after[:, 3:])


@pytest.mark.parametrize("name", RECIPES)
def test_an_item_scores_the_same_in_any_company(name: str) -> None:
    """Neither the other items of a batch nor the padding that they cause change a score."""
    model = small(name).eval()
    together, alone = ITEMS.batch(range(18)), [ITEMS.batch([i]) for i in range(18)]
    keep = together[1] != IGNORED
    expected = torch.cat([model.logits(alone[i][0])[0] for i in order_of(together[0])])
    torch.testing.assert_close(model.scores(together[0], keep), expected)


def order_of(idx: Tensor) -> list[int]:
    """Return which name each row of a batch is."""
    texts = [VOCABULARY.decode(row[row != BOUNDARY].tolist()) for row in idx]
    return [NAMES.index(text) for text in texts]


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_is_the_mean_over_targets_that_count(name: str) -> None:
    """It equals minus the mean of the log-probability that the logits give each target."""
    model = small(name).eval()
    idx, targets = ITEMS.batch([0, 2, 7])
    log_probs = model.logits(idx).log_softmax(-1)
    chosen = log_probs.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    expected = -chosen[targets != IGNORED].mean()
    torch.testing.assert_close(model.loss(idx, targets), expected)
    torch.testing.assert_close(model(idx, targets), expected)


@pytest.mark.parametrize("name", TRAINED)
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    """Two runs from one seed end in the same bits, and another seed in others."""
    runs = []
    for _ in range(2):
        model = small(name)
        runs.append((train(model, steps=3), model.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][key], runs[1][1][key]) for key in runs[0][1])
    torch.manual_seed(1)
    other = build(name, len(VOCABULARY), **SMALL[name]).state_dict()
    assert any(not torch.equal(other[key], runs[0][1][key]) for key in other)


@pytest.mark.parametrize("name", TRAINED)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    """A parameter that no loss reaches would be counted and saved for nothing."""
    model = small(name)
    train(model, steps=2)  # some start where their gradient is zero
    model.loss(*ITEMS.batch(range(18))).backward()  # type: ignore[no-untyped-call]
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    """From a checkpoint and its config alone comes a model with the same scores."""
    model = small(name)
    if name in TRAINED:
        train(model, steps=2)
    store = Checkpoints(tmp_path)
    pending = store.begin(2)
    pending.write_tensors("model.safetensors", model.state_dict())
    pending.write_json("config.json", {"model": saved(name, model)})
    checkpoint = store.commit(pending)
    again = build_saved(checkpoint.json()["model"])
    again.load_state_dict(checkpoint.tensors())
    idx, _ = ITEMS.batch(range(18))
    assert torch.equal(again.eval().logits(idx), model.eval().logits(idx))


@pytest.mark.parametrize("name", RECIPES)
def test_samples_are_valid_items(name: str) -> None:
    """They hold known characters only, are not empty, begin with the prefix and end in time."""
    model = small(name).eval()
    generator = torch.Generator().manual_seed(0)
    items = sample_items(
        model, VOCABULARY, 50, prefix="a", temperature=2.0, generator=generator, max_length=12
    )
    assert len(items) == 50
    assert all(1 <= len(item) <= 12 and item[0] == "a" for item in items)
    assert set("".join(items)) <= set(VOCABULARY.characters)


@pytest.mark.parametrize("name", TRAINED)
def test_noise_never_hides_where_an_item_begins(name: str) -> None:
    """With nearly every character blanked, the scores of the first one are as without noise."""
    if not hasattr(RECIPES[name].config, "noise"):
        pytest.skip("has no noise")
    changes = {"batch_norm": False} if "batch_norm" in vars(RECIPES[name].config) else {}
    model = small(name, noise=0.99, **changes)
    train(model, steps=3)
    idx, _ = ITEMS.batch(range(18))
    clean = model.eval().logits(idx)
    noisy = model.train().logits(idx)
    torch.testing.assert_close(noisy[:, 0], clean[:, 0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(noisy[:, 2:], clean[:, 2:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_autocast_changes_little(name: str) -> None:
    """In bfloat16 a model trains, and its loss is that of float32 to two digits."""
    model = small(name)
    batch = ITEMS.batch(range(18))
    expected = model.loss(*batch).item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(*batch)
    assert abs(loss.item() - expected) < 0.02
    if name in TRAINED:
        loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", TRAINED)
def test_a_model_begins_by_knowing_nothing(name: str) -> None:
    """Before training, the loss is close to that of a uniform guess: no confident nonsense."""
    model = small(name)
    loss = model.loss(*ITEMS.batch(range(18))).item()
    assert abs(loss - math.log(len(VOCABULARY))) < 0.6

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2.model import GPT
from shared.errors import ArtefactError, UsageError

MakeModel = Callable[..., GPT]
IDX = torch.arange(24).view(2, 12) % 61


@pytest.fixture
def saved(make_model: MakeModel, tmp_path: Path) -> Path:
    """Write a folder with `save_pretrained`."""
    make_model().float().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_was_saved_is_loaded(make_model: MakeModel, tmp_path: Path) -> None:
    """Same logits to the bit, in evaluation mode, dropout kept."""
    model = make_model(dropout=0.1).float()
    model.save_pretrained(tmp_path / "a" / "b")
    loaded = GPT.from_pretrained(tmp_path / "a" / "b")
    torch.testing.assert_close(loaded(IDX), model(IDX), rtol=0, atol=0)
    assert not loaded.training
    assert loaded.config == model.config


def test_a_model_without_biases_is_saved_with_zeros(make_model: MakeModel, tmp_path: Path) -> None:
    """The format always has them."""
    model = make_model(bias=False).float()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(GPT.from_pretrained(tmp_path)(IDX), model(IDX))


def test_transformers_reads_what_we_write(make_model: MakeModel, tmp_path: Path) -> None:
    """Its logits are ours to 1e-5."""
    transformers = pytest.importorskip("transformers")
    model = make_model().float()
    model.save_pretrained(tmp_path)
    theirs, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    torch.testing.assert_close(theirs.eval()(IDX).logits, model(IDX), rtol=0, atol=1e-5)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


@pytest.mark.parametrize("size", ["1GB", "8KB"])
def test_we_read_what_transformers_writes(tmp_path: Path, size: str) -> None:
    """Whole and in shards; logits to 1e-5 of transformers' own."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=61, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors").exists() == (size == "1GB")
    ours = GPT.from_pretrained(tmp_path)(IDX)
    torch.testing.assert_close(ours, theirs(IDX).logits, rtol=0, atol=1e-5)


def test_names_without_prefix_masks_and_half_precision_are_read(saved: Path) -> None:
    """As in the first GPT-2 checkpoints: `h.0...`, causal masks among the weights, fp16."""
    expected = GPT.from_pretrained(saved)(IDX)
    tensors = load_file(saved / "model.safetensors")
    old = {name.removeprefix("transformer."): t.half() for name, t in tensors.items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
    old["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    old["lm_head.weight"] = old["wte.weight"].clone()
    save_file(old, saved / "model.safetensors")
    logits = GPT.from_pretrained(saved)(IDX)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "relu"}, "activation_function='relu' is not supported"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn=True"),
        ({"model_type": "llama"}, "model_type='llama'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon=1e-06"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"n_inner": 100}, "n_inner=100"),
        ({"n_head": 3}, "n_embd=16 must be a multiple of n_head=3"),
        ({"n_layer": "x"}, "not the configuration of a GPT-2"),
        ({"n_layer": 3}, r"12 tensors do not fit.*h\.2\.attn"),
        ({"n_positions": 8}, r"1 tensors do not fit.*wpe.weight"),
    ],
)
def test_a_model_we_cannot_compute_is_refused(
    saved: Path, changes: dict[str, Any], message: str
) -> None:
    """With the setting or the tensor that does not fit."""
    change_config(saved, **changes)
    with pytest.raises(ArtefactError, match=message):
        GPT.from_pretrained(saved)


def test_an_untied_head_is_refused(saved: Path) -> None:
    """Our head is the embedding table."""
    tensors = load_file(saved / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(ArtefactError, match="not tied"):
        GPT.from_pretrained(saved)


def test_pickled_weights_are_never_opened(saved: Path) -> None:
    """A folder with only pytorch_model.bin is refused, with the way out."""
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(ArtefactError, match=r"pickle.*convert it") as error:
        GPT.from_pretrained(saved)
    assert error.value.exit_code == 4


def test_torn_weights_are_refused(saved: Path) -> None:
    """A truncated file, an empty one, and none."""
    path = saved / "model.safetensors"
    data = path.read_bytes()
    for cut in (len(data) - 5, 4, 0):
        path.write_bytes(data[:cut])
        with pytest.raises(ArtefactError, match="cannot be read"):
            GPT.from_pretrained(saved)
    path.unlink()
    with pytest.raises(ArtefactError, match=r"has no model.safetensors"):
        GPT.from_pretrained(saved)


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": "../x.safetensors"}},
        {"weight_map": {"a": "x.bin"}},
        {},
        {"weight_map": 3},
    ],
)
def test_an_index_may_name_only_its_own_safetensors(saved: Path, index: dict[str, Any]) -> None:
    """No path out of the folder, no pickle, nothing else."""
    (saved / "model.safetensors").rename(saved / "x.safetensors")
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtefactError, match=r"index.json"):
        GPT.from_pretrained(saved)


def test_a_folder_that_is_no_checkpoint_is_a_usage_error(tmp_path: Path) -> None:
    """No config.json."""
    with pytest.raises(UsageError, match="no Hugging Face checkpoint"):
        GPT.from_pretrained(tmp_path)


def test_without_the_hub_library_a_name_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is an extra."""
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="pip install"):
        GPT.from_pretrained("openai-community/gpt2")


def test_from_the_hub_only_json_and_safetensors_are_asked_for(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is no folder goes to the hub's cache."""
    hub = pytest.importorskip("huggingface_hub")
    asked: dict[str, Any] = {}

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(saved)

    monkeypatch.setattr(hub, "snapshot_download", download)
    GPT.from_pretrained("someone/gpt2")
    assert asked["name"] == "someone/gpt2"
    assert all(p.endswith((".json", ".safetensors")) for p in asked["patterns"])

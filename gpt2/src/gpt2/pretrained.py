"""GPT-2 checkpoints in Hugging Face's format, read and written without transformers.

The format is a folder with `config.json` and `model.safetensors` (or shards of it, listed in
`model.safetensors.index.json`). It holds the same tensors as `gpt2.model.GPT` under the same names,
with two differences: a prefix `transformer.`, and linear weights stored (in, out), as GPT-2's
original code had them, where PyTorch has (out, in).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from gpt2.model import GPT, GPTConfig
from shared import files
from shared.errors import ArtefactError, ResourceError, UsageError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PREFIX = "transformer."
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
# The causal mask, which old checkpoints kept among the weights.
MASKS = (".attn.bias", ".attn.masked_bias")

# Settings that would make another function of the same weights; absent means the first value.
REQUIRED: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
SIZES = {
    "vocab_size": "vocab_size",
    "block_size": "n_positions",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
}


def load(source: str | Path) -> GPT:
    """Read a GPT-2 from a folder, or from the hub by a name such as `openai-community/gpt2`.

    The model is in evaluation mode, its weights fp32. Raises UsageError when there is no such
    folder and no hub, ArtefactError when the files are damaged or of another kind of model; a
    folder that has only pickled weights (`pytorch_model.bin`) is refused.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = _from_hub(str(source))
    config = _config(folder / "config.json")
    tensors = _tensors(folder)
    head = tensors.pop("lm_head.weight", None)
    model = build(config, tensors, str(folder))
    if head is not None and not torch.equal(head.float(), model.wte.weight):
        raise ArtefactError(f"{folder}: its head is not tied to its embedding, as GPT-2's is")
    return model.eval()


def build(config: GPTConfig, tensors: dict[str, Tensor], source: str) -> GPT:
    """Make a GPT of these tensors, by our names, without drawing weights first.

    Raises ArtefactError, naming the source, when a tensor is missing, unknown or misshapen.
    """
    with torch.device("meta"):
        model = GPT(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(expected.items() ^ found.items())
        name = wrong[0][0]
        raise ArtefactError(
            f"{source}: {len({name for name, _ in wrong})} tensors do not fit the configuration,"
            f" such as {name}: {found.get(name, 'absent')}, expected {expected.get(name, 'none')}"
        )
    # A copy: the tensors of a safetensors file lie in the file, at odd addresses.
    model.load_state_dict({k: v.float().clone() for k, v in tensors.items()}, assign=True)
    return model


def save(model: GPT, folder: Path) -> None:
    """Write a folder that `load` and transformers' GPT2LMHeadModel.from_pretrained read.

    Biases that the model does without are written as zeros. Raises ResourceError when the disk
    refuses.
    """
    files.make_folder(folder)
    config = model.config
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        stored = tensor.T if name.endswith(TRANSPOSED) else tensor
        tensors[PREFIX + name] = stored.contiguous()
        if not config.bias and name.endswith(".weight") and not name.startswith(("wte", "wpe")):
            tensors[PREFIX + name.removesuffix("weight") + "bias"] = tensor.new_zeros(len(tensor))
    data = to_safetensors(tensors, metadata={"format": "pt"})
    values: dict[str, Any] = {"architectures": ["GPT2LMHeadModel"]}
    values |= {name: choices[0] for name, choices in REQUIRED.items()}
    values |= {theirs: getattr(config, ours) for ours, theirs in SIZES.items()}
    values |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
    # Their defaults are GPT-2's <|endoftext|>, an id that a smaller vocabulary does not have.
    values |= dict.fromkeys(
        ("bos_token_id", "eos_token_id"), 50256 if config.vocab_size == 50257 else None
    )
    values |= {"n_inner": None, "dtype": str(model.wte.weight.dtype).removeprefix("torch.")}
    files.write_file(folder / WEIGHTS, data)
    files.write_json(folder / "config.json", values)


def _config(path: Path) -> GPTConfig:
    """Translate their config.json. Raises ArtefactError for a model that is not plain GPT-2."""
    if not path.is_file():
        raise UsageError(f"{path.parent}: has no config.json, so it is no Hugging Face checkpoint")
    values = files.read_json(path)
    if not isinstance(values, dict):
        raise ArtefactError(f"{path}: not a table of settings")
    for name, choices in REQUIRED.items():
        if (value := values.get(name, choices[0])) not in choices:
            raise ArtefactError(f"{path}: {name}={value!r} is not supported, only {choices[0]!r}")
    try:
        sizes: dict[str, Any] = {ours: int(values[theirs]) for ours, theirs in SIZES.items()}
        config = GPTConfig(**sizes, dropout=float(values.get("resid_pdrop", 0.1)))
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path}: not the configuration of a GPT-2 ({error})") from error
    if (n_inner := values.get("n_inner")) not in (None, 4 * config.n_embd):
        raise ArtefactError(f"{path}: n_inner={n_inner} is not supported, only 4 * n_embd")
    return config


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Read all weights of a folder, by our names and in our layout."""
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    if not name.endswith(MASKS):
                        tensor = file.get_tensor(name)
                        tensor = tensor.T if name.endswith(TRANSPOSED) else tensor
                        tensors[name.removeprefix(PREFIX)] = tensor
        except (SafetensorError, OSError) as error:
            raise ArtefactError(f"{path}: cannot be read ({error})") from error
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        index = files.read_json(folder / INDEX)
        try:
            names = sorted(set(index["weight_map"].values()))
            inside = all(
                name == Path(name).name and name.endswith(".safetensors") for name in names
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtefactError(f"{folder / INDEX}: not an index of shards ({error})") from error
        if not inside:
            raise ArtefactError(f"{folder / INDEX}: names files outside its folder")
        return [folder / name for name in names]
    if (folder / "pytorch_model.bin").is_file():
        raise ArtefactError(
            f"{folder}: has only pytorch_model.bin, a pickle, which can run any code when loaded;"
            " convert it with transformers' save_pretrained(..., safe_serialization=True)"
        )
    raise ArtefactError(f"{folder}: has no {WEIGHTS}")


def _from_hub(name: str) -> Path:
    """Download a checkpoint into the hub's cache; only JSON and safetensors are asked for."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise UsageError(
            f"{name}: no such folder; for a name on the Hugging Face hub, pip install"
            " huggingface-hub first (the extra `hub`)"
        ) from None
    try:
        found: str = hub.snapshot_download(
            name, allow_patterns=["config.json", "model*.safetensors", INDEX]
        )
    except ValueError as error:  # a name that the hub cannot have
        raise UsageError(f"{name}: no such folder, and no name on the hub") from error
    except (OSError, hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ResourceError(f"{name}: no such folder, and the hub gave: {reason}") from error
    return Path(found)

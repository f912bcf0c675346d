"""The network of gpt.py as transformers' GPT-2, whose names it has, with the matrices of linear maps transposed."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tinygpt_pl.gpt import EPSILON, INIT_STD, Activation, GPTConfig

NAME, MODEL_TYPES = "GPT-2", ("gpt2",)

NEEDS: Mapping[str, tuple[object, ...]] = {
    "position": ("learned",),
    "norm": ("layernorm",),
    "qk_norm": (False,),
    "activation": ("gelu", "gelu_tanh"),
    "bigrams": (False,),
}
"""Settings that it has no choice of, and what it holds of each."""

SIZES = {"vocab_size": 50257, "n_positions": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768}
"""Names of sizes in config.json, with the values that leaving one out stands for: those of the smallest GPT-2."""

ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}

REQUIRED = {
    "layer_norm_epsilon": EPSILON,
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
"""What the network of gpt.py is; leaving one out of config.json stands for the same."""

TRANSPOSED = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
MASKS = re.compile(r"h\.\d+\.attn\.(masked_)?bias")
"""Constants that older files carry."""


def misfits(gpt: GPTConfig) -> list[str]:
    """What of a network it cannot hold, in words."""
    found = [f"{name} {getattr(gpt, name)}" for name, values in NEEDS.items() if getattr(gpt, name) not in values]
    return found + [f"n_kv_head {gpt.n_kv_head}"] * (gpt.kv_heads != gpt.n_head)


def config_of(gpt: GPTConfig) -> dict[str, Any]:
    """What config.json says of a network."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **REQUIRED,
        **{name: getattr(gpt, "block_size" if name == "n_positions" else name) for name in SIZES},
        "activation_function": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == gpt.activation),
        **dict.fromkeys(("embd_pdrop", "resid_pdrop"), gpt.dropout),
        "attn_pdrop": gpt.dropout if gpt.attn_dropout is None else gpt.attn_dropout,
        "initializer_range": INIT_STD,
    }


def settings_of(config: Mapping[str, Any]) -> GPTConfig:
    """The network that a config.json speaks of.

    Raises:
        ValueError: if gpt.py has none like it.
    """
    sizes: dict[str, Any] = {name: config.get(name, default) for name, default in SIZES.items()}
    for name, size in sizes.items():
        if type(size) is not int:
            raise ValueError(f"{name} has to be a whole number, got {size!r}")
    wide = config.get("n_inner")
    if wide is not None and wide != 4 * sizes["n_embd"]:
        raise ValueError(f"n_inner has to be four times n_embd, got {wide}")
    for name, value in REQUIRED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name} has to be {value}, got {config[name]}")
    activation = config.get("activation_function", "gelu_new")
    if activation not in [*ACTIVATIONS]:  # it may be anything, a list for instance
        raise ValueError(f"activation_function has to be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    sizes["block_size"] = sizes.pop("n_positions")
    dropout = config.get("resid_pdrop", 0.1)
    attn_dropout = config.get("attn_pdrop", 0.1)
    for name, share in (("resid_pdrop", dropout), ("attn_pdrop", attn_dropout)):
        if not isinstance(share, int | float):
            raise ValueError(f"{name} has to be a number, got {share!r}")
    own = None if attn_dropout == dropout else float(attn_dropout)
    return GPTConfig(**sizes, dropout=float(dropout), attn_dropout=own, activation=ACTIVATIONS[activation])


def exported(weights: Mapping[str, Tensor], gpt: GPTConfig) -> dict[str, Tensor]:
    """Its parameters out of ours; it adds vectors, zeros that is, where we have none."""
    zeros = {
        f"{name.removesuffix('weight')}bias": weight.new_zeros(weight.size(0))
        for name, weight in weights.items()
        if name.endswith(".weight") and name not in ("wte.weight", "wpe.weight")
    }
    return {f"transformer.{name}": _transposed(name, tensor) for name, tensor in {**zeros, **weights}.items()}


def imported(weights: Mapping[str, Tensor], gpt: GPTConfig) -> dict[str, Tensor]:
    """Our parameters out of its.

    Raises:
        ValueError: if it has one twice, or a head that is not tied.
    """
    found: dict[str, Tensor] = {}
    for prefixed, tensor in weights.items():
        name = prefixed.removeprefix("transformer.")
        if MASKS.fullmatch(name):
            continue
        if name in found:
            raise ValueError(f"{name} is there twice")
        found[name] = _transposed(name, tensor)
    head = found.pop("lm_head.weight", None)
    if head is not None and not torch.equal(head, found.get("wte.weight", torch.empty(0))):
        raise ValueError("it has a head of its own, which has to be tied to the token embedding")
    return found


def _transposed(name: str, tensor: Tensor) -> Tensor:
    return tensor.t().contiguous() if TRANSPOSED.fullmatch(name) and tensor.dim() == 2 else tensor

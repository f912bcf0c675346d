"""The network of gpt.py as transformers' Llama, or with norms of queries and keys as its Qwen3.

Both turn channels d and d + D/2 of a head together, as gpt.py does. They have a matrix for each of queries, keys and
values, and for each of SwiGLU's two maps.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tinygpt_pl.gpt import EPSILON, INIT_STD, ROTARY_BASE, GPTConfig

NAME, MODEL_TYPES = "Llama or Qwen3", ("llama", "qwen3")

NEEDS = {"position": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bigrams": False}
"""Settings that they have no choice of."""

SIZES = {
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
}
"""Our names of sizes, and theirs."""

NAMES = {
    "ln_1": "input_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "ln_2": "post_attention_layernorm",
    "mlp.c_proj": "mlp.down_proj",
}
"""Our names of a block's parameters, and theirs, where one is one."""

JOINED = {
    "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.c_fc": ("mlp.gate_proj", "mlp.up_proj"),
}
"""The same where one of ours is several of theirs, one below the other."""

OUTER = {"wte.weight": "model.embed_tokens.weight", "ln_f.weight": "model.norm.weight"}


def misfits(gpt: GPTConfig) -> list[str]:
    """What of a network they cannot hold, in words."""
    found = [f"{name} {getattr(gpt, name)}" for name, value in NEEDS.items() if getattr(gpt, name) != value]
    return found + ["qk_norm together with bias"] * (gpt.qk_norm and gpt.bias)


def config_of(gpt: GPTConfig) -> dict[str, Any]:
    """What config.json says of a network."""
    return {
        "architectures": ["Qwen3ForCausalLM" if gpt.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if gpt.qk_norm else "llama",
        **{theirs: getattr(gpt, ours) for ours, theirs in SIZES.items()},
        "num_key_value_heads": gpt.kv_heads,
        "head_dim": gpt.head_size,
        "intermediate_size": gpt.mlp_size,
        "hidden_act": "silu",
        "rms_norm_eps": EPSILON,
        "rope_theta": ROTARY_BASE,  # transformers before 5
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
        "tie_word_embeddings": True,
        "attention_bias": gpt.bias,
        **({} if gpt.qk_norm else {"mlp_bias": gpt.bias}),
        "attention_dropout": gpt.dropout if gpt.attn_dropout is None else gpt.attn_dropout,
        "initializer_range": INIT_STD,
    }


def settings_of(config: Mapping[str, Any]) -> GPTConfig:
    """The network that a config.json speaks of; dropout is that of its attention.

    Raises:
        ValueError: if gpt.py has none like it.
    """
    if config.get("rope_scaling") or config.get("use_sliding_window"):
        raise ValueError("rope_scaling and use_sliding_window have to be left out: no network here has either")
    if any(kind != "full_attention" for kind in config.get("layer_types") or ()):
        raise ValueError("layer_types have to be full_attention, all of them")
    if "rope_parameters" not in config:  # as transformers before 5 writes it
        config = {**config, "rope_parameters": {"rope_type": "default", "rope_theta": config.get("rope_theta")}}
    sizes = {ours: config.get(theirs) for ours, theirs in SIZES.items()}
    for ours, size in sizes.items():
        if type(size) is not int:
            raise ValueError(f"{SIZES[ours]} has to be a whole number, got {size!r}")
    dropout = config.get("attention_dropout", 0.0)
    if not isinstance(dropout, int | float):
        raise ValueError(f"attention_dropout has to be a number, got {dropout!r}")
    if sizes["n_kv_head"] == sizes["n_head"]:
        sizes["n_kv_head"] = None
    gpt = GPTConfig(
        **sizes,  # type: ignore[arg-type]  # whole numbers, as has been seen
        **NEEDS,  # type: ignore[arg-type]  # words of theirs
        dropout=float(dropout),
        qk_norm=config["model_type"] == "qwen3",
        bias=bool(config.get("attention_bias", False)),
    )
    for name, value in config_of(gpt).items():
        # Where the base is twice, the newer of both counts; weights are read as what they are in any case.
        if name not in ("architectures", "initializer_range", "rope_theta") and config.get(name) != value:
            raise ValueError(f"{name} has to be {value}, got {config.get(name)}")
    return gpt


def exported(weights: Mapping[str, Tensor], gpt: GPTConfig) -> dict[str, Tensor]:
    """Their parameters out of ours."""
    found: dict[str, Tensor] = {OUTER[name]: weights[name] for name in OUTER}
    for name, tensor in weights.items():
        block = re.fullmatch(r"h\.(\d+)\.(.+)\.(weight|bias)", name)
        if block:
            layer, part, kind = block.groups()
            theirs = JOINED.get(part, (NAMES.get(part, part),))
            pieces = torch.split(tensor, list(gpt.joined.get(part, [len(tensor)])))
            for their_part, piece in zip(theirs, pieces, strict=True):
                found[f"model.layers.{layer}.{their_part}.{kind}"] = piece.contiguous()
    return found


def imported(weights: Mapping[str, Tensor], gpt: GPTConfig) -> dict[str, Tensor]:
    """Our parameters out of theirs; what has no name here keeps its own.

    Raises:
        ValueError: if their head is not tied, a parameter is there twice, or has not the shape of its part.
    """
    left = dict(weights)
    head = left.pop("lm_head.weight", None)
    if head is not None and not torch.equal(head, left.get(OUTER["wte.weight"], torch.empty(0))):
        raise ValueError("it has a head of its own, which has to be tied to the token embedding")
    found: dict[str, Tensor] = {}
    layers = {match[1] for name in left if (match := re.match(r"model\.layers\.(\d+)\.", name))}
    for layer in sorted(layers):
        for ours, theirs in {**{ours: (part,) for ours, part in NAMES.items()}, **JOINED}.items():
            for kind in ("weight", "bias"):
                names = [f"model.layers.{layer}.{part}.{kind}" for part in theirs]
                if all(name in left for name in names):
                    pieces = [left.pop(name) for name in names]
                    _check_pieces(names, pieces, gpt.joined.get(ours))
                    found[f"h.{layer}.{ours}.{kind}"] = torch.cat(pieces)
    for ours, name in OUTER.items():
        if name in left:
            found[ours] = left.pop(name)
    twice = found.keys() & left.keys()
    if twice:
        raise ValueError(f"{min(twice)} is there by two names")
    return found | left


def _check_pieces(names: Sequence[str], pieces: Sequence[Tensor], rows: Sequence[int] | None) -> None:
    """See that tensors can be put one below the other, and are as many rows as they should be."""
    for name, piece, count in zip(names, pieces, rows or [-1] * len(names), strict=True):
        alike = piece.dim() > 0 and piece.shape[1:] == pieces[0].shape[1:] and piece.dtype == pieces[0].dtype
        if not alike or count not in (-1, len(piece)):
            raise ValueError(f"{name} has shape {list(piece.shape)}, which does not fit the settings")

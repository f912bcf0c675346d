"""Incremental decoding of the model of gpt.py, with a cache of keys and values.

`Decoder` has that model written out in functions, since for one token the calls of modules cost as much as the
products. A model that computes something else, such as one with an attention of your own, is run by its own forward.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinygpt_pl.generation.ensemble import Ensemble, log_mean_probability
from tinygpt_pl.gpt import (
    EPSILON,
    GPT,
    MLP,
    Block,
    CausalSelfAttention,
    Dropout,
    Uninitialised,
    activate,
    pairs,
    rotate,
    rotations,
)


class Affine(NamedTuple):
    """The weight and, if there is one, the bias of a linear map or a norm."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, module: nn.Module) -> "Affine":
        """Take them from a module; RMSNorm has no bias at all."""
        weight, bias = module.weight, getattr(module, "bias", None)
        assert isinstance(weight, Tensor)
        return cls(weight.detach(), bias.detach() if isinstance(bias, Tensor) else None)


class Layer(NamedTuple):
    """What a block is made of."""

    ln_1: Affine
    c_attn: Affine
    q_norm: Affine | None
    k_norm: Affine | None
    attn_proj: Affine
    ln_2: Affine
    c_fc: Affine
    mlp_proj: Affine

    @classmethod
    def of(cls, block: nn.Module) -> "Layer":
        """Take it from a module."""
        assert isinstance(block, Block)
        attn, mlp = block.attn, block.mlp
        return cls(
            Affine.of(block.ln_1),
            Affine.of(attn.c_attn),
            None if attn.q_norm is None else Affine.of(attn.q_norm),
            None if attn.k_norm is None else Affine.of(attn.k_norm),
            Affine.of(attn.c_proj),
            Affine.of(block.ln_2),
            Affine.of(mlp.c_fc),
            Affine.of(mlp.c_proj),
        )


def layer_norm(x: Tensor, affine: Affine) -> Tensor:
    """LayerNorm over the channels that it has weights for."""
    return torch.layer_norm(x, affine.weight.shape, affine.weight, affine.bias, EPSILON)


def rms_norm(x: Tensor, affine: Affine) -> Tensor:
    """RMSNorm, likewise."""
    return torch.rms_norm(x, affine.weight.shape, affine.weight, EPSILON)


class Decoder:
    """Reads tokens into a cache of keys and values, and scores the next; dropout is off."""

    def __init__(self, gpt: GPT, batch_size: int) -> None:
        """Make room for `batch_size` windows, of the kind and on the device of the weights."""
        config = self.config = gpt.config
        self.block_size, self.length = config.block_size, 0  # tokens: room for, and read
        self.norm = rms_norm if config.norm == "rmsnorm" else layer_norm
        self.wte = gpt.wte.weight.detach()
        self.device = self.wte.device
        self.wpe = None if gpt.wpe is None else gpt.wpe.weight.detach()
        self.bigram = None if gpt.bigram is None else gpt.bigram.weight.detach()
        self.window = torch.empty(batch_size, config.block_size, dtype=torch.long, device=self.device)
        self.rotations = rotations(0, config.block_size, config.head_size, self.wte) if self.wpe is None else None
        self.layers, self.ln_f = [Layer.of(block) for block in gpt.h], Affine.of(gpt.ln_f)
        shape = (config.n_layer, 2, batch_size, config.kv_heads, config.block_size, config.head_size)
        self.cache = self.wte.new_empty(shape)

    @torch.inference_mode()
    def read(self, idx: Tensor) -> Tensor:
        """Score what follows.

        Args:
            idx: the next token ids (B, T); with those read before, at most `block_size`.

        Returns:
            The logits (B, V) after the last of them.

        Raises:
            ValueError: for more tokens than that.
        """
        B, T = idx.shape
        C, H, K = self.config.n_embd, self.config.n_head, self.config.kv_heads
        past, end = self.length, self.length + T
        if end > self.block_size:
            raise ValueError(f"a window of {end} tokens does not fit into block_size {self.block_size}")
        seen = torch.ones(T, end, dtype=torch.bool, device=idx.device).tril(past) if past and T > 1 else None
        x = self._embedded(idx, past, end).view(B * T, C)
        rotation = None if self.rotations is None else self.rotations[:, past:end]
        new, known = self.cache[..., past:end, :].unbind(), self.cache[..., :end, :].flatten(0, 1).unbind()
        for i, layer in enumerate(self.layers):
            heads = F.linear(self.norm(x, layer.ln_1), *layer.c_attn).view(B, T, H + 2 * K, -1)
            q, kv = self._turned(heads.transpose(1, 2), layer, rotation)  # (B, H, T, D), (B, 2K, T, D)
            new[i].copy_(kv.view(B, 2, K, T, -1).transpose(0, 1))
            k, v = known[2 * i], known[2 * i + 1]  # (B, K, past + T, D)
            y = F.scaled_dot_product_attention(q, k, v, seen, is_causal=not past, enable_gqa=K < H)
            x = x + F.linear(y.transpose(1, 2).reshape(B * T, C), *layer.attn_proj)
            hidden = activate(F.linear(self.norm(x, layer.ln_2), *layer.c_fc), self.config.activation)  # (B·T, M)
            x = x + F.linear(hidden, *layer.mlp_proj)
        self.length = end
        return self.norm(x.view(B, T, C)[:, -1], self.ln_f) @ self.wte.t()

    def _embedded(self, idx: Tensor, past: int, end: int) -> Tensor:
        """Vectors (B, T, C) of the tokens (B, T) from `past` to `end`."""
        x = self.wte[idx] if self.wpe is None else self.wte[idx] + self.wpe[past:end]
        if self.bigram is None:
            return x
        self.window[:, past:end] = idx
        rows = pairs(self.window[:, max(past - 1, 0) : end], len(self.wte), len(self.bigram))
        return x + F.pad(self.bigram[rows], (0, 0, 0 if past else 1, 0))

    def _turned(self, heads: Tensor, layer: Layer, rotation: Tensor | None) -> tuple[Tensor, Tensor]:
        """Queries (B, H, T, D), and keys and values (B, 2K, T, D), of the heads (B, H + 2K, T, D) of a layer."""
        H, K = self.config.n_head, self.config.kv_heads
        if layer.q_norm is None and rotation is None:
            return heads[:, :H], heads[:, H:]
        q, k, v = heads[:, :H], heads[:, H : H + K], heads[:, H + K :]
        if layer.q_norm and layer.k_norm:
            q, k = self.norm(q, layer.q_norm), self.norm(k, layer.k_norm)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return q, torch.cat([k, v], 1)


class WholeWindow:
    """Scores the next token as `Decoder` does, by the model's own forward over all tokens so far; dropout is off."""

    def __init__(self, gpt: GPT, batch_size: int) -> None:
        """Prepare for `batch_size` windows, on the device of the weights."""
        self.gpt, self.block_size, self.length = gpt, gpt.config.block_size, 0
        self.device = next(gpt.parameters()).device
        self.window = torch.empty(batch_size, 0, dtype=torch.long, device=self.device)

    @torch.no_grad()
    def read(self, idx: Tensor) -> Tensor:
        """Score what follows; arguments, result and error are those of `Decoder.read`."""
        self.window = torch.cat([self.window[:, : self.length], idx], 1)
        self.length = self.window.size(1)
        trained = [module for module in self.gpt.modules() if module.training]
        self.gpt.eval()
        try:
            logits: Tensor = self.gpt(self.window)[0]
        finally:
            for module in trained:
                module.training = True
        return logits[:, -1]


class EnsembleDecoder:
    """Scores the next token by the mean of its probabilities in several models, each with a decoder of its own."""

    def __init__(self, members: Sequence["AnyDecoder"]) -> None:
        """Take decoders for the same number of windows, of one size, on one device."""
        self.members = members
        self.block_size: int = members[0].block_size
        self.device: torch.device = members[0].device

    @property
    def length(self) -> int:
        """Tokens read; may be set to a lower number, to read on from there."""
        return self.members[0].length

    @length.setter
    def length(self, length: int) -> None:
        for member in self.members:
            member.length = length

    def read(self, idx: Tensor) -> Tensor:
        """Score what follows; arguments, result and error are those of `Decoder.read`."""
        return log_mean_probability([member.read(idx) for member in self.members])


AnyDecoder = Decoder | WholeWindow | EnsembleDecoder

FORWARDS = {
    kind: kind.forward
    for kind in (GPT, Block, CausalSelfAttention, MLP, Dropout, nn.Embedding, nn.Linear, nn.LayerNorm, nn.RMSNorm)
}
"""The modules that `Decoder` has written out, with what they computed when it was."""


def decoder_of(gpt: GPT, batch_size: int) -> AnyDecoder:
    """The fastest decoder that computes what the model does."""
    if isinstance(gpt, Ensemble):
        return EnsembleDecoder([decoder_of(cast(GPT, member), batch_size) for member in gpt.members])
    return (Decoder if is_written_out(gpt) else WholeWindow)(gpt, batch_size)


def is_written_out(gpt: GPT) -> bool:
    """Whether each module is as GPT builds it: of the same class, with the same settings, and without hooks."""
    with torch.device("meta"), Uninitialised():
        built = GPT(gpt.config)
    pairs = zip_longest(gpt.named_modules(), built.named_modules(), fillvalue=("", None))
    return all(name == other and _traits(module) == _traits(like) for (name, module), (other, like) in pairs) and all(
        kind.forward is forward for kind, forward in FORWARDS.items()
    )


def _traits(module: nn.Module | None) -> tuple[type, dict[str, Any]]:
    """What decides what a module computes, but for the values of its tensors.

    A forward or a hook of your own is an entry of `vars`, as settings and the names of parameters are. Mode, dropout
    and compilation, which torch keeps there as well, change no result here.
    """
    entries = {} if module is None else vars(module)
    return type(module), {
        name: list(entry) if isinstance(entry, dict) else entry
        for name, entry in entries.items()
        if name not in ("training", "p", "_compiled_call_impl")
    }

"""The network of gpt.py for reading on: one token after another, with what is known of those before kept in a cache.

It is that network written out in functions, since for one token the calls of modules cost as much as the products.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinygpt_pl.gpt import EPSILON, GPT, Block, activate, rotate, rotations


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
        self.wpe = None if gpt.wpe is None else gpt.wpe.weight.detach()
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
        x = self.wte[idx] if self.wpe is None else self.wte[idx] + self.wpe[past:end]
        x = x.view(B * T, C)
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

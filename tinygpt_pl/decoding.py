"""The network of gpt.py for reading on: one token after another, with what is known of those before kept in a cache.

It is that network written out in functions, since for one token the calls of modules cost as much as the products.
"""

import torch
from torch import Tensor, addmm, layer_norm
from torch.nn import functional as F

from tinygpt_pl.gpt import APPROXIMATE, GPT


class Decoder:
    """Reads tokens into a cache of keys and values, and scores the next; dropout is off."""

    def __init__(self, gpt: GPT, batch_size: int) -> None:
        """Make room for `batch_size` windows, of the kind and on the device of the weights."""
        config = gpt.config
        self.block_size, self.length = config.block_size, 0  # tokens: room for, and read
        self.approximate = APPROXIMATE[config.activation]
        self.wte, self.wpe = gpt.wte.weight.detach(), gpt.wpe.weight.detach()
        self.blocks = [[p.detach().t() for p in block.parameters()] for block in gpt.h]  # vectors stay as they are
        self.ln_f = gpt.ln_f.weight.detach(), gpt.ln_f.bias.detach()
        shape = (config.n_layer, 2, batch_size, config.n_head, config.block_size, config.n_embd // config.n_head)
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
        _, _, _, H, _, D = self.cache.shape
        C, size = H * D, (H * D,)
        past, end = self.length, self.length + T
        if end > self.block_size:
            raise ValueError(f"a window of {end} tokens does not fit into block_size {self.block_size}")
        seen = torch.ones(T, end, dtype=torch.bool, device=idx.device).tril(past) if past and T > 1 else None
        x = (self.wte[idx] + self.wpe[past:end]).view(B * T, C)
        new, known = self.cache[..., past:end, :].unbind(), self.cache[..., :end, :].flatten(0, 1).unbind()
        for i, (w1, b1, w_qkv, b_qkv, w_out, b_out, w2, b2, w_fc, b_fc, w_proj, b_proj) in enumerate(self.blocks):
            heads = addmm(b_qkv, layer_norm(x, size, w1, b1), w_qkv).view(B, T, 3, H, D)
            qkv = heads.permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
            new[i].copy_(qkv[1:])
            y = F.scaled_dot_product_attention(qkv[0], known[2 * i], known[2 * i + 1], seen, is_causal=not past)
            x = x + addmm(b_out, y.transpose(1, 2).reshape(B * T, C), w_out)
            hidden = F.gelu(addmm(b_fc, layer_norm(x, size, w2, b2), w_fc), approximate=self.approximate)  # (B·T, 4C)
            x = x + addmm(b_proj, hidden, w_proj)
        self.length = end
        w, b = self.ln_f
        return layer_norm(x.view(B, T, C)[:, -1], size, w, b) @ self.wte.t()

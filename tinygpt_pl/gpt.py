"""The network: a decoder-only transformer, of GPT-2's shape if nothing else is chosen. It knows no text and no file.

Letters of the shape comments, here and in every other module:
B windows in a batch, T tokens in a window, C channels (`n_embd`), H heads, K heads of keys and of values (H, unless
`n_kv_head` is given), D channels of a head, M channels inside an MLP, V vocabulary.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

INIT_STD = 0.02  # GPT-2, `initializer_range`
EPSILON = 1e-5  # GPT-2, `layer_norm_epsilon`; added to a mean square before its root
ROTARY_BASE = 10_000.0  # arXiv 2104.09864, section 3.2.2
BIGRAM_ROWS = 2**16  # one for each pair of 256 tokens; of a larger vocabulary several pairs share one

Position = Literal["learned", "rotary"]
"""A vector for each place in the window, or keys and queries turned by their place (RoPE, arXiv 2104.09864)."""

Norm = Literal["layernorm", "rmsnorm"]
"""Less the mean and over the deviation (arXiv 1607.06450), or over the root of the mean square (arXiv 1910.07467)."""

Activation = Literal["gelu", "gelu_tanh", "relu2", "swiglu"]
"""GELU (arXiv 1606.08415), exact, or by the tanh that the published GPT-2 approximates it with; squared ReLU (arXiv
2109.08668); or SwiGLU, a product of two maps of which one has gone through SiLU (arXiv 2002.05202)."""


@dataclass(frozen=True)
class GPTConfig:
    """The shape of the network; the defaults are the base size.

    Raises:
        ValueError: for a size below 1, a width that the heads do not divide, a dropout outside [0, 1), a temperature
            that is not positive, a part of another name, or rotary positions with an odd number of channels in a head.
    """

    vocab_size: int = 65
    """Number of distinct tokens."""
    block_size: int = 256
    """Context length in tokens."""
    n_layer: int = 6
    """Number of transformer blocks."""
    n_head: int = 6
    """Attention heads in a block; has to divide n_embd."""
    n_embd: int = 384
    """Channels of the residual stream."""
    dropout: float = 0.2
    """Share of activations dropped in training, after the embeddings, in attention and on each residual branch."""
    attn_dropout: float | None = None
    """Share of attention weights dropped in training; that of dropout if left out."""
    train_temperature: float = 1.0
    """Temperature of the softmax in training. It is 1 in evaluation, so that below 1 the model is less confident there:
    a model that reads few data many times is overconfident (temperature scaling, arXiv 1706.04599)."""
    n_kv_head: int | None = None
    """Heads of keys and values, each for as many attention heads (grouped-query attention, arXiv 2305.13245); n_head if
    left out."""
    bigrams: bool = False
    """Whether a token's vector is joined by one of its own for each pair of it and the token before (of the n-grams of
    arXiv 2501.16975, the shortest)."""
    position: Position = "learned"
    """How a token's place is known: learned, a vector for each; or rotary, keys and queries turned by it."""
    norm: Norm = "layernorm"
    """What a branch's input goes through first: layernorm or rmsnorm."""
    qk_norm: bool = False
    """Whether each head's queries and keys go through such a norm, too (arXiv 2010.04245, 2302.05442)."""
    activation: Activation = "gelu"
    """In an MLP: gelu; gelu_tanh, its approximation in the published GPT-2; relu2; or swiglu, with inner maps of two
    thirds the width, for the same number of parameters."""
    bias: bool = True
    """Whether linear maps and LayerNorms add a vector."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_kv_head"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} has to be at least 1, got {getattr(self, name)}")
        for name, divisor in (("n_embd", self.n_head), ("n_head", self.kv_heads)):
            if getattr(self, name) % divisor:
                by = "n_head" if name == "n_embd" else "n_kv_head"
                raise ValueError(
                    f"{name} has to be a multiple of {by}, got {name} {getattr(self, name)} and {by} {divisor}"
                )
        for name in ("dropout", "attn_dropout"):
            if getattr(self, name) is not None and not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} has to be in [0, 1), got {getattr(self, name)}")
        if not 0.0 < self.train_temperature < math.inf:
            raise ValueError(f"train_temperature must be positive and finite, got {self.train_temperature}")
        for name, kind in (("position", Position), ("norm", Norm), ("activation", Activation)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} has to be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        if self.position == "rotary" and self.head_size % 2:
            raise ValueError(f"rotary positions turn pairs of channels, but a head has {self.head_size}")

    @property
    def head_size(self) -> int:
        """Channels of a head, D."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Heads of keys and of values, K."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def mlp_size(self) -> int:
        """Channels inside an MLP, M: four times C, or two thirds of that for SwiGLU, which has three matrices."""
        return 4 * self.n_embd if self.activation != "swiglu" else 8 * -(-self.n_embd // 3)

    @property
    def bigram_rows(self) -> int:
        """Rows of the embedding of pairs of tokens."""
        return min(self.vocab_size**2, BIGRAM_ROWS) if self.bigrams else 0

    @property
    def joined(self) -> dict[str, tuple[int, ...]]:
        """Matrices of a block that are several, one below the other, with the rows of each."""
        kv = self.kv_heads * self.head_size
        gated = {"mlp.c_fc": (self.mlp_size, self.mlp_size)} if self.activation == "swiglu" else {}
        return {"attn.c_attn": (self.n_embd, kv, kv), **gated}


class Dropout(nn.Dropout):
    """Dropout that costs a fraction of torch's on a processor, where torch draws a number for each element in turn.

    Four elements share one number there, 16 bits each; the rate is thus rounded to a multiple of 2**-16, below 1. In a
    compiled network each element's bits are a hash of its place, which is computed on the way and never stored.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements in training, and scale the others so that their expectation stays."""
        if input.device.type != "cpu" or not self.training or not self.p:
            return super().forward(input)
        if torch.compiler.is_compiling() and input.numel() < 2**31:
            least = min(round(self.p * 2**32), 2**32 - 1) - 2**31
            return torch.where(hashed_places(input) >= least, input / (1 - self.p), 0.0)
        drop, n = min(round(self.p * 2**16), 2**16 - 1), input.numel()
        bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = torch.empty_like(input, memory_format=torch.contiguous_format)
        torch.ge(bits[:n].view(input.shape), drop - 2**15, out=kept)
        return input * kept.mul_(2**16 / (2**16 - drop))


def hashed_places(like: Tensor) -> Tensor:
    """Random 32-bit integers of a tensor's shape: its places, hashed with two keys from torch's generator.

    Two multiplications between shifts, with the constants of least bias that C. Wellons' search for such hashes
    (github.com/skeeto/hash-prospector, "lowbias32") has found.
    """
    first, second = torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32)
    bits: Tensor = torch.arange(like.numel(), dtype=torch.int32).view(like.shape) ^ first
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * 0x21F0AAAD  # a shift of signed numbers brings their sign along
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * (0xD35A2D97 - 2**32) ^ second
    return bits ^ ((bits >> 15) & 0x1FFFF)


def make_norm(config: GPTConfig, channels: int) -> nn.RMSNorm | nn.LayerNorm:
    """A layer of the chosen kind over the last `channels`."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(channels, EPSILON)
    return nn.LayerNorm(channels, EPSILON, bias=config.bias)


def rotations(first: int, end: int, D: int, like: Tensor) -> Tensor:
    """Cosines and sines (2, T, D) by which positions from `first` up to `end` turn the channels of a head.

    Channels d and d + D/2 are the pair that turns by position · 10000^(-2d/D), as in GPT-NeoX and Llama; the paper
    pairs 2d with 2d + 1, which is the same for a network that has learnt it so. The first half's sine is negative.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)  # half precision cannot tell position 2049 from 2050
    rates = ROTARY_BASE ** (-torch.arange(0, D, 2, device=like.device, dtype=dtype) / D)  # (D/2,)
    angles = torch.arange(first, end, device=like.device, dtype=dtype)[:, None] * rates  # (T, D/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the heads (B, H, T, D) by `rotations` (2, T, D)."""
    cos, sin = rotation.unbind()
    return (x * cos + x.roll(x.size(-1) // 2, -1) * sin).to(x.dtype)


def pairs(idx: Tensor, vocab_size: int, rows: int) -> Tensor:
    """The row (B, T - 1) that each token (B, T) but the first has together with the one before it.

    With fewer rows than pairs it is a remainder, so that several pairs share one, as in the source of `bigrams`.
    """
    return (idx[:, :-1] * vocab_size + idx[:, 1:]) % rows


def activate(hidden: Tensor, activation: Activation) -> Tensor:
    """The activations (…, M) of an MLP from (…, M), or from (…, 2M) for SwiGLU."""
    if activation == "swiglu":
        gate, up = hidden.chunk(2, -1)
        return F.silu(gate) * up
    if activation == "relu2":
        return F.relu(hidden).square()
    return F.gelu(hidden, approximate="tanh" if activation == "gelu_tanh" else "none")


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position sees itself and what came before it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        H, K, D = config.n_head, config.kv_heads, config.head_size
        self.n_head, self.n_kv_head = H, K
        self.c_attn = nn.Linear(config.n_embd, (H + 2 * K) * D, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.q_norm = make_norm(config, D) if config.qk_norm else None
        self.k_norm = make_norm(config, D) if config.qk_norm else None
        self.attn_dropout = Dropout(config.dropout if config.attn_dropout is None else config.attn_dropout)
        self.resid_dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        """Mix (B, T, C) along T; `rotations` (2, T, D) turn queries and keys."""
        B, T, C = x.shape
        H, K = self.n_head, self.n_kv_head
        heads = self.c_attn(x).view(B, T, H + 2 * K, -1).transpose(1, 2)  # (B, H + 2K, T, D)
        q, k, v = heads.split((H, K, K), 1)  # (B, H, T, D), and (B, K, T, D) twice
        if self.q_norm and self.k_norm:
            exact = self.q_norm.weight.dtype  # in mixed precision q and k have less
            q, k = self.q_norm(q.to(exact)), self.k_norm(k.to(exact))
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        dropout = self.attn_dropout.p if self.training else 0.0
        if x.device.type == "cpu" and (dropout or (self.training and v.dtype == torch.bfloat16)):
            # torch's fused kernel for processors knows no dropout, and in bfloat16 its backward is slow.
            k, v = (x.repeat_interleave(H // K, 1) for x in (k, v))  # (B, H, T, D)
            scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (B, H, T, T)
            scores += torch.full((T, T), -math.inf, dtype=scores.dtype).triu(1)
            y = self.attn_dropout(scores.softmax(-1)) @ v  # (B, H, T, D)
        else:
            y = F.scaled_dot_product_attention(q, k, v, None, dropout, is_causal=True, enable_gqa=K < H)
        y = y.transpose(1, 2).reshape(B, T, C)  # (B, T, C)
        out: Tensor = self.resid_dropout(self.c_proj(y))
        return out


class MLP(nn.Module):
    """Two linear maps with an activation between them, wider inside; SwiGLU's first is two in one."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        gated = 2 if config.activation == "swiglu" else 1
        self.c_fc = nn.Linear(config.n_embd, gated * config.mlp_size, bias=config.bias)
        self.c_proj = nn.Linear(config.mlp_size, config.n_embd, bias=config.bias)
        self.dropout = Dropout(config.dropout)
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        """Map every position of (B, T, C) on its own."""
        hidden = activate(self.c_fc(x), self.activation)  # (B, T, M)
        out: Tensor = self.dropout(self.c_proj(hidden))
        return out


class Block(nn.Module):
    """Attention, then MLP, each on a normalised copy of the residual stream (pre-LN)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = make_norm(config, config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = make_norm(config, config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.attn(self.ln_1(x), rotation)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class GPT(nn.Module):
    """Token ids in, logits of each next token out. Parameters are named as in GPT-2."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.position == "learned" else None
        self.bigram = nn.Embedding(config.bigram_rows, config.n_embd) if config.bigrams else None
        self.drop = Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = make_norm(config, config.n_embd)
        # The head has no parameter of its own, so the tied matrix can be neither stored nor counted nor decayed twice.
        for name, parameter in self.named_parameters():
            self._init_parameter(name, parameter)

    def _init_parameter(self, name: str, parameter: Tensor) -> None:
        # GPT-2: a residual stream that 2·n_layer branches add to keeps its scale if their last matrices shrink.
        if name.endswith("c_proj.weight"):
            nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * self.config.n_layer))
        elif parameter.dim() >= 2:
            nn.init.normal_(parameter, std=INIT_STD)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Score every next token.

        Args:
            idx: token ids (B, T), T at most `block_size`.
            targets: the ids that follow, (B, T).

        Returns:
            The logits (B, T, V), and with targets the mean cross-entropy over all B·T of them, in nats per token; in
            training that of logits divided by `train_temperature`.

        Raises:
            ValueError: if T exceeds `block_size`.
        """
        _, T = idx.shape
        if T > self.config.block_size:
            raise ValueError(f"a window of {T} tokens does not fit into block_size {self.config.block_size}")
        x = self.wte(idx)  # (B, T, C)
        if self.bigram is not None:  # the first token of a window has none
            x = x + F.pad(self.bigram(pairs(idx, self.config.vocab_size, self.config.bigram_rows)), (0, 0, 1, 0))
        rotation = rotations(0, T, self.config.head_size, x) if self.wpe is None else None
        x = self.drop(x if self.wpe is None else x + self.wpe.weight[:T])
        for block in self.h:
            x = block(x, rotation)
        logits = F.linear(self.ln_f(x), self.wte.weight)  # (B, T, V)
        if targets is None:
            return logits, None
        # Half-precision numbers near 4 are 0.03 apart: too coarse for a loss that is read to four digits.
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.training and self.config.train_temperature != 1.0:
            scores = scores / self.config.train_temperature
        return logits, F.cross_entropy(scores.flatten(0, 1), targets.flatten())  # (B·T, V), (B·T,)

    def flops_per_token(self) -> int:
        """Floating-point operations of a training step per token, at full windows.

        6 for each weight of a matrix product and 12·n_layer·n_embd·block_size for attention, of which the masked half
        is counted too, as is usual (PaLM, arXiv 2204.02311, appendix B).
        """
        looked_up = ("wpe.", "bigram.")  # as wte is, too; but that is the head besides
        products = [p for name, p in self.named_parameters() if p.dim() >= 2 and not name.startswith(looked_up)]
        matrices = sum(p.numel() for p in products)
        return 6 * matrices + 12 * self.config.n_layer * self.config.n_embd * self.config.block_size


class Uninitialised(TorchFunctionMode):
    """Leaves parameters as they are in modules built under it; to draw them on "meta" would import torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def parameter_count(config: GPTConfig) -> int:
    """Number of parameters of a model of this shape, counted without memory for them.

    Raises:
        ValueError: if there are more than torch can count.
    """
    try:
        with torch.device("meta"), Uninitialised():
            one_block = GPT(replace(config, n_layer=1))  # all blocks are alike
    except (RuntimeError, OverflowError):
        raise ValueError(f"a model with n_embd {config.n_embd} has more parameters than can be counted") from None
    total, block = (sum(p.numel() for p in part.parameters()) for part in (one_block, one_block.h[0]))
    return total + (config.n_layer - 1) * block

"""The network: a decoder-only transformer of GPT-2's shape. It knows no text, no file, no optimizer.

Letters of the shape comments, here and in every other module:
B windows in a batch, T tokens in a window, C channels (`n_embd`), H heads, D channels of a head, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INIT_STD = 0.02  # GPT-2, `initializer_range`

Activation = Literal["gelu", "gelu_tanh"]
"""GELU (arXiv 1606.08415), exact, or by the tanh that the published GPT-2 approximates it with."""

APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}
"""The same in torch's words."""


@dataclass(frozen=True)
class GPTConfig:
    """The shape of the network; the defaults are the base size.

    Raises:
        ValueError: for a size below 1, a width that the heads do not divide, a dropout outside [0, 1), or an activation
            of another name.
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
    activation: Activation = "gelu"
    """Between the two maps of an MLP: gelu, or gelu_tanh, its approximation in the published GPT-2."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} has to be at least 1, got {getattr(self, name)}")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd has to be a multiple of n_head, got n_embd {self.n_embd} and n_head {self.n_head}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout has to be in [0, 1), got {self.dropout}")
        if self.activation not in get_args(Activation):
            raise ValueError(f"activation has to be one of {', '.join(get_args(Activation))}, got {self.activation!r}")


class Dropout(nn.Dropout):
    """Dropout that costs a fraction of torch's on a processor, where torch draws a number for each element in turn.

    Four elements share one number there, 16 bits each; the rate is thus rounded to a multiple of 2**-16, below 1.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements in training, and scale the others so that their expectation stays."""
        if input.device.type != "cpu" or not self.training or not self.p:
            return super().forward(input)
        drop, n = min(round(self.p * 2**16), 2**16 - 1), input.numel()
        bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = torch.empty_like(input, memory_format=torch.contiguous_format)
        torch.ge(bits[:n].view(input.shape), drop - 2**15, out=kept)
        return input * kept.mul_(2**16 / (2**16 - drop))


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position sees itself and what came before it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.attn_dropout = Dropout(config.dropout)
        self.resid_dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, T, C) along T."""
        B, T, C = x.shape
        heads = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)  # (B, T, 3, H, D)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        dropout = self.attn_dropout.p if self.training else 0.0
        if dropout and x.device.type == "cpu":
            # torch's fused kernel for processors knows no dropout.
            scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (B, H, T, T)
            scores += torch.full((T, T), -math.inf, dtype=scores.dtype).triu(1)
            y = self.attn_dropout(scores.softmax(-1)) @ v  # (B, H, T, D)
        else:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)  # (B, T, C)
        out: Tensor = self.resid_dropout(self.c_proj(y))
        return out


class MLP(nn.Module):
    """Two linear maps with a GELU between them, four times as wide inside."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = Dropout(config.dropout)
        self.approximate = APPROXIMATE[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Map every position of (B, T, C) on its own."""
        hidden = F.gelu(self.c_fc(x), approximate=self.approximate)  # (B, T, 4C)
        out: Tensor = self.dropout(self.c_proj(hidden))
        return out


class Block(nn.Module):
    """Attention, then MLP, each on a normalised copy of the residual stream (pre-LN)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class GPT(nn.Module):
    """Token ids in, logits of each next token out. Parameters are named as in GPT-2."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
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
            The logits (B, T, V), and with targets the mean cross-entropy over all B·T of them, in nats per token.

        Raises:
            ValueError: if T exceeds `block_size`.
        """
        _, T = idx.shape
        if T > self.config.block_size:
            raise ValueError(f"a window of {T} tokens does not fit into block_size {self.config.block_size}")
        x = self.drop(self.wte(idx) + self.wpe.weight[:T])  # (B, T, C)
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)  # (B, T, V)
        if targets is None:
            return logits, None
        # Half-precision numbers near 4 are 0.03 apart: too coarse for a loss that is read to four digits.
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits, F.cross_entropy(scores.flatten(0, 1), targets.flatten())  # (B·T, V), (B·T,)

    def flops_per_token(self) -> int:
        """Floating-point operations of a training step per token, at full windows.

        6 for each weight of a matrix product and 12·n_layer·n_embd·block_size for attention, of which the masked half
        is counted too, as is usual (PaLM, arXiv 2204.02311, appendix B).
        """
        matrices = sum(p.numel() for p in self.parameters() if p.dim() >= 2) - self.wpe.weight.numel()
        return 6 * matrices + 12 * self.config.n_layer * self.config.n_embd * self.config.block_size


def parameter_count(config: GPTConfig) -> int:
    """Parameters of a network of this shape, without building it."""
    C = config.n_embd
    block = 12 * C * C + 13 * C  # four matrices, their biases, two LayerNorms
    return config.n_layer * block + (config.vocab_size + config.block_size + 2) * C

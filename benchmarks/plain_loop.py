"""The recipe as a plain PyTorch loop, the way a first course writes it: what `train_speed.py` measures against.

Explicit attention, float32, batches stacked from a list of slices, an optimizer with torch's defaults. It knows nothing
of tinygpt_pl, and prints `iter N` each `--log_interval` steps; then it times a few batches of an evaluation.

    python benchmarks/plain_loop.py --corpus data/tinyshakespeare.txt --max_steps 20
"""

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Causal attention, written out."""

    mask: Tensor

    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float) -> None:
        super().__init__()
        self.n_head = n_head
        self.qkv, self.proj = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)
        self.attn_dropout, self.resid_dropout = nn.Dropout(dropout), nn.Dropout(dropout)
        self.register_buffer("mask", torch.tril(torch.ones(block_size, block_size)))

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, T, C) along T."""
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, -1).transpose(1, 2) for part in self.qkv(x).split(C, dim=2))
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(k.size(-1))  # (B, H, T, T)
        scores = scores.masked_fill(self.mask[:T, :T] == 0, float("-inf"))
        weights = self.attn_dropout(F.softmax(scores, dim=-1))
        y = (weights @ v).transpose(1, 2).contiguous().view(B, T, C)
        out: Tensor = self.resid_dropout(self.proj(y))
        return out


class Block(nn.Module):
    """Pre-LN: attention, then MLP."""

    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.attn = Attention(n_embd, n_head, block_size, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd), nn.GELU(), nn.Linear(4 * n_embd, n_embd), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class GPT(nn.Module):
    """Embeddings, blocks and the tied head."""

    def __init__(self, vocab_size: int, args: argparse.Namespace) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, args.n_embd), nn.Embedding(args.block_size, args.n_embd)
        self.drop = nn.Dropout(args.dropout)
        self.blocks = nn.Sequential(
            *(Block(args.n_embd, args.n_head, args.block_size, args.dropout) for _ in range(args.n_layer))
        )
        self.ln_f = nn.LayerNorm(args.n_embd)
        self.head = nn.Linear(args.n_embd, vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith(("proj.weight", "mlp.2.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * args.n_layer))
            elif parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        self.head.weight = self.tokens.weight

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy of (B, T) targets, in nats."""
        positions = torch.arange(idx.size(1), device=idx.device)
        x = self.drop(self.tokens(idx) + self.positions(positions))
        logits = self.head(self.ln_f(self.blocks(x)))  # (B, T, V)
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


def learning_rate(it: int, max_steps: int, max_lr: float = 3e-4, min_lr: float = 3e-5, warmup: int = 100) -> float:
    """Linear warm-up, then half a cosine."""
    if it < warmup:
        return max_lr * (it + 1) / warmup
    return min_lr + 0.5 * (1 + math.cos(math.pi * (it - warmup) / max(max_steps - warmup, 1))) * (max_lr - min_lr)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dropout", type=float, default=0.2)
    sizes = {"max_steps": 5000, "log_interval": 10, "eval_iters": 0, "batch_size": 64, "block_size": 256}
    for name, value in {**sizes, "n_layer": 6, "n_head": 6, "n_embd": 384}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()

    torch.manual_seed(1337)
    text = args.corpus.read_text()
    ids = {character: i for i, character in enumerate(sorted(set(text)))}
    data = torch.tensor([ids[character] for character in text])
    data = data[: int(0.9 * len(data))]

    def get_batch() -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(data) - args.block_size, (args.batch_size,))
        x = torch.stack([data[i : i + args.block_size] for i in starts])
        y = torch.stack([data[i + 1 : i + args.block_size + 1] for i in starts])
        return x.to(args.device), y.to(args.device)

    model = GPT(len(ids), args).to(args.device)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95))
    for it in range(args.max_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(it, args.max_steps)
        x, y = get_batch()
        loss = model(x, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if it % args.log_interval == 0:
            print(f"iter {it} | loss {loss.item():.4f}", flush=True)
    model.eval()
    for _ in range(args.eval_iters):
        start = time.perf_counter()
        with torch.no_grad():
            model(*get_batch()).item()
        print(f"evaluation: {time.perf_counter() - start:.4f} s a batch")


if __name__ == "__main__":
    main()

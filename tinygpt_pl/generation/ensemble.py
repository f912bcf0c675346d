"""Several models as one, whose probabilities are the mean of theirs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinygpt_pl.gpt import GPT


class Ensemble(GPT):
    """A model whose probability of each next token is the mean of those that its members give it.

    Its loss is never above the mean of theirs, and lower the more they differ, as models of different seeds do
    (Lakshminarayanan et al., arXiv 1612.01474). It evaluates and generates, at the cost of all members together.

    Raises:
        ValueError: without members, or if their vocabularies or windows differ in size.
    """

    def __init__(self, members: Sequence[GPT]) -> None:
        nn.Module.__init__(self)  # GPT's own __init__ would add weights
        if not members:
            raise ValueError("an ensemble needs at least one member")
        for name in ("vocab_size", "block_size"):
            sizes = {getattr(member.config, name) for member in members}
            if len(sizes) > 1:
                raise ValueError(f"the members of an ensemble must have one {name}, got {sorted(sizes)}")
        self.config = members[0].config
        self.members = nn.ModuleList(members)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Score every next token, as `GPT.forward` does; the logits are logarithms of probabilities."""
        logits = log_mean_probability([member(idx)[0] for member in self.members])  # (B, T, V)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # (B·T, V), (B·T,)


def log_mean_probability(logits: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean probability, in float32 or better, of several logits of one shape (…, V)."""
    exact = [one.to(torch.promote_types(one.dtype, torch.float32)).log_softmax(-1) for one in logits]
    return torch.stack(exact).logsumexp(0) - math.log(len(exact))

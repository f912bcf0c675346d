"""What a loss curve tells: plain functions from numbers to findings."""

import math

from tinygpt_pl.gpt import INIT_STD


class WrongStart(RuntimeError):
    """The loss of the untrained network is not that of a uniform guess."""


def expected_start(vocab_size: int) -> float:
    """Loss in nats of a uniform guess among the tokens, ln V."""
    return math.log(vocab_size)


def check_start(loss: float, vocab_size: int, n_embd: int) -> None:
    """Compare the loss at iteration 0, in nats, with ln V.

    Logits of a fresh network are not all equal: their variance is about n_embd·INIT_STD**2, which costs half of that in
    loss. The tolerance is that variance and half a nat.

    Raises:
        WrongStart: if the loss is further away than that, or not a number.
    """
    expected = expected_start(vocab_size)
    if not abs(loss - expected) <= 0.5 + n_embd * INIT_STD**2:
        raise WrongStart(
            f"the loss starts at {loss:.4f}, far from ln({vocab_size}) = {expected:.4f}, where an untrained network "
            "belongs.\nSomething is broken before the first step: look at the vocabulary size, the reduction of the "
            "loss, the shift of the targets and the initialisation."
        )

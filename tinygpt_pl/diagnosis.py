"""What a loss curve tells: plain functions from numbers to findings."""

import math


class WrongStart(RuntimeError):
    """The loss of the untrained network is not that of a uniform guess."""


def expected_start(vocab_size: int) -> float:
    """Loss in nats of a uniform guess among the tokens, ln V."""
    return math.log(vocab_size)


def check_start(loss: float, vocab_size: int, logit_variance: float) -> None:
    """Compare the loss at iteration 0 with ln V.

    The logits of a fresh network are not all equal, and half of their variance adds to the loss; besides, through a
    tied head a token is taken to repeat itself, which a text full of blanks rewards. The tolerance is that variance and
    one nat.

    Args:
        loss: of the untrained network, in nats per token.
        vocab_size: V.
        logit_variance: of the logits at one position of a fresh network, about n_embd·INIT_STD**2.

    Raises:
        WrongStart: if the loss is further away than that, or not a number.
    """
    expected = expected_start(vocab_size)
    if not abs(loss - expected) <= 1.0 + logit_variance:
        raise WrongStart(
            f"the loss starts at {loss:.4f}, far from ln({vocab_size}) = {expected:.4f}, where an untrained network "
            "belongs.\nSomething is broken before the first step: look at the vocabulary size, the reduction of the "
            "loss, the shift of the targets and the initialisation."
        )

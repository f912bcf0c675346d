"""What a run is stopped for: a wrong start, a loss or gradient that has left all bounds, and a signal."""

import math
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


class Unhealthy(RuntimeError):
    """A run that is not worth going on with; the message has what was seen, and on a second line what to try."""


class WrongStart(Unhealthy):
    """The loss of the untrained network is not that of a uniform guess."""


class Diverged(Unhealthy):
    """The loss or its gradient left all bounds."""


class Interrupted(Exception):
    """A signal has ended the run between two optimizer steps, and its state is saved in `path`."""

    def __init__(self, signum: int, iteration: int, path: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} at iteration {iteration}")
        self.signum, self.path = signum, path


class Misused(Exception):
    """A callback or plugin of the user's that Lightning cannot use, found while it runs."""

    def __init__(self, message: str, code: int = 1) -> None:
        """Keep the exit code.

        Args:
            message: what is wrong.
            code: 2 for a wrong setting that was found before the first optimizer step, else 1.
        """
        super().__init__(message)
        self.code = code


def expected_start(vocab_size: int) -> float:
    """Loss in nats of a uniform guess among the tokens, ln V."""
    return math.log(vocab_size)


def wrong_start(loss: float, vocab_size: int, logit_variance: float) -> bool:
    """Whether the loss at iteration 0 is not that of an untrained network.

    The logits of a fresh network are not all equal, and half of their variance adds to the loss; besides, through a
    tied head a token is taken to repeat itself, which a text full of blanks rewards. The tolerance is that variance and
    one nat.

    Args:
        loss: of the untrained network, in nats per token.
        vocab_size: V.
        logit_variance: of the logits at one position of a fresh network, about n_embd·INIT_STD**2.
    """
    return not abs(loss - expected_start(vocab_size)) <= 1.0 + logit_variance


def check_start(loss: float, vocab_size: int, logit_variance: float) -> None:
    """Compare the loss at iteration 0 with ln V; the arguments are those of `wrong_start`.

    Raises:
        WrongStart: if it is wrong.
    """
    if wrong_start(loss, vocab_size, logit_variance):
        expected = expected_start(vocab_size)
        raise WrongStart(
            f"the loss starts at {loss:.4f}, far from ln({vocab_size}) = {expected:.4f}, where an untrained network "
            "belongs.\nSomething is broken before the first step: look at the vocabulary size, the reduction of the "
            "loss, the shift of the targets and the initialisation."
        )


CALMER = (
    "Try a lower --model.optim.max_lr, a longer --model.optim.warmup_iters, or --trainer.precision 32-true if it was "
    "lower."
)


def check_step(it: int, loss: float, grad_norm: float, lr: float) -> None:
    """Look at an optimizer step before it is taken.

    Args:
        it: optimizer steps taken so far.
        loss: of the step's windows, in nats per token.
        grad_norm: of its gradient, before clipping.
        lr: the learning rate that it would be taken with.

    Raises:
        Diverged: if the loss or the norm is not finite.
    """
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise Diverged(
            f"at iteration {it} the loss is {loss:.4f} and the gradient norm {grad_norm:.4g}, at learning rate "
            f"{lr:.2e}; the step was not taken.\n{CALMER}"
        )


class StepGuard:
    """Stops a run at its first optimizer step whose loss or gradient norm is not finite.

    Looking at a number waits for the device that computes it. A GPU should not be waited for at each step, so `defer`
    keeps the numbers there: the first failure is remembered on the device, and `check` raises when it is asked.
    """

    def __init__(self) -> None:
        self.failed: Tensor | None = None
        self.first = torch.empty(0)

    def defer(self, device: torch.device) -> Tensor:
        """Keep failures on the device from now on.

        Returns:
            A scalar that is 0.0 and becomes 1.0, in place, with the first failure: the flag of an optimizer that skips
            steps by itself.
        """
        self.failed = torch.zeros((), device=device)
        self.first = torch.full((3,), math.nan, device=device)  # iteration, loss and norm of the first failure
        return self.failed

    def see(self, it: int, loss: Tensor, grad_norm: Tensor, lr: float) -> None:
        """Look at an optimizer step before it is taken; the arguments are those of `check_step`.

        Raises:
            Diverged: as `check_step` does, unless failures are kept on the device.
        """
        if self.failed is None:
            check_step(it, loss.item(), grad_norm.item(), lr)
        else:
            step = torch.stack([torch.full_like(loss, it), loss, grad_norm]).to(self.first)
            self.first = torch.where((self.failed == 0) & ~step.isfinite().all(), step, self.first)
            self.failed.copy_(self.first[0].isfinite())

    def check(self, lr: Callable[[int], float]) -> None:
        """Wait for the device, and see whether all steps so far were finite.

        Args:
            lr: the learning rate of an iteration.

        Raises:
            Diverged: if one was not.
        """
        if self.failed is not None and self.failed.item():
            it, loss, grad_norm = self.first.tolist()
            check_step(int(it), loss, grad_norm, lr(int(it)))


def check_evaluation(it: int, train_loss: float, val_loss: float, vocab_size: int, lr: float) -> None:
    """Look at an evaluation before anything is saved.

    A network that knows nothing scores ln V. One that is four times as bad on the very text it is trained on has been
    thrown off for good; on the validation split it may merely have learnt the other one by heart.

    Args:
        it: optimizer steps taken.
        train_loss: of the training split, in nats per token.
        val_loss: of the validation split, in nats per token.
        vocab_size: V.
        lr: the learning rate of the next step.

    Raises:
        Diverged: if the training loss is more than 4·ln V (and more than 4), or one of them not finite.
    """
    uniform = expected_start(vocab_size)
    if not (train_loss <= 4.0 * max(uniform, 1.0) and math.isfinite(val_loss)):
        raise Diverged(
            f"at iteration {it} the loss is {train_loss:.4f} in training and {val_loss:.4f} in validation, at learning "
            f"rate {lr:.2e}; a uniform guess has {uniform:.4f}.\n{CALMER}"
        )

"""Classes of a script of one's own, in place of TinyGPT and TextDataModule, and the checkpoints that they write."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinygpt_pl.gpt import GPT
from tinygpt_pl.runs.checkpoint import Checkpoint, DamagedCheckpoint, check_weights, load_network
from tinygpt_pl.system.terminal import warn
from tinygpt_pl.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # importing Lightning takes seconds, and only who brings a class of theirs has done so
    from tinygpt_pl.data import TextDataModule
    from tinygpt_pl.module import TinyGPT


@dataclass(frozen=True)
class Own:
    """The classes that `main` was given; None stands for the package's."""

    module: "type[TinyGPT] | None" = None
    data: "type[TextDataModule] | None" = None

    def lacks(self, checkpoint: Checkpoint) -> list[str]:
        """What `main` would need, to know all that a checkpoint computes, as arguments of Python."""
        content: Mapping[str, Any] = {**checkpoint.content}
        given = {"module": self.module, "data": self.data}
        names = {part: content[part] for part in given if part in content}
        return [f"{part}={name}" for part, name in names.items() if name != getattr(given[part], "__qualname__", "")]

    def check(self, checkpoint: Checkpoint, *, trains: bool = False) -> None:
        """Say that a checkpoint is of other classes.

        Raises:
            ValueError: if it is to be trained on, which they may do in another way.
        """
        if lacking := ", ".join(self.lacks(checkpoint)):
            message = f"{checkpoint.path} is of a script that calls main({lacking})"
            if trains:
                raise ValueError(f"{message}, and only there it can be trained on")
            warn(f"{message}: what its classes do in another way than TinyGPT is left out here")

    @contextmanager
    def building(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Say of weights that do not fit that they are those of another class, if they are.

        Raises:
            ValueError: in place of DamagedCheckpoint.
        """
        try:
            yield
        except DamagedCheckpoint:
            lacking = ", ".join(self.lacks(checkpoint))
            if not lacking:
                raise
            raise ValueError(
                f"{checkpoint.path} is of a script that calls main({lacking}), which alone can build its model"
            ) from None

    def model_of(self, checkpoint: Checkpoint) -> tuple[GPT, Tokenizer]:
        """The model of a checkpoint as `load_network` gives it, built by the class of one's own if that is its own.

        Raises:
            DamagedCheckpoint: if the weights are not those of such a model.
            ValueError: if they are of another class's.
        """
        if self.module is None or checkpoint.content.get("module") != self.module.__qualname__:
            with self.building(checkpoint):
                return load_network(checkpoint)
        module = self.module(**checkpoint.content["hyper_parameters"])
        check_weights(checkpoint.content["state_dict"], module.state_dict())
        module.load_state_dict(checkpoint.content["state_dict"])
        return module.gpt.eval(), checkpoint.tokenizer


PACKAGE = Own()
"""TinyGPT and TextDataModule themselves."""

"""The module and data classes that the commands use: TinyGPT and TextDataModule, or subclasses given to `main`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinygpt_pl.gpt import GPT
from tinygpt_pl.runs.checkpoint import Checkpoint, DamagedCheckpoint, check_weights, load_network
from tinygpt_pl.system.terminal import warn
from tinygpt_pl.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # importing Lightning takes seconds, which `generate` without subclasses does not need
    from tinygpt_pl.data import TextDataModule
    from tinygpt_pl.module import TinyGPT


@dataclass(frozen=True)
class Classes:
    """The subclasses given to `main`; None for TinyGPT and TextDataModule themselves."""

    module: "type[TinyGPT] | None" = None
    data: "type[TextDataModule] | None" = None

    def missing(self, checkpoint: Checkpoint) -> str:
        """The arguments of `main` that a checkpoint of subclasses needs and that were not given, as Python source."""
        content: Mapping[str, Any] = {**checkpoint.content}
        given = {"module": self.module, "data": self.data}
        names = {part: content[part] for part in given if part in content}
        return ", ".join(
            f"{part}={name}" for part, name in names.items() if name != getattr(given[part], "__qualname__", "")
        )

    def check(self, checkpoint: Checkpoint, *, trains: bool = False) -> None:
        """Warn about a checkpoint of other subclasses, whose overridden methods are not used here.

        Raises:
            ValueError: if training would resume from it.
        """
        if missing := self.missing(checkpoint):
            message = f"{checkpoint.path} was written by a script that calls main({missing})"
            if trains:
                raise ValueError(f"{message}; resume it with that script")
            warn(f"{message}; what its subclasses override is not used here")

    @contextmanager
    def building(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Turn DamagedCheckpoint into an error that names the missing subclasses, if any are missing.

        Raises:
            ValueError: in place of DamagedCheckpoint.
        """
        try:
            yield
        except DamagedCheckpoint:
            missing = self.missing(checkpoint)
            if not missing:
                raise
            raise ValueError(
                f"{checkpoint.path} was written by a script that calls main({missing}), and TinyGPT cannot load its "
                "weights; use that script"
            ) from None

    def load_model(self, checkpoint: Checkpoint) -> tuple[GPT, Tokenizer]:
        """Load a model in eval mode and its tokenizer; the subclass that wrote the checkpoint builds the model.

        Raises:
            DamagedCheckpoint: if the weights do not fit the model.
            ValueError: if only a missing subclass can build the model.
        """
        if self.module is None or checkpoint.content.get("module") != self.module.__qualname__:
            with self.building(checkpoint):
                return load_network(checkpoint)
        module = self.module(**checkpoint.content["hyper_parameters"])
        check_weights(checkpoint.content["state_dict"], module.state_dict())
        module.load_state_dict(checkpoint.content["state_dict"])
        return module.gpt.eval(), checkpoint.tokenizer


DEFAULT = Classes()
"""TinyGPT and TextDataModule."""

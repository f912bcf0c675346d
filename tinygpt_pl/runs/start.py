"""How a run starts: from scratch, from the weights of a checkpoint, or where a run stopped; and in which folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinygpt_pl.runs.checkpoint import Checkpoint, read_checkpoint, read_or_point
from tinygpt_pl.runs.folder import (
    RunFolder,
    checkpoint_path,
    find_checkpoint,
    is_run,
    new_run_dir,
    rewind_events,
    run_of,
)
from tinygpt_pl.system.terminal import quoted


@dataclass(frozen=True)
class Start:
    """What a run starts from, or what is scored."""

    kind: Literal["scratch", "weights", "resume"] = "scratch"
    """`weights` takes the model and the tokenizer of a checkpoint; `resume` its settings and its training state too."""
    checkpoint: Checkpoint | None = None
    """Given unless it starts from scratch."""

    @classmethod
    def of(cls, name: str, run_dir: Path | None, kind: Literal["weights", "resume"]) -> "Start":
        """Read the checkpoint that `find_checkpoint` finds.

        Raises:
            ValueError: if there is none, or it cannot be used.
            OSError: if it cannot be read.
        """
        return cls(kind, read_or_point(find_checkpoint(name, run_dir)))

    @property
    def resumed(self) -> Checkpoint | None:
        """The checkpoint of a run that resumes."""
        return self.checkpoint if self.kind == "resume" else None

    @property
    def iteration(self) -> int:
        """Optimizer steps taken before."""
        return self.resumed.iteration if self.resumed else 0

    @property
    def run_dir(self) -> Path | None:
        """The folder of the run that resumes, if its checkpoint is still in one."""
        return run_of(self.resumed.path) if self.resumed else None

    def finished(self, max_steps: int) -> bool:
        """Whether all steps have been taken and evaluated."""
        return self.resumed is not None and self.resumed.content["evaluated"] == max_steps

    def in_place(self, run_dir: Path) -> bool:
        """Whether the run resumes in this folder, its own."""
        return self.run_dir is not None and self.run_dir.resolve() == run_dir.resolve()

    def rewind(self, run_dir: Path) -> None:
        """Cut the curve in a folder back to what the checkpoint knows of, if the run resumes there."""
        if self.checkpoint and self.in_place(run_dir):
            rewind_events(run_dir, self.checkpoint.content["events"])


def place_run(start: Start, given: Path | None) -> tuple[Path | None, str]:
    """Choose the folder of a run, so that none is written over and none loses what it has.

    Args:
        start: what it starts from.
        given: the folder that was asked for.

    Returns:
        The folder, None for a new one, and what there is to report of the choice.

    Raises:
        ValueError: if the folder that was asked for holds another run, or a later state of this one.
    """
    own, resumed = start.run_dir, start.resumed
    if resumed and own and (given is None or given.resolve() == own.resolve()):
        last = checkpoint_path(own, "last")
        if resumed.path.name == last.name or (reached := _sound_iteration(last)) <= start.iteration:
            return own, ""
        beyond = f"{own} has gone on from {resumed.path} (iteration {start.iteration}) to iteration {reached}"
        if given:
            raise ValueError(f"{beyond}; resume with --ckpt_path {quoted(last)}, or give another --run_dir")
        return None, f"NOTE: {beyond}: this is a new run that starts there"
    if given:
        _check_free(given)
    return given, ""


def _check_free(folder: Path) -> None:
    """See that nothing in a folder would be written over by a new run."""
    last, config = checkpoint_path(folder, "last"), folder / "config.yaml"
    checkpoints = sorted(folder.glob("checkpoints/*.ckpt"))
    if last in checkpoints:
        way_out = f"resume with --ckpt_path {quoted(last)}, or give another --run_dir"
        raise ValueError(f"{folder} holds a run already; {way_out}")
    if checkpoints or is_run(folder):
        found = checkpoints[0] if checkpoints else f"{config}, but no checkpoint to go on from"
        raise ValueError(f"{folder} holds a run already: there is {found}; give another --run_dir")
    if os.path.lexists(config):
        raise ValueError(f"{config} was not written by fit, and a run would write over it; give another --run_dir")


def _sound_iteration(path: Path) -> int:
    """Optimizer steps of a checkpoint; -1 if it is damaged or missing, and a run loses nothing with it."""
    try:
        return read_checkpoint(path).iteration
    except (ValueError, OSError):
        return -1


@contextmanager
def claim_run(run_dir: Path | None, start: Start, *, owner: bool) -> Iterator[Path]:
    """Hold the folder of a run; gives its path.

    Args:
        run_dir: the folder; None for a new one.
        start: what the run starts from.
        owner: whether this is the one process of a run that writes.

    Raises:
        ValueError: if another process holds it, or the run has trained since its checkpoint was read.
        OSError: if it cannot be made or written to.
    """
    if not owner:
        yield run_dir or new_run_dir()
        return
    folder = RunFolder(run_dir)
    try:
        if start.checkpoint and start.checkpoint.path.stat().st_mtime_ns != start.checkpoint.written:
            raise ValueError(f"{start.checkpoint.path} has just been written anew; give the command again")
        yield folder.path
    finally:
        folder.release()

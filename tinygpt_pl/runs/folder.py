"""Where runs lie, that each has one owner, and how its curve goes back to where a checkpoint saw it."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from filelock import Timeout

from tinygpt_pl.system.files import hold, holder_of, short, sweep
from tinygpt_pl.system.terminal import readable

LOGS = Path("lightning_logs")
"""Where runs are kept that are given no other folder."""

EVENTS = "events.out.tfevents.[0-9]*"
"""TensorBoard's files."""

MARK = "# tinygpt_pl "
"""What a run's config.yaml begins with."""


def checkpoint_path(run_dir: Path, name: str) -> Path:
    """The `last` or `best` checkpoint of a run, whether there is one or not."""
    return run_dir / "checkpoints" / f"{name}.ckpt"


def is_run(folder: Path) -> bool:
    """Whether a run has begun in a folder."""
    config = folder / "config.yaml"
    return config.is_file() and config.read_bytes().startswith(MARK.encode())


def _versions() -> list[tuple[int, Path]]:
    found = ((re.fullmatch(r"version_(\d+)", path.name), path) for path in LOGS.glob("version_*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def new_run_dir() -> Path:
    """The next free lightning_logs/version_N; it is not created."""
    versions = _versions()
    return LOGS / f"version_{versions[-1][0] + 1 if versions else 0}"


def _runs() -> list[Path]:
    """The runs in lightning_logs, by the time they were last started, whatever their names; two folders deep."""
    configs = {config for depth in ("", "*/", "*/*/") for config in LOGS.glob(f"{depth}config.yaml")}
    runs = {config.parent: config.stat().st_mtime_ns for config in configs if is_run(config.parent)}
    numbers = {version: number for number, version in _versions()}
    return sorted(runs, key=lambda run: (runs[run], numbers.get(run, -1), run))


def newest_run() -> Path:
    """The run in lightning_logs that was started or resumed last.

    Raises:
        ValueError: if there is none.
    """
    runs = _runs()
    if not runs:
        raise ValueError(f"there is no run in {LOGS.resolve()}; fit makes one")
    return runs[-1]


def run_of(path: Path) -> Path | None:
    """The folder of the run that wrote a checkpoint, or None for a file that was moved out of one."""
    folder = path.absolute().parent
    return short(folder.parent) if folder.name == "checkpoints" and is_run(folder.parent) else None


def find_checkpoint(ckpt_path: str, run_dir: str | Path | None = None) -> Path:
    """Turn `last`, `best` or a path into the path of a checkpoint that exists.

    Args:
        ckpt_path: `last` and `best` are those of `run_dir`; anything else is a path.
        run_dir: the newest run in lightning_logs if left out.

    Raises:
        ValueError: if there is no such checkpoint.
    """
    if ckpt_path not in ("last", "best"):
        path = Path(os.path.expanduser(ckpt_path))
        if not path.is_file():
            raise ValueError(f"no checkpoint {ckpt_path!r}: it has to be last, best or the path of a file")
        return path
    runs = _runs()
    if run_dir is None and not runs:
        raise ValueError(f"no {ckpt_path} checkpoint: there is no run in {LOGS.resolve()}; fit makes one")
    run = Path(os.path.expanduser(run_dir)) if run_dir else runs[-1]
    path = checkpoint_path(run, ckpt_path)
    if not path.is_file():
        others = [other for other in runs if checkpoint_path(other, ckpt_path).is_file()]
        way_out = f"the newest that has one is --run_dir {others[-1]}" if others else "give the path of one"
        raise ValueError(f"no {ckpt_path} checkpoint in {run}; {way_out}")
    return path


class RunFolder:
    """A run's folder, held by this process until it lets go of it or dies, by whatever cause."""

    def __init__(self, path: Path | None) -> None:
        """Make the folder, take its lock, and sweep what a dead process left unfinished.

        Args:
            path: the next free lightning_logs/version_N if left out, another one for each of several processes.

        Raises:
            ValueError: if another process holds it, or its name is not text.
            OSError: if it cannot be made or written to.
        """
        if path and readable(str(path)) != str(path):
            raise ValueError(f"the name of {path} is not UTF-8, which TensorBoard needs; give another --run_dir")
        self.path = self._make(path)
        lock = self.path / ".lock"
        self._owner = self.path / ".lock.pid"  # a file of its own: Windows lets nobody else open a locked one
        before = {*self.path.glob(".lock*")}
        try:
            self._lock = hold(lock, timeout=0)
        except Timeout:
            raise ValueError(self._in_use(holder_of(lock))) from None
        except OSError:
            self._remove_empty()
            raise
        try:
            self._take()
        except BaseException:
            self.release()
            for path in {*self.path.glob(".lock*")} - before:
                path.unlink(missing_ok=True)
            raise

    def _take(self) -> None:
        """Write down who has the folder, and see that it can be used."""
        try:
            self._owner.write_text(str(os.getpid()))
        except OSError as error:  # one of a full disk names no file
            error.filename = error.filename or str(self._owner)
            raise
        for folder, pattern in ((self.path, "config.yaml"), (self.path / "checkpoints", "*.ckpt")):
            sweep(folder, pattern)
            if folder.is_file():
                raise ValueError(f"{folder} must be a folder; move it away, or give another --run_dir")
            if folder.exists() and not os.access(folder, os.W_OK):
                raise PermissionError(f"{folder} cannot be written to; give another --run_dir")

    def _make(self, path: Path | None) -> Path:
        """Make the folder; where it was not named, this is what several processes compete for."""
        while True:
            folder = path or new_run_dir()
            self._made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
            try:
                Path(os.path.realpath(folder)).mkdir(parents=True, exist_ok=path is not None)  # also where a link leads
            except FileExistsError:
                if path is not None:
                    raise ValueError(f"{path} is there already, and no folder; give another --run_dir") from None
            else:
                return folder

    def _in_use(self, holder: Path) -> str:
        """What to say to a process that comes second."""
        owner = self._owner.read_text(errors="replace") if self._owner.exists() else ""
        gone = f"; if there is no such process any more, delete {holder}" if holder.exists() else ""
        return f"{self.path} is in use by process {owner}; wait for its end or give another --run_dir{gone}"

    def release(self) -> None:
        """Let go of the folder; one that nothing was written into goes too."""
        if os.name == "nt":  # where an open file cannot be deleted, and so none that another process has locked
            self._lock.release()
            self._remove_empty()
        else:
            self._remove_empty()
            self._lock.release()

    def _remove_empty(self) -> None:
        with suppress(OSError):  # gone already, or something is in it by now
            if self._made and all(entry.name.startswith(".lock") for entry in self.path.iterdir()):
                for lock in self.path.glob(".lock*"):
                    lock.unlink(missing_ok=True)
                for folder in self._made:
                    folder.rmdir()


def event_files(run_dir: Path) -> list[Path]:
    """The files of a run's curve, in the order of their names."""
    return sorted(path for path in run_dir.glob(EVENTS) if path.is_file())


def event_sizes(run_dir: Path) -> dict[str, int]:
    """Name and length in bytes of each file of the curve, after bringing them to the disk if that can be done."""
    sizes = {}
    for path in event_files(run_dir):
        with suppress(OSError), path.open("rb") as file:
            os.fsync(file.fileno())
        sizes[path.name] = path.stat().st_size
    return sizes


FACTS = b"facts/text_summary"
"""Tag that each stretch of a run writes first of all into its event file."""

HEADER = 100
"""Bytes within which an event file holds its version alone."""


def _is_own(path: Path) -> bool:
    """Whether an event file is of a run of this program, or has no rows; others may lie in the folder."""
    content = path.read_bytes()
    return len(content) < HEADER or FACTS in content


def rewind_events(run_dir: Path, sizes: Mapping[str, int]) -> None:
    """Take from the curve what was written after its files had these sizes: the run will write it again."""
    found = event_files(run_dir)
    if sizes.keys().isdisjoint(path.name for path in found):
        return  # another run's curve, or one that was logged elsewhere until now
    for path in found:
        if path.name in sizes:
            os.truncate(path, min(path.stat().st_size, sizes[path.name]))
        elif _is_own(path):
            path.unlink()

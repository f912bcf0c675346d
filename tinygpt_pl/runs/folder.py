"""Where runs lie, that each has one owner, and how its curve goes back to where a checkpoint saw it."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tinygpt_pl.system.files import sweep

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


def newest_run() -> Path:
    """The newest run in lightning_logs.

    Raises:
        ValueError: if there is none.
    """
    runs = [version for _, version in _versions() if is_run(version)]
    if not runs:
        raise ValueError(f"there is no run in {LOGS.resolve()}; fit makes one")
    return runs[-1]


def run_of(path: Path) -> Path | None:
    """The folder of the run that wrote a checkpoint, or None for a file that was moved out of one."""
    folder = path.absolute().parent
    return Path(os.path.relpath(folder.parent)) if folder.name == "checkpoints" and is_run(folder.parent) else None


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
    versions = [(number, version) for number, version in _versions() if is_run(version)]
    if run_dir is None and not versions:
        raise ValueError(f"no {ckpt_path} checkpoint: there is no run in {LOGS.resolve()}; fit makes one")
    run = Path(os.path.expanduser(run_dir)) if run_dir else versions[-1][1]
    path = checkpoint_path(run, ckpt_path)
    if not path.is_file():
        others = [version for _, version in versions if checkpoint_path(version, ckpt_path).is_file()]
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
            ValueError: if another process holds it.
            OSError: if it cannot be made or written to.
        """
        self.path = self._make(path)
        lock = self.path / ".lock"
        self._lock = FileLock(lock, timeout=0)
        try:
            holder = lock.read_text(errors="replace") if lock.exists() else ""
            self._lock.acquire()
        except Timeout:
            raise ValueError(
                f"{self.path} is in use by process {holder}; wait for its end or give another --run_dir"
            ) from None
        except OSError:
            self._remove_empty()
            raise
        lock.write_text(str(os.getpid()))
        for folder, pattern in ((self.path, "config.yaml"), (self.path / "checkpoints", "*.ckpt")):
            sweep(folder, pattern)
            if folder.exists() and not os.access(folder, os.W_OK):
                raise PermissionError(f"{folder} cannot be written to; give another --run_dir")

    def _make(self, path: Path | None) -> Path:
        """Make the folder; where it was not named, this is what several processes compete for."""
        while True:
            folder = path or new_run_dir()
            self._made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
            try:
                folder.mkdir(parents=True, exist_ok=path is not None)
            except FileExistsError:
                if path is not None:
                    raise
            else:
                return folder

    def release(self) -> None:
        """Let go of the folder; one that nothing was written into goes too."""
        self._remove_empty()
        self._lock.release()

    def _remove_empty(self) -> None:
        with suppress(OSError):  # gone already, or something is in it by now
            if self._made and {entry.name for entry in self.path.iterdir()} <= {".lock"}:
                (self.path / ".lock").unlink(missing_ok=True)
                for folder in self._made:
                    folder.rmdir()


def event_sizes(run_dir: Path) -> dict[str, int]:
    """Name and length in bytes of each file of the curve, after bringing them to the disk if that can be done."""
    sizes = {}
    for path in sorted(run_dir.glob(EVENTS)):
        with suppress(OSError), path.open("rb") as file:
            os.fsync(file.fileno())
        sizes[path.name] = path.stat().st_size
    return sizes


def rewind_events(run_dir: Path, sizes: Mapping[str, int]) -> None:
    """Take from the curve what was written after its files had these sizes: the run will write it again."""
    found = list(run_dir.glob(EVENTS))
    if sizes.keys().isdisjoint(path.name for path in found):
        return  # another run's curve, or one that was logged elsewhere until now
    for path in found:
        if path.name in sizes:
            os.truncate(path, min(path.stat().st_size, sizes[path.name]))
        else:
            path.unlink()

"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed. And their text."""

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from tinygpt_pl.system.terminal import warn

PARTIAL = ".partial"
"""End of the name of a file that is being written, after sixteen digits that no other file has."""

UNFINISHED = f".{'[0-9a-f]' * 16}{PARTIAL}"
"""Pattern of what such a file has after its name."""


NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What asking for a lock gives on a file system that has none, such as some network drives."""

SILENT_WAIT = 5.0
"""Seconds that a command waits for another process without a word."""


def short(path: str | Path) -> Path:
    """A path as seen from the working folder, unless that is gone or, as Windows can have it, on another drive."""
    try:
        return Path(os.path.relpath(path))
    except (ValueError, OSError):
        return Path(path)


def holder_of(lock: Path) -> Path:
    """The file that stands for a lock where the file system has none."""
    return lock.with_name(f"{lock.name}.holder")


def hold(path: Path, timeout: float = -1) -> BaseFileLock:
    """Take a lock, which this process holds until it lets go of it or dies.

    Where the file system has no locks, a file with the name of the process stands for it. One that a process of this
    machine has left behind when it died is taken over.

    Args:
        path: the lock's file.
        timeout: seconds to wait for another process; for ever if negative.

    Raises:
        Timeout: if another process holds it.
        OSError: if the file cannot be made.
    """
    lock: BaseFileLock = FileLock(path, timeout=timeout, fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError as error:  # a Timeout is one, too
        if error.errno not in NO_LOCKS:
            raise
        lock = SoftFileLock(holder_of(path), timeout=timeout)
        lock.acquire()
    return lock


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once the block is left; a reader sees the old one or the new one, whole.

    The unfinished file lies in the same folder: only there is renaming one step, and needs no room elsewhere. A link
    stays, and what it leads to is replaced. A file that is mounted cannot be replaced, and is written over.

    Raises:
        OSError: if it cannot be written; what was at `path` is then still there.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        try:
            os.replace(partial, path)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            shutil.copyfile(partial, path)
            partial.unlink()
    except BaseException as error:
        if partial.is_file():
            partial.unlink()
        _name_target(error, partial, path)
        raise
    _flush_folder(path.parent)


def _name_target(error: BaseException, partial: Path, path: Path) -> None:
    """Put the path of the finished file into an error, which names the unfinished one, or none if the disk is full."""
    if isinstance(error, OSError) and error.errno and str(error.filename or partial).startswith(str(partial)):
        error.filename = str(path)
        if error.filename2 is not None:  # of a renaming; None would be printed
            del error.filename2


def make_once(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Make a file where there is none, once however many processes ask at the same time; the others wait.

    Raises:
        OSError: if it cannot be written, or whatever `write` raises; nothing of it stays then.
    """
    if path.exists():  # also where nothing can be written, as in a cache that others keep
        return
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    Path(os.path.realpath(path.parent)).mkdir(parents=True, exist_ok=True)  # also where a link leads
    try:
        with _turn(path):
            if not path.exists():
                sweep(path.parent, glob.escape(path.name))
                _sweep_abandoned(path.parent)
                with replacing(path) as file:  # a reader takes no lock
                    write(file)
    except BaseException:
        for folder in made:
            with suppress(OSError):  # another process is at work there
                folder.rmdir()
        raise


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Be the only process that makes a file; whoever has to wait long for it is told."""
    lock = Path(f"{path}.lock")
    try:
        held = hold(lock, SILENT_WAIT)
    except Timeout:
        holder = holder_of(lock)
        dead = f"; if there is none any more, delete {holder}" if holder.exists() else ""
        warn(f"waiting for another process, which makes {path}{dead}")
        held = hold(lock)
    try:
        yield
    except BaseException:
        held.release()
        with suppress(OSError):  # another process has it by now
            lock.unlink()
        raise
    held.release()


@contextmanager
def making(path: Path) -> Iterator[Path]:
    """A folder to write into, whose files are at `path` once the block is left; nothing or an empty folder is there.

    The folder takes that place in one step. An empty one stays, with the files moved into it one by one: it may be
    mounted, a link, or the working folder, and Windows replaces none.

    Raises:
        OSError: if it cannot be written; nothing of it stays then.
    """
    path = Path(os.path.realpath(path))
    there = path.is_dir()
    place = path if there else path.parent
    place.mkdir(parents=True, exist_ok=True)
    partial = place / f".{secrets.token_hex(4)}{PARTIAL}"
    moved: list[Path] = []
    try:
        partial.mkdir()
        yield partial
        if there:
            for file in partial.iterdir():
                moved.append(file.replace(path / file.name))
            partial.rmdir()
        else:
            os.replace(partial, path)
    except BaseException as error:  # a signal as well
        for file in moved:
            file.unlink()
        shutil.rmtree(partial, ignore_errors=True)
        _name_target(error, partial, path)
        raise


def _flush_folder(folder: Path) -> None:
    """Make a renaming outlast a loss of power, where the system lets folders be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # not every file system can; the file itself is in its place
            os.fsync(descriptor)
        os.close(descriptor)


def sweep(folder: Path, pattern: str) -> None:
    """Delete what a process that was killed had not finished of these files; their owner alone may do so."""
    for partial in folder.glob(pattern + UNFINISHED):
        if partial.is_file():
            partial.unlink()


def _sweep_abandoned(folder: Path) -> None:
    """Delete what killed processes have left of other files of `make_once`, whose locks nobody holds any more."""
    for partial in folder.glob(f"*{UNFINISHED}"):
        lock = partial.with_suffix("").with_suffix(".lock")  # in the place of the digits
        if lock.exists():
            with suppress(Timeout):
                held = hold(lock, timeout=0)
                partial.unlink(missing_ok=True)
                held.release()


def decode_utf8(raw: bytes, name: str) -> str:
    """The text of a file.

    Raises:
        ValueError: at the first byte that is not UTF-8, with its offset.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(name, raw[error.start], error.start) from None


def not_utf8(name: str, byte: int, offset: int) -> ValueError:
    """What to say of the first byte of a file that is not UTF-8."""
    return ValueError(
        f"{name} is not UTF-8: byte 0x{byte:02x} at offset {offset}; convert it first, for example with iconv -t UTF-8"
    )

"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed. And their text."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

PARTIAL = ".partial"
"""End of the name of a file that is being written."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once the block is left; a reader sees the old one or the new one, whole.

    The unfinished file lies in the same folder: only there is renaming one step, and needs no room elsewhere.

    Raises:
        OSError: if it cannot be written; what was at `path` is then still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        if partial.is_file():
            partial.unlink()
        raise
    _flush_folder(path.parent)


def make_once(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Make a file where there is none, once however many processes ask at the same time; the others wait.

    Raises:
        OSError: if it cannot be written, or whatever `write` raises; nothing of it stays then.
    """
    if path.exists():  # also where nothing can be written, as in a cache that others keep
        return
    lock = Path(f"{path}.lock")
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock):
            if not path.exists():
                with replacing(path) as file:  # a reader takes no lock
                    write(file)
    except BaseException:
        lock.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):  # another process is at work there
                folder.rmdir()
        raise


@contextmanager
def making(path: Path) -> Iterator[Path]:
    """A folder to write into, which is at `path` once the block is left; nothing or an empty folder has to be there.

    Raises:
        OSError: if it cannot be written; nothing of it stays then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        partial.mkdir()
        yield partial
        os.replace(partial, path)
    except FileExistsError:  # another process is at work there
        raise
    except BaseException:  # a signal as well
        shutil.rmtree(partial, ignore_errors=True)
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
    for partial in folder.glob(pattern + PARTIAL):
        if partial.is_file():
            partial.unlink()


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

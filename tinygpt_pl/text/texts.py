"""Files as text: compressed or not, plain or records, a piece at a time, so that any size goes through little memory.

UTF-8 is taken as it is, line ends included. A byte-order mark at the start of a file is left out; a byte that is not
UTF-8 is refused with its place.
"""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tinygpt_pl.system.files import not_utf8

BLOCK = 2**16  # bytes of a file in a piece: encoding many short ones at a time keeps all processors busy

Progress = Callable[[int], object]
"""Told how many more bytes of the files have been read."""


def read_texts(path: Path, field: str, progress: Progress) -> Iterator[Iterable[str]]:
    """The texts of a file, each in short pieces; one has to be used up before the next is asked for.

    A piece ends before a space where it can, which is where tokens end, too.

    Args:
        path: a text; or records, one in a line, if its name ends in .jsonl; compressed if it ends in .gz.
        field: where a record has its text.
        progress: told what has been read.

    Raises:
        ValueError: for what is not UTF-8, is damaged, or is no record with a text.
        OSError: if the file cannot be read.
    """
    with _opened(path, progress) as file, _damage_told(path):
        if path.name.removesuffix(".gz").endswith(".jsonl"):
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield [_record(line, field, f"{path}, line {number},")]
        else:
            yield _pieces(file, path)


class _Watched(io.FileIO):
    """A file that tells how much of it has been read."""

    def __init__(self, path: Path, progress: Progress) -> None:
        super().__init__(path)
        self.progress = progress

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer) or 0
        self.progress(count)
        return count


@contextmanager
def _opened(path: Path, progress: Progress) -> Iterator[BinaryIO]:
    with io.BufferedReader(_Watched(path, progress), BLOCK) as raw:
        if path.suffix != ".gz":
            yield raw
            return
        with gzip.open(raw) as file:
            yield file  # type: ignore[misc]  # reads as a BinaryIO does


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged or not compressed by gzip: {error}") from None


def _pieces(file: BinaryIO, path: Path) -> Iterator[str]:
    """The text of a file, decoded."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    held, read = "", 0
    while True:
        with _damage_told(path):
            block = file.read(BLOCK)
        pending = len(decoder.getstate()[0])
        try:
            text = held + decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise not_utf8(f"corpus {str(path)!r}", error.object[error.start], read - pending + error.start) from None
        if not read:
            text = text.removeprefix("\N{BYTE ORDER MARK}")
        read += len(block)
        cut = _last_space(text) if block else len(text)
        yield text[:cut]
        held = text[cut:]
        if not block:
            return


def _last_space(text: str, reach: int = 4096) -> int:
    """Where the last space after another character is, if it is near the end; else the end."""
    at = text.rfind(" ", max(len(text) - reach, 1))
    while at > 0 and text[at - 1].isspace():
        at = text.rfind(" ", max(len(text) - reach, 1), at)
    return at if at > 0 else len(text)


def _record(line: bytes, field: str, place: str) -> str:
    """The text of a line of a .jsonl file."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is no JSON: {error}") from None
    fields = record.items() if isinstance(record, dict) else ()
    texts = {name: value for name, value in fields if isinstance(value, str)}
    if field not in texts:
        others = ", ".join(texts) or "none"
        raise ValueError(f"{place} has no text in a field {field!r}; those with one for --data.field: {others}")
    text: str = texts[field]
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place} has half of a surrogate pair in it: {text[error.start]!r}") from None
    return text

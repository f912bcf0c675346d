"""Texts to train on: by name, downloaded once into the cache, or from files, read a piece at a time.

UTF-8 is taken as it is, line ends included. A byte-order mark at the start of a file is left out; a byte that is not
UTF-8 is refused with its place, and a file that is not text with what it is. A text of any size goes through little
memory.
"""

import codecs
import hashlib
import io
import json
import lzma
import os
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tinygpt_pl.system.files import make_once, not_utf8
from tinygpt_pl.text.compression import DECOMPRESSORS
from tinygpt_pl.text.contents import check_block, check_text, holds_records
from tinygpt_pl.text.finding import find_files

DOWNLOAD_TIMEOUT = 10.0  # seconds of silence from the server

SEPARATOR = "\n\n"
"""What stands between two texts; a tokenizer with a token for that takes it instead."""

BLOCK = 2**16  # bytes of a file in a piece: encoding many short ones at a time keeps all processors busy

Progress = Callable[[int], object]
"""Told how many more bytes of the files have been read."""


@dataclass(frozen=True)
class Corpus:
    """Texts and the name they go by."""

    name: str
    sources: tuple[Path | str, ...]
    """Files in the order they are read in, or texts themselves."""
    field: str = "text"
    """Where a record of a .jsonl file has its text."""
    left_out: tuple[Path, ...] = ()
    """Settings and outputs of this program that lie among the files, and links that lead nowhere."""

    @property
    def place(self) -> str:
        """Its name or its path, for use in any folder."""
        return self.name if self.name in CORPORA else os.path.abspath(os.path.expanduser(self.name))

    @property
    def note(self) -> str:
        """What there is to report of files that are left out."""
        if not self.left_out:
            return ""
        some = ", ".join(map(str, self.left_out[:3])) + ", …" * (len(self.left_out) > 3)
        return f"NOTE: corpus {self.name!r} leaves out settings, output and dead links: {some}"

    def parts(self, progress: Progress = lambda count: None) -> Iterator[str]:
        """The whole of it in pieces, none of them empty, with a SEPARATOR between two texts.

        Raises:
            ValueError: as `read_texts` does.
            OSError: if a file cannot be read.
        """
        before = ""
        for source in self.sources:
            for text in [[source]] if isinstance(source, str) else read_texts(source, self.field, progress):
                separator = before
                for piece in filter(None, text):
                    yield from filter(None, (separator, piece))
                    separator, before = "", SEPARATOR

    @property
    def text(self) -> str:
        """The whole of it at once."""
        return "".join(self.parts())

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(source.stat().st_size for source in self.sources if isinstance(source, Path))

    def signature(self) -> list[Any]:
        """What is another once the text is another, without reading it: size and times of each file."""
        return [self.field, *map(_signature, self.sources)]


def _signature(source: Path | str) -> list[Any]:
    if isinstance(source, str):
        return [hashlib.sha256(source.encode()).hexdigest()]
    status = source.stat()
    # The time of the last change, which nobody can set, besides that of the content, which copying may keep.
    # The name says how to read it, and that of a link may say otherwise than that of its file.
    return [str(source.resolve()), *source.suffixes[-2:], status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def default_cache_dir() -> Path:
    """Where downloads and token files are kept: $TINYGPT_CACHE, else `data`."""
    return Path(os.path.expanduser(os.environ.get("TINYGPT_CACHE") or "data"))


def load_corpus(corpus: str, cache_dir: Path, offline_corpus: str | None = None, field: str = "text") -> Corpus:
    """Find a corpus by name (see CORPORA), or else the files of that path or pattern.

    Args:
        corpus: the name; the path of a file or folder; or a pattern with `*`, and `**` for any folders.
        cache_dir: where a download is looked for and kept.
        offline_corpus: what to take instead if the download fails; the result's name tells.
        field: where a record of a .jsonl file has its text.

    Raises:
        ValueError: if there is no such name or file, or a download is not what it should be.
        ConnectionError: if the download fails and there is no `offline_corpus`.
        OSError: if something cannot be read.
    """
    if corpus in CORPORA:
        try:
            return Corpus(corpus, (CORPORA[corpus](cache_dir),))
        except ConnectionError:
            if offline_corpus is None:
                raise
            return load_corpus(offline_corpus, cache_dir, field=field)
    try:
        files, left_out = find_files(corpus, [download_path(name, cache_dir) for name in CORPORA])
    except FileNotFoundError:
        raise ValueError(f"no corpus {corpus!r}: neither a file, a folder nor one of {', '.join(CORPORA)}") from None
    if not files:
        others = f" but settings or output of this program, as {left_out[0]}" if left_out else ""
        raise ValueError(f"no corpus {corpus!r}: it has no files{others}")
    return Corpus(corpus, tuple(files), field, tuple(left_out))


def download_path(name: str, cache_dir: Path) -> Path:
    """Where the download of a corpus lies."""
    return cache_dir / f"{name}.txt"


def download(url: str, sha256: str, path: Path) -> None:
    """Bring a file into the cache, once however many processes ask at the same time.

    Raises:
        ValueError: if what arrives has another SHA-256; nothing is kept then.
        ConnectionError: if it cannot be had.
    """
    make_once(path, lambda file: file.write(_fetch(url, sha256, path)))


def _fetch(url: str, sha256: str, path: Path) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as response:
            raw: bytes = response.read()
    except (OSError, HTTPException) as error:
        raise ConnectionError(
            f"{url} could not be downloaded ({error}); save it as {path}, or give another --data.corpus"
        ) from None
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise ValueError(f"{url} sent a file with SHA-256 {found}, not {sha256}; it was not kept")
    return raw


def _tinyshakespeare(cache_dir: Path) -> Path:
    path = download_path("tinyshakespeare", cache_dir)
    sha256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    if not path.exists():
        download(
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt", sha256, path
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ValueError(f"{path} is not Tiny Shakespeare (its SHA-256 differs); move it away to download it again")
    return path


def _pydoc(cache_dir: Path) -> str:
    from pydoc_data.topics import topics  # half a megabyte of text that only this corpus needs

    return "\n\n".join(topics[name] for name in sorted(topics))


CORPORA: dict[str, Callable[[Path], Path | str]] = {"tinyshakespeare": _tinyshakespeare, "pydoc": _pydoc}
"""The named corpora: Tiny Shakespeare, and the language reference that every CPython carries: real text, no network."""


def read_texts(path: Path, field: str, progress: Progress) -> Iterator[Iterable[str]]:
    """The texts of a file, each in short pieces; one has to be used up before the next is asked for.

    A piece ends before a space where it can, which is where tokens end, too.

    Args:
        path: a text; or records, one in a line, if its name ends in .jsonl; compressed if it ends in .gz, .bz2 or .xz.
        field: where a record has its text.
        progress: told what has been read.

    Raises:
        ValueError: for what is not text in UTF-8, is damaged, or is no record with a text.
        OSError: if the file cannot be read.
    """
    with _opened(path, progress) as file, _damage_told(path):
        check_text(path, file.peek(BLOCK)[:BLOCK])
        if holds_records(path):
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
def _opened(path: Path, progress: Progress) -> Iterator[Any]:
    with io.BufferedReader(_Watched(path, progress), BLOCK) as raw:
        decompress = DECOMPRESSORS.get(path.suffix.lower())
        if decompress is None:
            yield raw
            return
        with decompress(raw) as file:
            yield file


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's; those of gzip and bz2 have no number
            raise
        raise ValueError(f"{path} is damaged or not compressed as its name says: {error}") from None


def _pieces(file: io.BufferedReader, path: Path) -> Iterator[str]:
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
        check_block(path, block, read)
        if not read:  # of a file in several compressed members, the first look has seen one
            check_text(path, block)
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
        record = json.loads(line.decode("utf-8-sig"), parse_int=float)  # int refuses thousands of digits
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

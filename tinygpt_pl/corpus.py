"""Texts to train on: by name, downloaded once into the cache, or from a file."""

import hashlib
import os
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock

from tinygpt_pl.files import decode_utf8, replacing

DOWNLOAD_TIMEOUT = 10.0  # seconds of silence from the server


@dataclass(frozen=True)
class Corpus:
    """A text and the name it goes by."""

    name: str
    text: str


def default_cache_dir() -> Path:
    """Where downloads are kept: $TINYGPT_CACHE, else `data`."""
    return Path(os.environ.get("TINYGPT_CACHE") or "data")


def load_corpus(corpus: str, cache_dir: Path, offline_corpus: str | None = None) -> Corpus:
    """Read a corpus by name (see CORPORA), or else from the file of that path.

    Args:
        corpus: the name or path.
        cache_dir: where a download is looked for and kept.
        offline_corpus: what to read instead if the download fails; the result's name tells.

    Raises:
        ValueError: if there is no such name or file, or the text is empty, not UTF-8 or not what it should be.
        ConnectionError: if the download fails and there is no `offline_corpus`.
        OSError: if the file cannot be read.
    """
    if corpus in CORPORA:
        try:
            return Corpus(corpus, CORPORA[corpus](cache_dir))
        except ConnectionError:
            if offline_corpus is None:
                raise
            return load_corpus(offline_corpus, cache_dir)
    path = Path(os.path.expanduser(corpus))
    if path.is_dir():
        raise ValueError(f"corpus {corpus!r} is a folder; it has to be a text file or one of {', '.join(CORPORA)}")
    if not path.exists():
        raise ValueError(f"no corpus {corpus!r}: neither a file nor one of {', '.join(CORPORA)}")
    return Corpus(corpus, _decode(path.read_bytes(), corpus))


def _decode(raw: bytes, source: str) -> str:
    if not raw:
        raise ValueError(f"corpus {source!r} is empty")
    return decode_utf8(raw, f"corpus {source!r}")


def download(url: str, sha256: str, path: Path) -> None:
    """Bring a file into the cache, once however many processes ask at the same time.

    Raises:
        ValueError: if what arrives has another SHA-256; nothing is kept then.
        ConnectionError: if it cannot be had.
    """
    lock = Path(f"{path}.lock")
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock):
            if path.exists():
                return
            raw = _fetch(url, path)
            found = hashlib.sha256(raw).hexdigest()
            if found != sha256:
                raise ValueError(f"{url} sent a file with SHA-256 {found}, not {sha256}; it was not kept")
            with replacing(path) as file:  # a reader takes no lock
                file.write(raw)
    except BaseException:
        lock.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):  # another process is at work there
                folder.rmdir()
        raise


def _fetch(url: str, path: Path) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as response:
            raw: bytes = response.read()
    except (OSError, HTTPException) as error:
        raise ConnectionError(
            f"{url} could not be downloaded ({error}); save it as {path}, or give another --data.corpus"
        ) from None
    return raw


def _tinyshakespeare(cache_dir: Path) -> str:
    path = cache_dir / "tinyshakespeare.txt"
    sha256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    if not path.exists():
        download(
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt", sha256, path
        )
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise ValueError(f"{path} is not Tiny Shakespeare (its SHA-256 differs); delete it to download it again")
    return _decode(raw, str(path))


def _pydoc(cache_dir: Path) -> str:
    from pydoc_data.topics import topics  # half a megabyte of text that only this corpus needs

    return "\n\n".join(topics[name] for name in sorted(topics))


CORPORA: dict[str, Callable[[Path], str]] = {"tinyshakespeare": _tinyshakespeare, "pydoc": _pydoc}
"""The named corpora: Tiny Shakespeare, and the language reference that every CPython carries: real text, no network."""

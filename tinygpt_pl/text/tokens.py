"""Token files: a corpus encoded once, in a stream, into a file of the cache that is then mapped into memory.

A token file is a file of safetensors with the two splits, `train` and `val`, and in its metadata what it was made of
and a check sum. The sum is compared once for each size and time of the file, which a small file beside it records: each
time would mean to read all of a file that may be larger than memory.
"""

import hashlib
import json
import mmap
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby, takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from tinygpt_pl.system.files import make_once
from tinygpt_pl.system.terminal import progress_bar
from tinygpt_pl.text.corpus import SEPARATOR, Corpus, Progress
from tinygpt_pl.text.tokenizer import TOKENIZERS, BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer, tokenizer_from

FORMAT = 2
"""Counts up when files of the version before are no longer what this one makes."""

DTYPES: dict[str, type[np.unsignedinteger[Any]]] = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32}
"""Names of safetensors for the kinds of numbers that ids are kept as, smallest first."""

BYTES: dict[str, Any] = {"unit": "B", "unit_scale": True}
"""What a bar of progress counts."""

BATCH = 2**20  # characters that are encoded at a time

CHECKED = ".checked"
"""End of the name of the file that records with which size and times a token file was checked."""

CHECK_SUM = "check_sum"
"""Where the metadata have the CRC-32 of the token ids and of all other metadata."""

DIGITS = 12 * 19
"""Bytes of the twelve numbers in a header that are known only after all is written, each below 2**63."""


@dataclass(frozen=True)
class Split:
    """One of the two parts of a corpus."""

    ids: npt.NDArray[np.unsignedinteger[Any]]
    """Its tokens, in the file."""
    characters: int
    bytes: int
    """Its length as UTF-8."""


@dataclass(frozen=True)
class Tokens:
    """A corpus as tokens."""

    splits: dict[str, Split]
    tokenizer: Tokenizer
    sha256: str
    """Of the text."""


def prepare(
    corpus: Corpus, cache_dir: Path, val_fraction: float, kind: str, vocab_size: int, known: Tokenizer | None = None
) -> Tokens:
    """Open the token file of a corpus, after making it if there is none.

    Args:
        corpus: what to encode.
        cache_dir: where token files are kept, in its folder `tokens`.
        val_fraction: share of the characters, at the end, that are the split `val`.
        kind: of the tokenizer to make: of all characters of the text, or one that learns from the split `train`.
        vocab_size: tokens of one that learns.
        known: a tokenizer of this kind to use instead.

    Raises:
        ValueError: if the text is unfit or unknown to the tokenizer, or the file is not as it was written.
        OSError: if a file cannot be read or written.
    """
    signature = corpus.signature()

    def place(given: Any) -> tuple[Path, str]:
        made_of = _sha256(json.dumps([FORMAT, signature, val_fraction, given]))
        name = Path(corpus.place).stem[:40].replace("*", "_") or "corpus"
        return cache_dir / "tokens" / f"{name}-{made_of[:12]}.safetensors", made_of

    learns = kind not in ("char", "byte")
    path, made_of = place([kind, vocab_size if learns else 0])
    if known is not None:
        if path.exists() and (tokens := read_tokens(path, made_of)).tokenizer == known:  # that of the run itself
            return tokens
        path, made_of = place(asdict(known))

    passes = 3 if learns and known is None else 2

    def write(file: BinaryIO) -> None:
        """Read the text once to know it and once to encode it, and between for a tokenizer that learns."""
        with progress_bar(f"preparing {corpus.name}", passes * corpus.size, **BYTES) as bar:
            text = survey(corpus, bar.update)
            boundary = int(text.length * (1 - val_fraction))
            if known is None:
                tokenizer = _make_tokenizer(corpus, text, boundary, kind, vocab_size, bar.update)
            else:
                tokenizer = known
                _check_known(corpus, text, tokenizer)
            facts = {"format": FORMAT, "made_of": made_of, "sha256": text.sha256, "tokenizer": asdict(tokenizer)}
            _write(file, _divided(corpus.parts(bar.update), boundary), tokenizer, facts)
        if corpus.signature() != signature:
            raise ValueError(f"corpus {corpus.name!r} changed while it was read; give the command again")

    make_once(path, write)
    return read_tokens(path, made_of)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Survey:
    """What one reading of a text tells."""

    sha256: str
    length: int
    characters: str
    """Those that occur in it, sorted."""


def survey(corpus: Corpus, progress: Progress) -> Survey:
    """Read a corpus through.

    Raises:
        ValueError: if it is empty, or as `Corpus.parts` does.
        OSError: as it does.
    """
    digest, length, seen = hashlib.sha256(), 0, np.zeros(sys.maxunicode + 1, dtype=bool)
    for batch in _batches(corpus.parts(progress)):
        text = "".join(batch)
        raw = text.encode()
        digest.update(raw)
        length += len(text)
        # Most of a text is ASCII that has been seen before, and removing that is several times as fast as indexing.
        rest = raw.translate(None, bytes(np.flatnonzero(seen[:128]).tolist())).decode()
        seen[np.frombuffer(rest.encode("utf-32-le"), dtype=np.uint32)] = True
    if not length:
        raise ValueError(f"corpus {corpus.name!r} is empty")
    return Survey(digest.hexdigest(), length, "".join(map(chr, np.flatnonzero(seen).tolist())))


def _batches(parts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += len(part)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _divided(parts: Iterable[str], at: int) -> Iterator[tuple[str, str]]:
    """The parts with the split that each belongs to; one that lies across the boundary is cut."""
    for part in parts:
        train, val = part[: max(at, 0)], part[max(at, 0) :]
        at -= len(part)
        if train:
            yield "train", train
        if val:
            yield "val", val


def _make_tokenizer(
    corpus: Corpus, text: Survey, boundary: int, kind: str, vocab_size: int, progress: Progress
) -> Tokenizer:
    if kind == "char":
        return CharTokenizer(text.characters)
    if kind == "byte":
        return ByteTokenizer()
    train = takewhile(lambda pair: pair[0] == "train", _divided(corpus.parts(progress), boundary))
    learning: type[BPETokenizer] = TOKENIZERS[kind]  # type: ignore[assignment]  # or one of that interface
    return learning.from_texts((part for _, part in train), vocab_size)


def _check_known(corpus: Corpus, text: Survey, tokenizer: Tokenizer) -> None:
    if isinstance(tokenizer, CharTokenizer) and (unknown := set(text.characters) - set(tokenizer.characters)):
        some = ", ".join(map(repr, sorted(unknown)[:10]))
        raise ValueError(
            f"corpus {corpus.name!r} has {len(unknown)} characters that are not among the {tokenizer.vocab_size} known "
            f"ones: {some}{', …' * (len(unknown) > 10)}"
        )


def _encode(tokenizer: Tokenizer, batch: list[str]) -> npt.NDArray[np.integer[Any]]:
    if not isinstance(tokenizer, BPETokenizer):
        return tokenizer.encode("".join(batch))
    end = tokenizer.end_of_text
    if end is None or SEPARATOR not in batch:
        return np.concatenate(tokenizer.encode_all(batch))
    ids = tokenizer.encode_all([part for part in batch if part != SEPARATOR])
    texts = iter(ids)
    return np.concatenate([np.array([end], np.int32) if part == SEPARATOR else next(texts) for part in batch])


def _write(file: BinaryIO, parts: Iterable[tuple[str, str]], tokenizer: Tokenizer, facts: dict[str, Any]) -> None:
    """Encode the parts of a text, each with its split, behind room for the header; then write the header."""
    dtype = next(name for name, kind in DTYPES.items() if tokenizer.vocab_size <= np.iinfo(kind).max + 1)
    counts = {split: dict.fromkeys(("tokens", "characters", "bytes"), 0) for split in ("train", "val")}
    room = 8 + len(_header({**facts, "splits": counts, CHECK_SUM: "0" * 8}, dtype)) + DIGITS
    room += -room % 8  # ids have to lie at multiples of their size
    file.write(bytes(room))
    crc = 0
    for split, texts in groupby(parts, key=itemgetter(0)):
        count = counts[split]
        for batch in _batches(text for _, text in texts):
            ids = _encode(tokenizer, batch).astype(DTYPES[dtype])
            raw = ids.tobytes()
            file.write(raw)
            crc = zlib.crc32(raw, crc)
            count["tokens"] += len(ids)
            count["characters"] += sum(map(len, batch))
            count["bytes"] += sum(len(part.encode()) for part in batch)
    facts["splits"] = counts
    facts[CHECK_SUM] = _completed(crc, facts)
    file.seek(0)
    file.write((room - 8).to_bytes(8, "little") + _header(facts, dtype).ljust(room - 8))


def _header(facts: dict[str, Any], dtype: str) -> bytes:
    """The JSON of a file of safetensors, which stands behind its own length in eight bytes."""
    content: dict[str, Any] = {"__metadata__": {"tinygpt_pl": json.dumps(facts)}}
    end = 0
    for split, count in facts["splits"].items():
        begin, end = end, end + count["tokens"] * np.dtype(DTYPES[dtype]).itemsize
        content[split] = {"dtype": dtype, "shape": [count["tokens"]], "data_offsets": [begin, end]}
    return json.dumps(content).encode()


def read_tokens(path: Path, made_of: str) -> Tokens:
    """Map a token file into memory: once it has been checked, what is not looked at is never read.

    Raises:
        ValueError: if it is damaged, of another format or made of something else than its name says.
        OSError: if it cannot be opened.
    """
    try:
        with safe_open(path, framework="numpy") as header:  # sees that header and length fit each other
            facts = json.loads(header.metadata()["tinygpt_pl"])
            dtype = header.get_slice("train").get_dtype()
        tokenizer, counts = tokenizer_from(facts["tokenizer"]), facts["splits"]
        if (facts["format"], facts["made_of"]) != (FORMAT, made_of):
            raise ValueError("it is of another text, tokenizer or version")
        _check(path, facts)
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            area = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(area, "madvise"):
            area.madvise(mmap.MADV_RANDOM)  # else the kernel reads far more than the window that is asked for
        splits = {}
        for name, count in counts.items():
            ids = np.frombuffer(area, DTYPES[dtype], count["tokens"], start)
            splits[name] = Split(ids, count["characters"], count["bytes"])
            start += ids.nbytes
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be used ({error}); delete it, and it is made again") from None
    return Tokens(splits, tokenizer, facts["sha256"])


def _check(path: Path, facts: dict[str, Any]) -> None:
    """Compare a token file with its check sum, unless that has been done since it was last changed.

    Raises:
        ValueError: if the file is not as it was written.
        OSError: if it cannot be read.
    """
    status, record = path.stat(), Path(f"{path}{CHECKED}")
    now = json.dumps([facts[CHECK_SUM], status.st_size, status.st_mtime_ns, status.st_ctime_ns]).encode()
    if record.exists() and record.read_bytes() == now:
        return
    crc = 0
    with path.open("rb") as file, progress_bar(f"checking {path.name}", status.st_size, **BYTES) as bar:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        for block in iter(partial(file.read, BATCH), b""):
            crc = zlib.crc32(block, crc)
            bar.update(len(block))
    if _completed(crc, facts) != facts[CHECK_SUM]:
        raise ValueError("it is damaged: its check sum does not fit")
    with suppress(OSError):  # a cache that others keep is checked each time
        record.write_bytes(now)


def _completed(crc: int, facts: dict[str, Any]) -> str:
    """The check sum of token ids and metadata, after that of the ids alone."""
    others = json.dumps({name: fact for name, fact in facts.items() if name != CHECK_SUM})
    return f"{zlib.crc32(others.encode(), crc):08x}"

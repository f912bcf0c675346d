"""What a file holds, by its name and its first bytes: text, compressed text, or something to refuse."""

import codecs
import re
from collections import Counter
from pathlib import Path

from tinygpt_pl.text.compression import DECOMPRESSORS, PACKED

RECORDS = (".jsonl", ".ndjson")
"""Ends of the names of files with a JSON record in each line."""

CONVERT = "convert it first: iconv -f {} -t UTF-8 OLD > NEW"
LEAVE_OUT = "leave it out: --data.corpus takes a pattern in quotes, such as 'texts/**/*.txt'"
UNPACK = "unpack it first"
TO_RECORDS = "write its texts to a .jsonl file first, as records with a field text"
SOURCE = "give the text file that it was made from"

JSON_NAMES = (".json", ".geojson", ".ipynb")
"""Ends of the names of files with one value of JSON."""

JSON = {
    b"[": ("a JSON array", "write a record to each line first: jq -c '.[]' OLD.json > NEW.jsonl"),
    b"{": ("a JSON object", f"{TO_RECORDS}, or let its name end in .txt"),
}
"""What a .json file holds, by its first character, and what to do."""

SIGNATURES = {
    b"\x1f\x8b": ("compressed by gzip", "let its name end in .gz"),
    b"BZh91AY&SY": ("compressed by bzip2", "let its name end in .bz2"),
    b"\xfd7zXZ\0": ("compressed by xz", "let its name end in .xz"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "decompress it first: zstd -d"),
    b"\x04\x22\x4d\x18": ("compressed by lz4", "decompress it first: lz4 -d"),
    b"PK\x03\x04": ("a zip archive, as .docx, .epub and .ckpt files are", UNPACK),
    b"!<arch>\n": ("an archive of ar, as .a and .deb files are", UNPACK),
    b"version https://git-lfs": ("a pointer of Git LFS", "fetch what it stands for: git lfs pull"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", UNPACK),
    b"Rar!\x1a": ("a RAR archive", UNPACK),
    b"%PDF-1.": ("a PDF document", "extract its text first, for example with pdftotext"),
    b"{\\rtf": ("an RTF document", "save it as plain text first"),
    b"\xd0\xcf\x11\xe0": ("an Office document", "save it as plain text first"),
    b"PAR1\x15": ("a Parquet file", TO_RECORDS),
    b"ARROW1\0": ("an Arrow file", TO_RECORDS),
    b"\x93NUMPY": ("a NumPy array", SOURCE),
    b"SQLite format 3\0": ("an SQLite database", TO_RECORDS),
    b"\x80\x02": ("a pickle", SOURCE),
    b"\x80\x03": ("a pickle", SOURCE),
    b"\x80\x04\x95": ("a pickle", SOURCE),
    b"\x80\x05\x95": ("a pickle", SOURCE),
    b"(lp0\n": ("a pickle", SOURCE),  # of protocol 0, which is ASCII
    b"(dp0\n": ("a pickle", SOURCE),
    b"\x89PNG": ("an image", LEAVE_OUT),
    b"\xff\xd8\xff": ("an image", LEAVE_OUT),
    b"GIF87a": ("an image", LEAVE_OUT),
    b"GIF89a": ("an image", LEAVE_OUT),
    b"\xff\xfe\0\0": ("text in UTF-32", CONVERT.format("UTF-32")),
    b"\0\0\xfe\xff": ("text in UTF-32", CONVERT.format("UTF-32")),
    b"\xff\xfe": ("text in UTF-16", CONVERT.format("UTF-16")),
    b"\xfe\xff": ("text in UTF-16", CONVERT.format("UTF-16")),
    b"+/v8": ("text in UTF-7", CONVERT.format("UTF-7")),
}
"""What files begin with, what they are then, and what to do; the first that fits counts."""

USUAL = bytes({*range(256)} - {*range(32), 127} | {*b"\b\t\n\v\f\r\x1a\x1b"})
"""Bytes of texts: all but some control characters, and NUL, which is rare: it separates records."""

HOLE = bytes(512)
"""What a crash or a download that was cut off leaves in a file; no text has so many NUL in a row."""

UTF_16 = re.compile(rb"(?:[^\0]\0){16}|(?:\0[^\0]){16}")
"""Sixteen characters of an alphabet in it; NUL between records is never so close."""

ESCAPES = {
    "ISO-2022-JP": re.compile(rb"\x1b\$[@B](?:[!-~]{2})+\x1b\("),  # from Japanese characters back to ASCII
    "ISO-2022-KR": re.compile(rb"\x1b\$\)C"),
    "ISO-2022-CN": re.compile(rb"\x1b\$\)A"),
}
"""Escape sequences around Asian characters in encodings of ASCII bytes (RFC 1468, 1557 and 1922)."""

HZ = re.compile(rb"~\{(?:[!-w][!-~])+~\}")
"""Chinese in ASCII bytes (RFC 1843); Common Lisp has a few such pieces, in a text that is mostly none."""

KINDS = 6
"""Different control characters that separate or format parts of a text, at most; binary files have all of them."""

SCRIPTS = dict.fromkeys(range(0x30, 0xA0), "CJK") | dict.fromkeys(range(0xAC, 0xD8), "Hangul")
"""Scripts with more than one block of 256 characters, by the high byte; each other block counts for one script."""


def holds_records(path: Path) -> bool:
    """Whether a file has a JSON record in each line, by its name."""
    return _uncompressed(path).endswith(RECORDS)


def _uncompressed(path: Path) -> str:
    """The name of a file without the end that says how it is compressed, in lower case."""
    return (path.stem if path.suffix.lower() in DECOMPRESSORS else path.name).lower()


def check_text(path: Path, head: bytes) -> None:
    """Refuse what is not text; a text in an encoding that looks like UTF-8 is one.

    Args:
        path: of the file.
        head: its first bytes, decompressed.

    Raises:
        ValueError: with what it is, and what to do.
    """
    found = _of_a_format(path, head) or _of_an_encoding(head)
    if found:
        raise ValueError(f"{path} is {found[0]}, not text in UTF-8; {found[1]}")


def _of_a_format(path: Path, head: bytes) -> tuple[str, str] | None:
    """What a file of a known format is, and what to do; None for any other."""
    for start, (meaning, advice) in SIGNATURES.items():
        if head.startswith(start):
            if meaning.startswith("compressed") and path.suffix.lower() in DECOMPRESSORS:
                return f"{meaning} inside of another compression", UNPACK
            return meaning, UNPACK if path.suffix.lower() in PACKED else advice
    if head[257:262] == b"ustar":
        return "a tar archive", UNPACK
    if head[5:9] == b"\0\0\0{":
        return "a safetensors file", LEAVE_OUT
    if _uncompressed(path).endswith(JSON_NAMES):
        content = head.removeprefix(codecs.BOM_UTF8).lstrip()
        if re.match(rb"\{.*\}\s*\n\s*\{", content):
            return "a JSON record in each line", "let its name end in .jsonl"
        return JSON.get(content[:1])
    return None


def check_block(path: Path, block: bytes, offset: int) -> None:
    """Refuse a block that is valid UTF-8 but not text: UTF-16, which some programs append, NUL bytes, binary data.

    Raises:
        ValueError: with the place.
    """
    if b"\0" in block:
        if found := UTF_16.search(block):
            at = offset + found.start()
            raise ValueError(f"{path} has text in UTF-16 from byte {at} on; all of it must be in UTF-8")
        if (hole := block.find(HOLE)) >= 0:
            raise ValueError(f"{path} has a hole from byte {offset + hole} on: only NUL, no text; cut it out")
    if offset and len(block) > len(HOLE) and (other := _of_an_encoding(block)):
        raise ValueError(f"{path} is {other[0]} from about byte {offset} on, not text in UTF-8; {other[1]}")


def _of_an_encoding(head: bytes) -> tuple[str, str] | None:
    """What bytes without a format are if they are not text in UTF-8, and what to do."""
    for encoding, sequence in ESCAPES.items() if b"\x1b" in head else ():  # a single byte is found fast
        if sequence.search(head):
            return f"text in {encoding}", CONVERT.format(encoding)
    if b"~" in head and sum(map(len, HZ.findall(head))) > 0.3 * len(head):
        return "text in HZ-GB-2312", "convert it first, in Python: open('OLD', encoding='hz').read()"
    unusual = head.translate(None, USUAL)
    nul = unusual.count(0)
    controls = len(unusual) - nul
    if controls + nul <= 0.02 * len(head):
        return None
    for encoding in ("UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"):
        if _reads_as(head, encoding):
            return f"text in {encoding}", CONVERT.format(encoding)
    separates = controls < 0.02 * len(head) or (controls < 0.2 * len(head) and len({*unusual}) <= KINDS)
    if separates and nul < 0.5 * len(head):
        return None
    return "binary", LEAVE_OUT


def _reads_as(head: bytes, encoding: str) -> bool:
    """Whether bytes are text in UTF-16 or UTF-32: printable, in two scripts; of an alphabet if they are UTF-8, too."""
    text = head[: len(head) // 4 * 4].decode(encoding, "replace")
    printable = sum((char.isprintable() or char.isspace()) and char != "\N{REPLACEMENT CHARACTER}" for char in text)
    scripts = {} if _is_utf8(head) else SCRIPTS  # read as UTF-16, any ASCII text is full of Chinese characters
    common = Counter(scripts.get(ord(char) >> 8, ord(char) >> 8) for char in text).most_common(2)
    return printable >= 0.95 * len(text) > 0 and sum(count for _, count in common) >= 0.9 * len(text)


def _is_utf8(head: bytes) -> bool:
    """Whether bytes are UTF-8, but for a character that is cut off at their end."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True

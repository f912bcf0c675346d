"""Files as text: what is taken as it is, what is left out, and what is refused."""

import bz2
import functools
import gzip
import io
import json
import lzma
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reference import english
from tests.small_runs import LAST, Run, small
from tinygpt_pl import TinyGPT
from tinygpt_pl.text.corpus import BLOCK, read_texts
from tinygpt_pl.text.tokenizer import BPETokenizer, CharTokenizer


def read(path: Path, field: str = "text") -> list[str]:
    """Each text of a file, whole."""
    return ["".join(pieces) for pieces in read_texts(path, field, lambda count: None)]


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=50), st.integers(1, 10_000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_a_file_is_read_as_it_is_however_its_characters_lie_in_the_blocks(
    tmp_path: Path, text: str, times: int
) -> None:
    path = tmp_path / "text"
    path.write_bytes((text * times).encode())
    assert read(path) == [(text * times).removeprefix("\ufeff")]


def test_line_ends_stay_and_a_byte_order_mark_goes(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbf" + "a\r\nb\rc\n\ufeffd".encode())
    assert read(path) == ["a\r\nb\rc\n\ufeffd"]


@pytest.mark.parametrize("before", ["", "x" * (BLOCK - 1), "ä" * BLOCK])
def test_a_byte_that_is_not_utf8_is_named_with_its_offset(tmp_path: Path, before: str) -> None:
    """Also where the bytes of a character lie in two blocks."""
    path = tmp_path / "text"
    for raw, byte in ((b"\xff", "ff"), (b"\xe2\x82", "e2"), (b"\xe2\x82 ", "e2")):
        path.write_bytes(before.encode() + raw)
        with pytest.raises(ValueError, match=f"byte 0x{byte} at offset {len(before.encode())};"):
            read(path)


def test_a_piece_ends_where_tokens_end(tmp_path: Path) -> None:
    """A word that is cut in two has other tokens than the whole one."""
    text = english(5 * BLOCK).replace("fox ", "fox\r\n\r\n").replace("box ", "box.  ")
    path = tmp_path / "text"
    path.write_bytes(text.encode())
    (pieces,) = (list(pieces) for pieces in read_texts(path, "text", lambda count: None))
    assert len(pieces) >= 5
    tokenizer = BPETokenizer.from_texts([text], 400)
    ids = [i for piece in tokenizer.encode_all(pieces) for i in piece.tolist()]
    assert ids == tokenizer.encode(text).tolist()


def test_compressed_files_are_read_as_what_is_in_them(tmp_path: Path) -> None:
    text = english(3 * BLOCK)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert read(tmp_path / "a.txt.gz") == [text]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n\n{"text": "two", "n": 2}\n'))
    assert read(tmp_path / "b.jsonl.gz") == ["one", "two"]


def test_progress_is_told_in_bytes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(english(BLOCK).encode()))
    counts: list[int] = []
    for pieces in read_texts(path, "text", counts.append):
        list(pieces)
    assert sum(counts) == path.stat().st_size


@pytest.mark.parametrize(
    "spoil", [lambda raw: raw[:-20], lambda raw: raw[:50] + b"\0\0\0\0" + raw[54:], lambda raw: b"no"]
)
def test_a_damaged_compressed_file_is_refused(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(spoil(gzip.compress(english().encode())))
    with pytest.raises(ValueError, match=r"a\.gz is damaged or not compressed as its name says"):
        read(path)


@pytest.mark.parametrize(("end", "compress"), [("GZ", gzip.compress), ("bz2", bz2.compress), ("Xz", lzma.compress)])
def test_the_end_of_a_name_says_how_a_file_is_compressed(
    tmp_path: Path, end: str, compress: Callable[[bytes], bytes]
) -> None:
    text, path = english(3 * BLOCK), tmp_path / f"a.txt.{end}"
    raw = compress(text.encode())
    path.write_bytes(raw)
    assert read(path) == [text]
    (tmp_path / f"b.JSONL.{end}").write_bytes(compress(b'{"text": "one"}'))
    assert read(tmp_path / f"b.JSONL.{end}") == ["one"]
    for spoilt in (raw[: len(raw) // 2], raw[:40] + bytes(8) + raw[48:], b"no"):
        path.write_bytes(spoilt)
        with pytest.raises(ValueError, match="is damaged or not compressed as its name says"):
            read(path)


@pytest.mark.parametrize(
    "text",
    [
        '(format nil "~{[~a]~}~{[~a]~}concat=n=~a" inputs outputs)\n' * 3 + english(2000),
        "\x0304,01<nick>\x0f \x02hello\x02 there, \x1fyou\x1f\n" * 50,
        "id\x01name\x01town\n" * 900,
        "\x1e{}\n" * 20 + english(3000),
        "The sequence \x1b$B selects JIS X 0208.\n" * 3,
        "GIF8 is how GIF files begin.\n",
        "%PDF- is how PDF files begin.\n",
    ],
    ids=["Lisp", "chat", "Hive", "JSON sequence", "about ISO 2022", "about GIF", "about PDF"],
)
def test_text_that_looks_like_something_else_is_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text)
    assert read(path) == [text]


SMALL = CharTokenizer.from_text(english()).encode(english()).astype(np.uint8)
RUSSIAN = "Все счастливые семьи похожи друг на друга.\n" * 9  # noqa: RUF001  # it is meant to be in another script
zipped = functools.partial(gzip.compress, mtime=0)  # parameters are the same in each process of a test run
ARCHIVE = io.BytesIO()
with tarfile.open(fileobj=ARCHIVE, mode="w") as archive:
    archive.add(__file__)


@pytest.mark.parametrize(
    ("name", "raw", "what"),
    [
        ("a.txt", english().encode("utf-16"), r"text in UTF-16, .*; .* iconv -f UTF-16 "),
        ("a.txt", english().encode("utf-16-le"), r"text in UTF-16LE, .* iconv -f UTF-16LE "),
        ("a.txt", RUSSIAN.encode("utf-16-be"), "text in UTF-16BE"),
        ("a.txt", english().encode("utf-32-le"), "text in UTF-32LE"),
        ("train.bin", SMALL.astype(np.uint16).tobytes(), "binary"),
        ("train.bin", SMALL.tobytes(), "binary"),
        ("train.bin", SMALL.astype(np.int64).tobytes(), "binary"),
        ("train.bin", (SMALL.astype(np.uint16) * 700).tobytes(), "binary"),
        ("a.txt", zipped(b"text"), r"compressed by gzip, .* let its name end in .gz"),
        ("a.txt.zst", b"\x28\xb5\x2f\xfd\x04\x00\x59", r"compressed by zstd, .* zstd -d"),
        ("a.zip", b"PK\x03\x04\x14\x00\x00\x00", "a zip archive"),
        ("a.tar", ARCHIVE.getvalue(), "a tar archive"),
        ("a.tar.gz", zipped(ARCHIVE.getvalue()), "a tar archive"),
        ("a.json", b'\n[{"text": "one"}]', r"a JSON array, .* jq -c"),
        ("a.JSON.gz", zipped(b'[{"text": "one"}]'), "a JSON array"),
        ("a.json", b'\xef\xbb\xbf{"data": [1]}', r"a JSON object, .* or let its name end in .txt"),
        ("a.ipynb", b'{\n "cells": []}', "a JSON object"),
        ("a.GeoJSON", b'{"type": "FeatureCollection"}', "a JSON object"),
        ("a.json", b'{"text": "one"}\n{"text": "two"}\n', r"a JSON record in each line, .* let its name end in .jsonl"),
        ("a.txt", ("\u5c71\u9ad8\u6c34\u957f\n" * 9).encode("hz"), "text in HZ-GB-2312, .* encoding='hz'"),
        ("a.txt", ("話說天下大勢。\n" * 9).encode("utf-16-le"), r"text in UTF-16LE, .* iconv -f UTF-16LE "),
        ("a.txt", ("나랏말싸미 듕귁에 달아" * 9).encode("utf-16-be"), "text in UTF-16BE"),
        ("a.txt", ("雨ニモマケズ。\n" * 9).encode("iso2022_jp"), r"text in ISO-2022-JP, .* iconv -f ISO-2022-JP "),
        ("a.txt", ("비가 온다\n" * 9).encode("iso2022_kr"), "text in ISO-2022-KR"),
        ("a.txt", b"+/v8-" + RUSSIAN.encode("utf-7"), "text in UTF-7"),
        ("a.gz", zipped(zipped(b"text")), "compressed by gzip inside of another compression, .* unpack"),
        ("a.tgz", zipped(ARCHIVE.getvalue()), "compressed by gzip, .* unpack it first"),
        ("a.pkl", pickle.dumps(["text"]), "a pickle"),
        ("a.pkl", pickle.dumps(["text"], protocol=0), "a pickle"),
        ("a.db", b"SQLite format 3\0\x10\0", "an SQLite database"),
        ("a.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document"),
        ("a.rtf", b"{\\rtf1\\ansi Hello}", "an RTF document"),
        ("a.parquet", b"PAR1\x15\x04\x15\xae", "a Parquet file"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "an image"),
        ("a.npy", b"\x93NUMPY\x01\0v\0{'descr'", "a NumPy array"),
        ("a.safetensors", (60).to_bytes(8, "little") + b'{"w":{"dtype":"F32"}}', "a safetensors file"),
    ],
)
def test_what_is_not_text_is_refused_with_what_it_is(tmp_path: Path, name: str, raw: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=f"{name} is {what}"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    [
        "one\0two\0three\0" * 50,
        "\x1b[31mred\x1b[0m and \x1b[1mbold\x1b[0m\n" * 50,
        "page\fpage\f" * 50,
        '["a list", "of words"]\n',
        RUSSIAN,
        "話說天下大勢" * 99,
        "%PD",
        "PAR1 is a word\n",
        "one\0two three\0" * 50 + "話說天下大勢" * 9,
    ],
)
def test_what_only_looks_odd_is_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read(tmp_path / "a.txt") == [text]


def test_records_have_their_text_in_a_field(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records = [{"text": "one\r\n", "title": "1"}, {"text": "zwei ü", "title": "2"}]
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(json.dumps(record) for record in records).encode())
    assert read(path) == ["one\r\n", "zwei ü"]
    assert read(path, "title") == ["1", "2"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2, is no JSON"),
        (b"\xff", "line 2, is no JSON"),
        (b"[" * 100_000, "line 2, is no JSON"),
        (b"3", "line 2, has no text in a field 'text'; .*: none"),
        (b'{"text": 3, "body": "b", "n": 1}', "line 2, has no text in a field 'text'; those with one .*: body"),
        (b'{"text": "\\ud800"}', "line 2, has half of a surrogate pair"),
    ],
)
def test_a_record_without_a_text_is_named_with_its_line(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line)
    with pytest.raises(ValueError, match=message):
        read(path)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize(
    "text",
    ["one\r\ntwo\r\n" * 60, "\ufeffabc " * 100, "a\0b" * 200, "🙂🙃 " * 200, "a" * 600],
    ids=["CRLF", "byte-order mark", "NUL", "emoji", "one symbol"],
)
def test_fault_22_an_odd_text_is_taken_as_it_is(cli: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.txt").write_bytes(text.encode())
    code, _, err = cli("fit", *small(tmp_path / "odd.txt", trainer__max_steps=2))
    assert code == 0, err
    tokenizer = TinyGPT.load_from_checkpoint(LAST).tokenizer
    assert tokenizer is not None
    assert tokenizer.vocab_size == len(set(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(("end", "compress"), [("bz2", bz2.compress), ("xz", lzma.compress), ("gz", gzip.compress)])
def test_damage_in_a_later_member_is_no_end(tmp_path: Path, end: str, compress: Callable[[bytes], bytes]) -> None:
    """Python's readers of .bz2 and .xz take damage at the start of a member for the end of the file."""
    members = [bytearray(compress(english().encode()[i : i + 1000])) for i in range(0, 4000, 1000)]
    path = tmp_path / f"a.txt.{end}"
    path.write_bytes(b"".join(members))
    assert read(path) == [english()[:4000]]
    if end == "xz":  # which may have padding, also of more than a block
        path.write_bytes(members[0] + bytes(4 * BLOCK) + members[1] + bytes(8))
        assert read(path) == [english()[:2000]]
    members[2][len(members[2]) // 2] ^= 16
    path.write_bytes(b"".join(members))
    with pytest.raises(ValueError, match="is damaged"):
        read(path)


def test_a_short_first_member_hides_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"a") + gzip.compress(SMALL.tobytes()))
    with pytest.raises(ValueError, match="is binary"):
        read(path)

"""Files as text: what is taken as it is, what is left out, and what is refused."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reference import english
from tests.small_runs import LAST, Run, small
from tinygpt_pl import TinyGPT
from tinygpt_pl.text.corpus import BLOCK, read_texts
from tinygpt_pl.text.tokenizer import BPETokenizer


def read(path: Path, field: str = "text") -> list[str]:
    """Each text of a file, whole."""
    return ["".join(pieces) for pieces in read_texts(path, field, lambda count: None)]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50), st.integers(1, 10_000))
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
    with pytest.raises(ValueError, match=r"a\.gz is damaged or not compressed by gzip"):
        read(path)


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

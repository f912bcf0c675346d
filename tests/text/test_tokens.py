"""Token files: what is in them, when a new one is made, and which are refused."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.reference import english
from tests.small_runs import FORKS, Run, small
from tinygpt_pl.text import tokens
from tinygpt_pl.text.corpus import SEPARATOR, Corpus, load_corpus
from tinygpt_pl.text.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from tinygpt_pl.text.tokens import BATCH, CHECKED, Tokens, prepare

GREEK = "Ἐν ἀρχῇ ἦν ὁ λόγος, καὶ ὁ λόγος ἦν πρὸς τὸν θεόν. "


def made(cache: Path, text: str | Corpus, kind: str = "char", size: int = 300, **given: Any) -> Tokens:
    corpus = Corpus("own", (text,)) if isinstance(text, str) else text
    return prepare(corpus, cache, 0.1, kind, size, **given)


def files(cache: Path) -> list[Path]:
    return sorted(cache.glob("tokens/*.safetensors"))


def decoded(tokens: Tokens) -> str:
    return "".join(tokens.tokenizer.decode(tokens.splits[name].ids) for name in ("train", "val"))


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
@pytest.mark.parametrize("text", [english(), GREEK * 100, "中文🦜" * BATCH], ids=["english", "greek", "long"])
def test_all_tokenizers_have_the_same_text_in_the_same_splits(tmp_path: Path, text: str, kind: str) -> None:
    if kind == "bpe" and len(text) > BATCH:
        text = text[:100_000]  # one long word, which takes a merge at a time
    tokens = made(tmp_path, text, kind)
    boundary = int(len(text) * 0.9)
    parts = {"train": text[:boundary], "val": text[boundary:]}
    for name, split in tokens.splits.items():
        assert tokens.tokenizer.decode(split.ids) == parts[name]
        assert (split.characters, split.bytes) == (len(parts[name]), len(parts[name].encode()))
    assert tokens.sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("text", "kind", "size", "dtype"),
    [
        ("".join(map(chr, range(256))) * 9, "char", 0, np.uint8),
        ("".join(map(chr, range(257))) * 9, "char", 0, np.uint16),
        (english(), "byte", 0, np.uint8),
        (english(), "bpe", 257, np.uint16),
        ("".join(chr(i) for i in range(65537 + 2048) if not 0xD800 <= i < 0xE000), "char", 0, np.uint32),
    ],
)
def test_ids_take_no_more_bytes_than_they_need(tmp_path: Path, text: str, kind: str, size: int, dtype: type) -> None:
    assert made(tmp_path, text, kind, size).splits["train"].ids.dtype == dtype
    assert decoded(made(tmp_path, text, kind, size)) == text


def test_other_programs_can_read_a_token_file(tmp_path: Path) -> None:
    tokens = made(tmp_path, GREEK * 10)
    (path,) = files(tmp_path)
    arrays = load_file(path)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        name: split.ids.tolist() for name, split in tokens.splits.items()
    }
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    facts = json.loads(header["__metadata__"]["tinygpt_pl"])
    assert (facts["format"], facts["sha256"]) == (2, tokens.sha256)
    assert facts["splits"]["val"]["tokens"] == len(arrays["val"])
    assert facts["tokenizer"] == {"characters": "".join(sorted(set(GREEK))), "kind": "char"}


def test_a_token_file_is_made_once_and_anew_when_text_or_tokenizer_change(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text(english())
    first = made(tmp_path, load_corpus(str(path), tmp_path))
    (file,) = files(tmp_path)
    time = file.stat().st_mtime_ns
    again = made(tmp_path, load_corpus(str(path), tmp_path))
    assert (file.stat().st_mtime_ns, again.tokenizer) == (time, first.tokenizer)
    # The same size and the same time as before, as a tool that copies may leave them.
    status = path.stat()
    path.write_text(english()[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert decoded(made(tmp_path, load_corpus(str(path), tmp_path))) == english()[::-1]
    others: list[tuple[str, int]] = [("byte", 0), ("bpe", 300), ("bpe", 320)]
    for number, (kind, size) in enumerate(others, 3):
        made(tmp_path, load_corpus(str(path), tmp_path), kind, size)
        assert len(files(tmp_path)) == number
    assert prepare(load_corpus(str(path), tmp_path), tmp_path, 0.2, "char", 0).splits["val"].characters == 800


def test_a_token_file_is_used_where_nothing_can_be_written(tmp_path: Path, read_only: Callable[[Path], None]) -> None:
    """As in a cache that others keep; a lock and the record of a check would be files, too."""
    made(tmp_path, english())
    (file,) = files(tmp_path)
    for end in (".lock", CHECKED):
        Path(f"{file}{end}").unlink()
    read_only(file.parent)
    made(tmp_path, english())
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_known_tokenizer_finds_the_file_that_its_run_made(tmp_path: Path) -> None:
    """Else to go on with a run would mean to encode its text a second time."""
    for kind in ("char", "byte", "bpe"):
        tokens = made(tmp_path, english(), kind)
        before = files(tmp_path)
        made(tmp_path, english(), kind, known=tokens.tokenizer)
        assert files(tmp_path) == before
    other = CharTokenizer.from_text(english() + "äöü")
    assert made(tmp_path, english(), known=other).tokenizer == other
    assert len(files(tmp_path)) == len(before) + 1


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_between_two_texts_stands_an_empty_line_or_the_token_for_that(tmp_path: Path, kind: str) -> None:
    texts = [english(500), "", english(700), GREEK]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    corpus = load_corpus(str(tmp_path / "*.txt"), tmp_path)
    whole = SEPARATOR.join(filter(None, texts))
    tokens = made(tmp_path, corpus, kind)
    end = "<|endoftext|>"
    assert decoded(tokens) == (whole.replace(SEPARATOR, end) if kind == "bpe" else whole)
    if kind == "bpe":
        assert sum(split.ids.tolist().count(tokens.tokenizer.end_of_text) for split in tokens.splits.values()) == 2
    assert sum(split.characters for split in tokens.splits.values()) == len(whole)
    assert tokens.sha256 == hashlib.sha256(whole.encode()).hexdigest()


def test_pairs_are_learnt_from_the_training_split_alone(tmp_path: Path) -> None:
    train = english(9000)
    one, other = (made(tmp_path, train + end * 500, "bpe") for end in ("qz", "zq"))
    assert one.sha256 != other.sha256
    assert one.tokenizer == other.tokenizer


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[:-1],
        lambda raw: raw + b"\0",
        lambda raw: raw[:20],
        lambda raw: b"",
        lambda raw: b"something else " * 1000,
        lambda raw: raw.replace(b"made_of", b"made_0f"),
        lambda raw: raw.replace(b'\\"format\\": 2', b'\\"format\\": 9'),
        lambda raw: raw.replace(b"abcdefg", b"bacdefg"),
        lambda raw: raw.replace(b"tinygpt_pl", b"tinygpt_pt"),
    ],
    ids=["cut", "longer", "short", "empty", "foreign", "other facts", "format", "other tokenizer", "no facts"],
)
def test_fault_23_a_truncated_or_foreign_file_is_refused(tmp_path: Path, spoil: Any) -> None:
    made(tmp_path, english())
    (path,) = files(tmp_path)
    raw = path.read_bytes()
    path.write_bytes(spoil(raw))
    assert path.read_bytes() != raw
    with pytest.raises(ValueError, match=r"cannot be used .*; delete it, and it is made again"):
        made(tmp_path, english())
    path.unlink()
    assert decoded(made(tmp_path, english())) == english()


def test_damage_anywhere_in_a_file_is_found(tmp_path: Path) -> None:
    """A byte of the body or of the metadata."""
    text = english()
    made(tmp_path, text)
    (path,) = files(tmp_path)
    raw = path.read_bytes()
    for at in range(0, len(raw), 97):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(ValueError, match="delete it, and it is made again"):
            made(tmp_path, text)
    path.write_bytes(raw)
    assert decoded(made(tmp_path, text)) == text


def test_a_file_is_checked_once_for_each_of_its_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, english())
    (path,) = files(tmp_path)
    checked: list[int] = []
    completed = tokens._completed

    def counted(crc: int, facts: dict[str, Any]) -> str:
        checked.append(crc)
        return completed(crc, facts)

    monkeypatch.setattr(tokens, "_completed", counted)
    made(tmp_path, english())
    assert checked == []
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # another time of change alone
    for _ in range(2):
        made(tmp_path, english())
    assert len(checked) == 1


def test_fault_23_the_file_of_another_text_is_refused_under_this_ones_name(tmp_path: Path) -> None:
    made(tmp_path, english())
    (path,) = files(tmp_path)
    made(tmp_path, GREEK * 10)
    (other,) = set(files(tmp_path)) - {path}
    path.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match="it is of another text, tokenizer or version"):
        made(tmp_path, english())


def test_fault_23_a_damaged_token_file_costs_three_lines_and_exit_code_2(
    cli: Run, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = small(text_file, trainer__max_steps=1, data__cache_dir=tmp_path)
    assert cli("fit", *options)[0] == 0
    (path,) = files(tmp_path)
    raw = path.read_bytes()
    for spoilt in (raw[:-1], raw[:-2000] + raw[-1000:] + raw[-1000:]):
        path.write_bytes(spoilt)
        code, out, err = cli("fit", *options)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) <= 3
        assert f"{path} cannot be used" in err
        assert "delete it, and it is made again" in err
    path.unlink()
    assert cli("fit", *options)[0] == 0


def test_characters_that_a_known_tokenizer_lacks_are_named_before_anything_is_written(tmp_path: Path) -> None:
    known = CharTokenizer.from_text(english())
    with pytest.raises(ValueError, match="'own' has 2 characters that are not among the 27 known ones: 'Ä', '中'"):
        made(tmp_path, english() + "中Ä中", known=known)
    assert not files(tmp_path)
    every: list[Tokenizer] = [ByteTokenizer(), BPETokenizer.from_texts([english()], 300)]
    for tokenizer in every:
        assert decoded(made(tmp_path, english() + "中Ä中", known=tokenizer)) == english() + "中Ä中"


def test_a_text_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text(english())

    class Growing(Corpus):
        def parts(self, *args: Any) -> Any:
            yield from super().parts(*args)
            with path.open("a") as file:
                file.write("more")

    with pytest.raises(ValueError, match="changed while it was read"):
        made(tmp_path, Growing("own", (path,)))
    assert not files(tmp_path)


def prepare_slowly(folder: Path) -> None:
    """Prepare the text in a folder; each survey of it leaves a line and takes a second."""
    survey = tokens.survey

    def counted(*args: Any) -> Any:
        with (folder / "surveys").open("a") as file:
            file.write("one\n")
        time.sleep(1)
        return survey(*args)

    pytest.MonkeyPatch().setattr(tokens, "survey", counted)
    assert len(made(folder, load_corpus(str(folder / "text"), folder)).splits["train"].ids) == 3600 * 1000


def test_processes_that_start_together_prepare_once(tmp_path: Path) -> None:
    """Those that wait for the first find its file, and take no second look at the text."""
    (tmp_path / "text").write_text(english() * 1000)
    processes = [FORKS.Process(target=prepare_slowly, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert (tmp_path / "surveys").read_text() == "one\n"
    assert len(files(tmp_path)) == 1


def test_the_name_of_a_link_says_how_its_file_is_read(tmp_path: Path) -> None:
    """The tokens of records were taken for those of the same file as plain text."""
    records, text = tmp_path / "c.jsonl", tmp_path / "c.txt"
    records.write_text('{"text": "one"}\n')
    text.symlink_to(records)
    assert load_corpus(str(records), tmp_path).signature() != load_corpus(str(text), tmp_path).signature()

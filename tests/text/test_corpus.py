"""Texts: what they are, how they are fetched once, and what is refused."""

import gzip
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.reference import english
from tests.small_runs import FORKS, Run, small
from tinygpt_pl.text.corpus import default_cache_dir, download, load_corpus
from tinygpt_pl.text.tokens import prepare

BODY = b"to be or not to be\n" * 50
SHA256 = hashlib.sha256(BODY).hexdigest()


@contextmanager
def server(body: bytes, announced: int | None = None, status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """A web server on this machine that sends `body`, and the list of what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if announced is None else announced))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}/input.txt", asked
        finally:
            http.shutdown()
            thread.join()


def test_tiny_shakespeare(shakespeare_cache: Path) -> None:
    corpus = load_corpus("tinyshakespeare", shakespeare_cache)
    assert corpus.name == "tinyshakespeare"
    assert len(corpus.text) == 1_115_394
    assert len(set(corpus.text)) == 65
    assert corpus.text.startswith("First Citizen:\nBefore we proceed any further")


def test_pydoc_needs_no_file(tmp_path: Path) -> None:
    corpus = load_corpus("pydoc", tmp_path)
    assert len(corpus.text) > 300_000
    assert "assignment" in corpus.text
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_bytes("Straße\r\nβ\n".encode())
    assert load_corpus(str(path), tmp_path).text == "Straße\r\nβ\n"


def test_cache_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINYGPT_CACHE", raising=False)
    assert default_cache_dir() == Path("data")
    monkeypatch.setenv("TINYGPT_CACHE", "/elsewhere")
    assert default_cache_dir() == Path("/elsewhere")


def test_a_download_is_kept_and_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "new" / "text"
    with server(BODY) as (url, asked):
        download(url, SHA256, path)
        download(url, SHA256, path)
    assert path.read_bytes() == BODY
    assert len(asked) == 1


def test_processes_that_start_together_download_once(tmp_path: Path) -> None:
    path = tmp_path / "text"
    with server(BODY) as (url, asked):
        processes = [FORKS.Process(target=download, args=(url, SHA256, path)) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=60)
            assert process.exitcode == 0
    assert len(asked) == 1
    assert path.read_bytes() == BODY


def test_fault_20_a_wrong_download(tmp_path: Path) -> None:
    path = tmp_path / "text"
    with server(b"<html>Please log in</html>") as (url, _), pytest.raises(ValueError, match="was not kept"):
        download(url, SHA256, path)
    assert not path.exists()


@pytest.mark.parametrize(("announced", "status"), [(len(BODY) + 7, 200), (None, 404)], ids=["broken off", "not found"])
def test_fault_20_a_failed_download(tmp_path: Path, announced: int | None, status: int) -> None:
    path = tmp_path / "new" / "text"
    with server(BODY, announced, status) as (url, _), pytest.raises(ConnectionError, match="could not be downloaded"):
        download(url, SHA256, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_network")
def test_without_a_network_another_corpus_stands_in_if_it_may(tmp_path: Path) -> None:
    assert load_corpus("tinyshakespeare", tmp_path, offline_corpus="pydoc").name == "pydoc"
    with pytest.raises(ConnectionError, match="save it as"):
        load_corpus("tinyshakespeare", tmp_path)


def test_a_cached_file_that_is_another_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tinyshakespeare.txt").write_bytes(BODY)
    with pytest.raises(ValueError, match="is not Tiny Shakespeare"):
        load_corpus("tinyshakespeare", tmp_path, offline_corpus="pydoc")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"abc\xff\xfe", "not UTF-8: byte 0xff at offset 3"),
        ("abc€".encode()[:-1], "not UTF-8: byte 0xe2 at offset 3"),
    ],
)
def test_fault_20_and_22_an_unfit_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prepare(load_corpus(str(path), tmp_path), tmp_path, 0.1, "char", 0)
    assert not list(tmp_path.glob("tokens/*"))


def test_fault_20_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a file, a folder nor one of tinyshakespeare, pydoc"):
        load_corpus("tinyshakespear", tmp_path)
    with pytest.raises(ValueError, match="it has no files"):
        load_corpus(str(tmp_path), tmp_path)
    with pytest.raises(ValueError, match="it has no files"):
        load_corpus(str(tmp_path / "*.txt"), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_fault_20_an_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(BODY)
    path.chmod(0)
    with pytest.raises(OSError, match="Permission denied"):
        load_corpus(str(path), tmp_path)


def test_folders_and_patterns_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, text in {"b.txt": "2", "a.txt": "1", "sub/c.md": "3", ".hidden": "x", ".git/d": "x"}.items():
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert load_corpus(str(tmp_path / "texts"), tmp_path).text == "1\n\n2\n\n3"
    assert load_corpus(str(tmp_path / "texts" / "*.txt"), tmp_path).text == "1\n\n2"
    assert load_corpus(str(tmp_path / "texts" / "**" / "*.m?"), tmp_path).text == "3"


def test_a_folder_may_have_the_signs_of_a_pattern_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "[old]").mkdir()
    (tmp_path / "[old]" / "a*.txt").write_text("1")
    assert load_corpus(str(tmp_path / "[old]"), tmp_path).text == "1"
    assert load_corpus(str(tmp_path / "[old]" / "a*.txt"), tmp_path).text == "1"
    assert load_corpus(str(tmp_path / "[old]" / "*.txt"), tmp_path).text == "1"
    assert load_corpus(str(tmp_path / "[old]" / "**"), tmp_path).text == "1"


def test_files_of_several_kinds_are_one_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\n".encode())
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"two"))
    (tmp_path / "c.jsonl").write_bytes(b'{"body": "three"}\n{"body": ""}\n{"body": "four"}\n')
    assert load_corpus(str(tmp_path), tmp_path, field="body").text == "one\n\n\ntwo\n\nthree\n\nfour"


def test_each_file_is_taken_once_however_links_lead_to_it(tmp_path: Path) -> None:
    texts, elsewhere = tmp_path / "texts", tmp_path / "elsewhere"
    (texts / "sub").mkdir(parents=True)
    elsewhere.mkdir()
    for path, text in ((texts / "a.txt", "1"), (texts / "sub" / "b.txt", "2"), (elsewhere / "c.txt", "3")):
        path.write_text(text)
    (texts / "self").symlink_to(".")
    (texts / "sub" / "up").symlink_to("..")
    (texts / "z.txt").symlink_to("a.txt")
    os.link(texts / "a.txt", texts / "sub" / "hard.txt")
    (texts / "there").symlink_to(elsewhere)
    (texts / "gone.txt").symlink_to("nowhere")
    for corpus in (texts, texts / "**" / "*.txt", texts / "**"):
        found = load_corpus(str(corpus), tmp_path)
        assert found.text == "1\n\n2\n\n3", corpus
        assert "gone.txt" in found.note, "with its text, it would be another corpus"
    assert load_corpus(str(texts / "*" / "*.txt"), tmp_path).text == "1\n\n2\n\n3"


def test_settings_and_outputs_are_no_part_of_a_folder(tmp_path: Path) -> None:
    cache = tmp_path / "data"
    for name in (
        *("a.txt", "data/b.txt"),
        *("tiny.yaml", "train.log", "gpt2.ckpt", "data/tinyshakespeare.txt", "data/tokens/a.safetensors"),
        *("data/tokens/a.safetensors.checked", "runs/x/events.out.tfevents.1", "runs/x/notes.txt", "x.ckpt.partial"),
        *("my-gpt/model.safetensors", "my-gpt/config.json", "model.safetensors", "slurm-12.out"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    found = load_corpus(str(tmp_path), cache)
    assert found.text == "a.txt\n\ndata/b.txt"
    assert found.note.startswith(f"NOTE: corpus '{tmp_path}' leaves out settings, output and dead links: ")
    assert load_corpus(str(tmp_path / "**" / "*"), cache).text.split("\n\n") == sorted(
        ["a.txt", "data/b.txt", "slurm-12.out", "tiny.yaml", "train.log"]
    )
    assert load_corpus(str(tmp_path / "*" / "*"), cache).text == "data/b.txt", "a pattern reaches into an export"
    assert load_corpus(str(cache), cache).text == "data/b.txt\n\ndata/tinyshakespeare.txt"
    assert load_corpus(str(tmp_path / "tiny.yaml"), cache).text == "tiny.yaml"
    with pytest.raises(ValueError, match=r"it has no files but settings or output of this program, as "):
        load_corpus(str(tmp_path / "*.ckpt"), cache)


def test_a_text_that_goes_on_in_utf_16_is_refused(tmp_path: Path) -> None:
    """What PowerShell appends; as UTF-8 it is letters with NUL between them."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"to be or not to be\n" * 9000 + "that is the question\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"a\.txt has text in UTF-16 from byte 171000 on; all of it must be in UTF-8"):
        list(load_corpus(str(path), tmp_path).parts())
    path.write_bytes(b"one\0two\0three\0" * 9000)
    assert load_corpus(str(path), tmp_path).text.count("three") == 9000


@pytest.mark.parametrize(
    ("rest", "what"),
    [
        (bytes(4096), r"has a hole from byte 171000 on: only NUL"),
        (bytes([*range(1, 10), 65, 66]) * 2000, r"is binary from about byte \d+ on, not text in UTF-8"),
        ("源氏物語".encode("iso2022_jp") * 500, r"is text in ISO-2022-JP from about byte \d+ on"),
    ],
)
def test_a_text_that_goes_on_as_something_else_is_refused(tmp_path: Path, rest: bytes, what: str) -> None:
    """After a crash or a broken download, or where somebody has joined files."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"to be or not to be\n" * 9000 + rest)
    with pytest.raises(ValueError, match=what):
        list(load_corpus(str(path), tmp_path).parts())


def test_a_record_may_have_numbers_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"id": {"1" * 5000}, "text": "one"}}\n')
    assert load_corpus(str(path), tmp_path).text == "one"


def test_what_cannot_be_read_twice_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="cannot be read twice"):
        load_corpus(str(tmp_path / "pipe"), tmp_path)


def test_a_run_in_the_folder_of_its_text_resumes(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it and the other commands have written there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TINYGPT_CACHE")
    Path("a.txt").write_text(english())
    Path("tiny.yaml").write_text("trainer: {max_steps: 4}")
    options = [option for option in small(Path("."), trainer__max_steps=4) if "max_steps" not in option]
    code, out, err = cli("fit", "--config=tiny.yaml", *options)
    assert code == 0, err
    assert out.splitlines()[0] == "NOTE: corpus '.' leaves out settings, output and dead links: tiny.yaml"
    assert cli("diagnose", "--report", "--output=page.html")[0] in (0, 3)
    assert cli("export", "--output_dir=exported")[0] == 0
    Path("train.log").write_text(out)
    code, out, err = cli("fit", "--ckpt_path=last", "--trainer.max_steps=6")
    assert code == 0, err
    assert len(list(Path("data/tokens").glob("*.safetensors"))) == 1

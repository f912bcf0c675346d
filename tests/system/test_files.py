"""A file is whole or not there."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tinygpt_pl.system.files import PARTIAL, make_once, making, replacing, short, sweep


def test_a_file_takes_the_place_of_another_when_it_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    for text in (b"old", b"new"):
        before = path.read_bytes() if path.exists() else None
        with replacing(path) as file:
            file.write(text)
            file.flush()
            assert (path.read_bytes() if path.exists() else None) == before
        assert path.read_bytes() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_file(small_disk: Path) -> None:
    path = small_disk / "file"
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"), replacing(path) as file:
        file.write(bytes(500_000))
    assert not list(small_disk.iterdir())


def test_unfinished_files_are_swept(tmp_path: Path) -> None:
    """None but those: a user may have files of such names."""
    others = ["a", f"a{PARTIAL}", f"a.20260102{PARTIAL}", f"b.0123456789abcdef{PARTIAL}", "partial"]
    for name in (*others, f"a.0123456789abcdef{PARTIAL}", f"c.a.fedcba9876543210{PARTIAL}"):
        (tmp_path / name).touch()
    (tmp_path / f"d.a.0123456789abcdef{PARTIAL}").mkdir()
    sweep(tmp_path, "*a")
    sweep(tmp_path / "nowhere", "*")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, f"d.a.0123456789abcdef{PARTIAL}"])


def test_a_users_own_partial_file_stays(tmp_path: Path) -> None:
    (tmp_path / "a.partial").write_text("mine")
    with replacing(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "a.partial").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_whoever_makes_a_file_sweeps_what_was_left_of_it(tmp_path: Path) -> None:
    """Killed processes would fill the disk with unfinished token files."""
    for name in ("a[1]", "a1", "dead", "alive"):
        (tmp_path / f"{name}.0123456789abcdef.partial").touch()
    (tmp_path / "dead.lock").touch()  # its text or its vocabulary is another by now
    with FileLock(tmp_path / "alive.lock"):
        make_once(tmp_path / "a[1]", lambda file: file.write(b"new"))
    left = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")}
    assert left == {"a[1]", "a1.0123456789abcdef.partial", "alive.0123456789abcdef.partial"}


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for target in ("there/old", "there/new"):
        link = tmp_path / "link"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        with replacing(link) as file:
            file.write(b"new")
        assert link.is_symlink()
        assert (tmp_path / target).read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "new", "old", "there"]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A folder and a file that are mounted over others."""
    pairs = []
    for name, make in (("folder", Path.mkdir), ("file", Path.touch)):
        source, place = tmp_path / f"outer-{name}", tmp_path / name
        make(source)
        make(place)
        if subprocess.run(["mount", "--bind", source, place], capture_output=True, check=False).returncode:
            pytest.skip("this sandbox allows no mounts")
        pairs.append(place)
    yield pairs[0], pairs[1]
    for place in pairs:
        subprocess.run(["umount", "--lazy", place], check=True)


def test_a_mounted_file_is_written_over(mounted: tuple[Path, Path]) -> None:
    _, path = mounted
    with replacing(path) as file:
        file.write(b"new")
    assert (path.parent / "outer-file").read_bytes() == b"new"
    assert not list(path.parent.glob(f"*{PARTIAL}"))


def fill(path: Path) -> None:
    with making(path) as folder:
        (folder / "a").write_text("a")
        (folder / "b").write_text("b")


def test_a_folder_is_made_whatever_lies_at_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "target").mkdir(mode=0o750)
    (tmp_path / "dangling").symlink_to("deep/down")
    (tmp_path / f"new{PARTIAL}").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("../empty", ".", "../link", "../dangling", "../new"):
        fill(Path(name))
        assert sorted(path.name for path in Path(name).iterdir()) == ["a", "b"]
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / f"new{PARTIAL}").exists(), "it is not known whose it is"


def test_a_folder_is_made_in_one_that_is_mounted(mounted: tuple[Path, Path]) -> None:
    folder, _ = mounted
    fill(folder)
    assert sorted(path.name for path in (folder.parent / "outer-folder").iterdir()) == ["a", "b"]


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_fails_leaves_nothing(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "folder").mkdir()

    def fail() -> None:
        with making(tmp_path / "folder") as folder:
            (folder / "a").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.rglob("*")) == [tmp_path / "folder"] * there


def test_whoever_waits_long_for_a_file_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And gets what the other has made."""
    monkeypatch.setattr("tinygpt_pl.system.files.SILENT_WAIT", 0.1)
    path, begun, said = tmp_path / "file", threading.Event(), threading.Event()

    def slowly(file: object) -> None:
        begun.set()
        assert said.wait(10)

    other = threading.Thread(target=make_once, args=(path, slowly))
    other.start()
    assert begun.wait(10)

    def note(message: str) -> None:
        print(message)
        said.set()

    monkeypatch.setattr("tinygpt_pl.system.files.warn", note)
    make_once(path, lambda file: None)
    other.join()
    assert capsys.readouterr().out == f"waiting for another process, which makes {path}\n"


def test_a_path_is_short_where_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert short(tmp_path / "a") == Path("a")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert short(tmp_path / "a") == tmp_path / "a"
    os.chdir(tmp_path)

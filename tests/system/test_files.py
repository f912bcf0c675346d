"""A file is whole or not there."""

from pathlib import Path

import pytest

from tinygpt_pl.system.files import PARTIAL, replacing, sweep


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


def test_unfinished_files_are_swept(tmp_path: Path) -> None:
    for name in ("a", f"a{PARTIAL}", f"b{PARTIAL}", "partial"):
        (tmp_path / name).touch()
    (tmp_path / f"c.a{PARTIAL}").mkdir()
    sweep(tmp_path, "*a")
    sweep(tmp_path / "nowhere", "*")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", f"b{PARTIAL}", f"c.a{PARTIAL}", "partial"]

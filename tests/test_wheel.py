"""A built wheel has all of the package, and runs without a checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, for setuptools leaves its work beside the sources."""
    pytest.importorskip("setuptools", minversion="77")
    copy, output = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for folder in ("tinygpt_pl", "configs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    pip("wheel", "--no-build-isolation", "-w", str(output), str(copy))
    (path,) = output.glob("*.whl")
    return path


def pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *words, "-q", "--no-deps"], check=True, timeout=120)


def test_a_wheel_has_every_room_and_configuration(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        (licence,) = (name for name in archive.namelist() if name.endswith("/LICENSE"))
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "tinygpt_pl").rglob("*.py")}
    configs = {f"tinygpt_pl/configs/{path.name}" for path in (ROOT / "configs").iterdir()}
    assert packed == ours | configs | {"tinygpt_pl/py.typed"}
    assert licence
    assert "\nLicense-Expression: MIT\n" in metadata


@pytest.mark.slow
def test_an_installed_wheel_finds_its_configurations(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip("install", "--no-index", "--target", str(tmp_path / "site"), str(wheel))
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    command = [str(tmp_path / "site/bin/tinygpt"), "fit", "--config", "cpu", "--print_config"]
    done = subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "norm: rmsnorm" in done.stdout

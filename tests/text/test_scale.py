"""Corpora of several gigabytes: prepared in little memory, and trained on under a limit that they are larger than."""

import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from benchmarks.corpus import preparing, step_seconds, window_seconds, write_text
from tests.small_runs import scalars, small

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LIMIT = 1_000_000
"""Kilobytes that a process may allocate in all; what it maps to look at is not counted."""


@pytest.fixture(scope="module")
def gigabytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of two and a half gigabytes."""
    path = tmp_path_factory.mktemp("large") / "text.txt"
    write_text(path, 2.5)
    return path


def limited(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that may allocate no more than LIMIT."""
    command = ["sh", "-c", f'ulimit -d {LIMIT}; exec "$@"', "sh", sys.executable, *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="limits and their measure are those of Linux")
def test_several_gigabytes_go_through_little_memory(gigabytes: Path) -> None:
    """Prepared at 50 MB a second and more on one core, in less than 500 MB; trained on at the speed of a small text."""
    folder = gigabytes.parent
    speed, memory = preparing(gigabytes, folder / "data", "char")
    print(f"prepared at {speed:.0f} MB/s in {memory:.0f} MB")
    assert speed >= 50
    assert memory < 500

    (file,) = (folder / "data" / "tokens").glob("*.safetensors")
    assert file.stat().st_size > 2 * LIMIT * 1000
    whole = limited("-c", f"import numpy; numpy.fromfile({str(file)!r}, numpy.uint8)", cwd=folder)
    assert "Unable to allocate" in whole.stderr, "the limit is none"

    little = folder / "little.txt"
    with gigabytes.open("rb") as text:
        little.write_bytes(text.read(10_000_000))
    sizes = {
        "model__gpt__n_layer": 2,
        "model__gpt__n_embd": 128,
        "model__gpt__block_size": 128,
        "data__batch_size": 16,
        "data__cache_dir": folder / "data",
    }
    speeds: dict[Path, list[float]] = {gigabytes: [], little: []}
    for turn in range(2):
        for path in speeds:
            run = f"{path.stem}-{turn}"
            options = small(path, **sizes, trainer__max_steps=120, eval_interval=120, trainer__log_every_n_steps=5)
            done = limited("-m", "tinygpt_pl", "fit", *options, f"--run_dir={run}", cwd=folder)
            assert done.returncode == 0, done.stderr
            speeds[path].append(median(value for _, value in scalars(folder / run)["perf/tokens_per_second"]))
    large, small_ = (max(values) for values in speeds.values())  # a busy machine slows a run, and speeds up none
    print(f"{large:,.0f} tokens a second from {file.stat().st_size / 1e9:.1f} GB, {small_:,.0f} from a small file")
    assert large > 0.9 * small_


def test_windows_from_a_large_file_cost_a_hundredth_of_a_base_step(gigabytes: Path) -> None:
    """Also where each has to be read from the disk."""
    cache = gigabytes.parent / "data"
    if not cache.exists():
        preparing(gigabytes, cache, "char")
    step = step_seconds(steps=1)
    for cold in (False, True):
        seconds = window_seconds(gigabytes, cache, "char", cold=cold)
        print(f"{seconds * 1e6:.0f} µs of {step:.2f} s, {seconds / step:.4%}, {cold=}")
        assert seconds < 0.01 * step

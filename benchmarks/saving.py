"""What saving costs: the share of a run that is spent on writing checkpoints, flushing to the disk included.

    python benchmarks/saving.py                     # configs/small.yaml, whole
    python benchmarks/saving.py --trainer.max_steps 500

Options are those of `fit`; the run goes into a folder that is deleted afterwards.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from tinygpt_pl.commands import main as command
from tinygpt_pl.runs.folder import checkpoint_path

CONFIG = Path(__file__).parent.parent / "configs" / "small.yaml"


def main() -> None:
    """Run `fit` with a stopwatch around each save."""
    save, seconds = pl.Trainer.save_checkpoint, []

    def timed(*args: Any, **kwargs: Any) -> None:
        start = time.perf_counter()
        save(*args, **kwargs)
        seconds.append(time.perf_counter() - start)

    pl.Trainer.save_checkpoint = timed  # type: ignore[method-assign]  # what all callbacks save through
    with tempfile.TemporaryDirectory(dir=".") as folder:
        start = time.perf_counter()
        command(["fit", "--config", str(CONFIG), "--run_dir", f"{folder}/run", *sys.argv[1:]])
        whole = time.perf_counter() - start
        size = checkpoint_path(Path(folder) / "run", "last").stat().st_size
    print(
        f"{len(seconds)} saves of {size / 1e6:.1f} MB in {sum(seconds):.2f} s, {statistics.median(seconds):.3f} s each "
        f"(median): {sum(seconds) / whole:.2%} of a run of {whole:.1f} s"
    )


if __name__ == "__main__":
    main()

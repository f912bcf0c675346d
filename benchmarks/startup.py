"""From the command to the first training step: where the seconds go.

    python benchmarks/startup.py                       # configs/small.yaml
    python benchmarks/startup.py configs/base.yaml

Each part is timed in a fresh process, several times; the medians are printed.
"""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parent.parent / "configs" / "small.yaml"
RUNS = 5
PARTS = (
    "Python itself",
    "import torch",
    "import Lightning",
    "import the rest",
    "options, text and checks",
    "network, trainer and folder",
    "machine measured, iteration 0 evaluated",
    "the first step",
)


def child(config: str, begun: float) -> None:
    """Go through the parts, and print when each was over."""
    marks = [begun, time.time()]
    import torch  # noqa: F401

    marks.append(time.time())
    import lightning.pytorch as pl

    marks.append(time.time())

    from tinygpt_pl.commands import fit as command
    from tinygpt_pl.commands.classes import DEFAULT
    from tinygpt_pl.commands.outcome import Work
    from tinygpt_pl.training import make_trainer

    marks.append(time.time())

    class Clock(pl.Callback):
        def on_train_batch_start(self, *_: object) -> None:
            marks.append(time.time())

        def on_train_batch_end(self, *_: object) -> None:
            marks.append(time.time())

    with tempfile.TemporaryDirectory(dir=".") as folder:
        words = ["--config", config, "--run_dir", f"{folder}/run", "--trainer.max_steps=1", "--data.eval_iters=20"]
        load_data = command.load_data

        def loaded(*args: Any) -> Any:
            data = load_data(*args)
            marks.append(time.time())
            return data

        def made(recipe: Any, **options: Any) -> Any:
            trainer = make_trainer(recipe, **{**options, "callbacks": [Clock()]})
            marks.append(time.time())
            return trainer

        vars(command).update(load_data=loaded, make_trainer=made)
        command.fit(words, Work(), DEFAULT)
    parts = [end - start for start, end in itertools.pairwise(marks)]
    print(json.dumps(parts[: len(PARTS)]))


def main() -> None:
    """Print a table."""
    config = sys.argv[1] if len(sys.argv) > 1 else str(CONFIG)
    runs = []
    for _ in range(RUNS):
        command = [sys.executable, __file__, config, str(time.time())]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    print("| part | seconds |\n|---|---|")
    for part, seconds in zip(PARTS, zip(*runs, strict=True), strict=True):
        print(f"| {part} | {statistics.median(seconds):.2f} |")
    print(f"| all | {statistics.median(map(sum, runs)):.2f} |")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        child(sys.argv[1], float(sys.argv[2]))
    else:
        main()

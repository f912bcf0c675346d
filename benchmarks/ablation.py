"""What each modern part brings: alone and all together against the recipe, at equal tokens or in equal time.

    python benchmarks/ablation.py                              # the size of configs/small.yaml, on a processor
    python benchmarks/ablation.py --seconds 60                 # the same, each for as long
    python benchmarks/ablation.py --base configs/base.yaml --together configs/modern.yaml --options \
        --trainer.accelerator cuda --config configs/fast.yaml  # base size, on a GPU

A run's score is the loss over the whole validation split after its last step. Nothing may be chosen by it: with
--tuning the last tenth of the training part stands in for that split, and what comes after it is not touched. Runs that
are done are kept in a file by their options, so that the command can be stopped and given again; delete it after a
change of a configuration. A configuration of --together keeps its own number of steps.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from tinygpt_pl.runs.checkpoint import read_checkpoint
from tinygpt_pl.text.corpus import default_cache_dir, load_corpus

ROOT = Path(__file__).parent.parent

PARTS: dict[str, list[str]] = {
    "the recipe": [],
    "rotary positions": ["--model.gpt.position=rotary"],
    "RMSNorm": ["--model.gpt.norm=rmsnorm"],
    "norms of queries and keys": ["--model.gpt.qk_norm=true"],
    "squared ReLU": ["--model.gpt.activation=relu2"],
    "SwiGLU": ["--model.gpt.activation=swiglu"],
    "no biases": ["--model.gpt.bias=false"],
    "half as many heads of keys and values": ["--model.gpt.n_kv_head={half_the_heads}"],
    "vectors for pairs of tokens": ["--model.gpt.bigrams=true"],
    "Muon": ["--model.optim.optimizer=muon"],
    "wsd": ["--model.optim.schedule=wsd"],
    "wsd, falling throughout": ["--model.optim.schedule=wsd", "--model.optim.decay_share=1.0"],
    "an average of the weights": ["--ema_decay=0.99"],
}
"""Options of each part; the last row of the table is all that --together names."""

TOGETHER = [
    *("--model.gpt.position=rotary", "--model.gpt.norm=rmsnorm", "--model.gpt.qk_norm=true"),
    *("--model.gpt.activation=swiglu", "--model.gpt.bias=false"),
    *("--model.optim.optimizer=muon", "--model.optim.schedule=wsd", "--model.optim.decay_share=1.0"),
]


def main() -> None:
    """Run what has not been run, and print the table."""
    args = parse()
    parts = {name: [fill(word, args.base) for word in words] for name, words in PARTS.items()}
    parts["all together"] = [f"--config={args.together}"] if args.together else TOGETHER
    text = load_corpus("tinyshakespeare", default_cache_dir()).text
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "text.txt"
        corpus.write_text(text[: int(0.9 * len(text))] if args.tuning else text, encoding="utf-8")
        common = [*args.options, f"--data.corpus={corpus}"]
        steps = equal_time(parts, ["--config", args.base], common, args.seconds) if args.seconds else {}
        runs = [(name, seed) for seed in range(1, args.seeds + 1) for name in parts]
        with ThreadPoolExecutor(args.jobs) as pool:
            losses = list(pool.map(lambda run: score(run, parts[run[0]], common, steps.get(run[0]), args), runs))
    print(table(dict(zip(runs, losses, strict=True)), [*parts], steps))


def parse() -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="configs/small.yaml", help="what a part is added to")
    parser.add_argument("--together", help="a configuration with all parts; the list in this file if left out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, help="length of each run; equal tokens if left out")
    parser.add_argument("--tuning", action="store_true", help="score on a split cut from the training part")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one core if more than one")
    parser.add_argument("--results", type=Path, default=Path("ablation.jsonl"), help="where runs are kept")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of fit, for all runs")
    return parser.parse_args()


def fill(word: str, base: str) -> str:
    """Put in what depends on the base."""
    heads = yaml.safe_load((ROOT / base).read_text())["model"]["gpt"]["n_head"]
    return word.format(half_the_heads=heads // 2)


def fit(words: list[str], run_dir: Path, threads: int | None) -> None:
    """Train in a process of its own."""
    command = [sys.executable, "-m", "tinygpt_pl", "fit", *words, f"--run_dir={run_dir}"]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    quiet = ["--trainer.enable_progress_bar=false", "--sample_tokens=0", "--data.eval_coverage=full"]
    done = subprocess.run([*command, *quiet], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")


def score(
    run: tuple[str, int], part: list[str], common: list[str], steps: int | None, args: argparse.Namespace
) -> float:
    """The loss of a run over the validation split, in nats per token; from the file, if it is there."""
    name, seed = run
    words = [f"--seed_everything={seed}", "--eval_interval=1000000"]
    words += [f"--trainer.max_steps={steps}"] if steps else []
    key = json.dumps([args.tuning, args.base, part, [word for word in common if "corpus" not in word], words])
    kept = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    for row in kept:
        if row["key"] == key:
            return float(row["loss"])
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        fit(["--config", args.base, *part, *common, *words], Path(folder) / "run", 1 if args.jobs > 1 else None)
        checkpoint = read_checkpoint(Path(folder) / "run" / "checkpoints" / "last.ckpt")
    loss = float(checkpoint.content["val_loss"])
    with args.results.open("a") as file:
        file.write(json.dumps({"key": key, "part": name, "seed": seed, "loss": loss}) + "\n")
    print(f"{name}, seed {seed}: {loss:.4f} in {time.perf_counter() - start:.0f}s", file=sys.stderr, flush=True)
    return loss


def equal_time(
    parts: dict[str, list[str]], base: list[str], common: list[str], seconds: float, rounds: int = 3
) -> dict[str, int]:
    """Steps of each part that take as long, by the median of short runs that take turns."""
    speeds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            with tempfile.TemporaryDirectory() as folder:
                words = ["--trainer.max_steps=60", "--eval_interval=1000000", "--trainer.log_every_n_steps=50"]
                fit([*base, *part, *common, *words], Path(folder) / "run", None)
                speeds[name].append(step_time(Path(folder) / "run"))
            print(f"{name}: {1e3 * speeds[name][-1]:.1f} ms a step", file=sys.stderr, flush=True)
    return {name: int(seconds / statistics.median(times)) for name, times in speeds.items()}


def step_time(run_dir: Path) -> float:
    """Seconds of a step of a run, by its own count of tokens a second."""
    from tinygpt_pl.insight.history import read_history

    history = read_history(run_dir)
    (it, seen), *_ = history.curve("progress/tokens_seen")
    return seen / (it + 1) / history.curve("perf/tokens_per_second")[-1][1]


def table(losses: dict[tuple[str, int], float], parts: list[str], steps: dict[str, int]) -> str:
    """Mean of each part and its gain over the recipe, seed by seed, each with its standard error, as Markdown."""
    base, *_ = parts
    seeds = sorted({seed for _, seed in losses})
    lines = ["| part | steps | loss | gain | seeds |", "|---|---|---|---|---|"]
    for part in parts:
        own = [losses[part, seed] for seed in seeds]
        gains = [losses[base, seed] - losses[part, seed] for seed in seeds]
        gain = "" if part == base else with_error(gains, sign="+")
        lines.append(f"| {part} | {steps.get(part, '')} | {with_error(own)} | {gain} | {len(seeds)} |")
    rows = "\n".join(lines)
    return rows if steps else re.sub(r"^(\|[^|]*\|)[^|]*\|", r"\1", rows, flags=re.M)


def with_error(values: list[float], sign: str = "") -> str:
    """Mean and standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):{sign}.4f} ± {error:.4f}"


if __name__ == "__main__":
    main()

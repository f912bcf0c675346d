"""The recipe as callbacks: what a run has besides its model, its data and its Trainer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lightning.pytorch.callbacks import Callback

from tinygpt_pl.data import TextDataModule
from tinygpt_pl.runs.folder import is_run
from tinygpt_pl.runs.start import Start
from tinygpt_pl.training.averaging import Averaging
from tinygpt_pl.training.console import Table, quieten
from tinygpt_pl.training.curve import Curve
from tinygpt_pl.training.evaluation import Evaluation, Samples
from tinygpt_pl.training.progress import LongRunNotice, StepProgressBar
from tinygpt_pl.training.record import RunRecord
from tinygpt_pl.training.saving import BestCheckpoint, CheckpointFiles, LastCheckpoint, StopSignals
from tinygpt_pl.training.steps import Compilation, DeferredGuard, StepSeed
from tinygpt_pl.training.watch import LiveDiagnosis


@dataclass(frozen=True)
class RunConfig:
    """A run as a whole.

    Raises:
        ValueError: for a value outside its bounds.
    """

    seed_everything: int = 1337
    """seed of weights, windows and dropout"""
    eval_interval: int = 250
    """optimizer steps from evaluation to evaluation"""
    save_minutes: float = 5.0
    """longest time between two saves of last.ckpt, in minutes"""
    sample_tokens: int = 200
    """tokens of the text drawn after each evaluation; 0 for none"""
    print_samples: bool = False
    """show that text on the console, too"""
    compile: bool | Literal["auto"] = False
    """run the training step through torch.compile; auto does so where it pays"""
    ema_decay: float | None = None
    """share that a step keeps of an average of the weights, 0.999 for instance; none is made if left out"""
    peak_tflops: float | None = None
    """what perf/mfu is a share of, for each device; measured if left out"""

    def __post_init__(self) -> None:
        least = {"seed_everything": 0, "eval_interval": 1, "save_minutes": 0, "sample_tokens": 0, "peak_tflops": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not value >= bound:
                raise ValueError(f"{name} has to be at least {bound}, got {value}")
        for name in ("seed_everything", "sample_tokens"):  # numpy takes seeds of 32 bits
            if getattr(self, name) >= 2**32:
                raise ValueError(f"{name} has to be below 2**32, got {getattr(self, name)}")


def recipe_callbacks(
    run_dir: Path,
    data: TextDataModule,
    config: RunConfig = RunConfig(),
    start: Start = Start(),
    *,
    settings: str | None = None,
    notes: Sequence[str] = (),
    log_every_n_steps: int = 10,
    progress_bar: bool = True,
) -> list[Callback]:
    """The callbacks of a run, for `make_trainer`.

    Args:
        run_dir: the folder of the run; without `settings` it is made if it is not there.
        data: the text, which is set up here if it has not been.
        config: the run as a whole.
        start: what it starts from.
        settings: all settings as YAML, for config.yaml and the checkpoints; collected from model, data and Trainer if
            left out.
        notes: lines to print above the table.
        log_every_n_steps: optimizer steps from row to row of the curve.
        progress_bar: whether to show one.

    Raises:
        ValueError: for an `ema_decay` outside [0, 1), a folder that holds another run, or data with another seed.
        OSError: if the folder cannot be made.
    """
    if is_run(run_dir) and not start.in_place(run_dir):
        raise ValueError(f"{run_dir} holds a run already; give another folder")
    if data.seed != config.seed_everything:
        raise ValueError(f"the seed of the data is {data.seed}, and that of the run {config.seed_everything}")
    if settings is None:
        run_dir.mkdir(parents=True, exist_ok=True)
    data.setup()
    quieten()
    fresh = start.kind == "scratch"
    signals, files = StopSignals(), CheckpointFiles(start.resumed)
    record = RunRecord(run_dir, settings or asdict(config), data, start)
    curve = Curve(log_every_n_steps, config.peak_tflops and config.peak_tflops * 1e12, record)
    seed, tokens = config.seed_everything, config.sample_tokens
    callbacks: list[Callback | None] = [
        signals,
        record,
        Table(run_dir, data, curve, notes),
        LongRunNotice(
            config.eval_interval, "fewer --trainer.max_steps help", "--config cpu takes minutes" if fresh else ""
        ),
        StepProgressBar(config.eval_interval) if progress_bar else None,
        Compilation(data) if config.compile else None,
        StepSeed(seed),
        DeferredGuard(),
        curve,
        Evaluation(config.eval_interval, fresh=fresh),
        LiveDiagnosis(curve),
        Samples(data.tokenizer, seed, tokens, show=config.print_samples) if tokens else None,
        Averaging(config.ema_decay, data) if config.ema_decay is not None else None,
        BestCheckpoint(run_dir, files),
        LastCheckpoint(run_dir, config.save_minutes, signals, files),
    ]
    chosen = [callback for callback in callbacks if callback]
    check_order(chosen)
    return chosen


ORDER: tuple[tuple[type[Callback], type[Callback], str], ...] = (
    (StopSignals, Evaluation, "a signal during the first evaluation is noted, and does not kill the run"),
    (RunRecord, Curve, "a run that resumes adds its rows to those before"),
    (Table, Evaluation, "the head of the table is printed before its first line"),
    (Compilation, Evaluation, "the time to compile is reported before the first line of the table"),
    (DeferredGuard, Evaluation, "failed steps are kept on the device before anybody asks for them"),
    (Curve, Evaluation, "the curve has the evaluation that ends a run"),
    (Curve, LiveDiagnosis, "findings are of a curve that has the latest evaluation"),
    (Evaluation, BestCheckpoint, "an evaluation that ends a run is not saved"),
    (Samples, Averaging, "samples are of the average, while it is in the place of the weights"),
    (LiveDiagnosis, LastCheckpoint, "results are logged before the save with which a run counts as finished"),
    (Averaging, BestCheckpoint, "a checkpoint finds weights and average in their places"),
    (BestCheckpoint, LastCheckpoint, "last.ckpt has the best score so far"),
)
"""Callbacks that depend on the order in which Lightning calls them: the first before the second, for this reason."""


def check_order(callbacks: Sequence[Callback]) -> None:
    """Assert that callbacks are in an order that all of ORDER agree with."""
    places = {type(callback): place for place, callback in enumerate(callbacks)}
    for earlier, later, reason in ORDER:
        if earlier in places and later in places:
            assert places[earlier] < places[later], f"{earlier.__name__} comes before {later.__name__}: {reason}"

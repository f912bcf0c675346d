"""The callbacks of a run: their order, and that each is there when it is asked for."""

import re
from dataclasses import fields
from pathlib import Path

import lightning.pytorch as pl
import pytest
import yaml

from tests.small_runs import RUN, Fitted, Run, assert_same, outcome, small, three_lines
from tinygpt_pl import GPTConfig, OptimConfig, RunConfig, TextDataModule, TinyGPT, make_trainer, recipe_callbacks
from tinygpt_pl.generation.decoding import is_written_out
from tinygpt_pl.training.averaging import Averaging
from tinygpt_pl.training.evaluation import Evaluation, Samples
from tinygpt_pl.training.recipe import ORDER, check_order
from tinygpt_pl.training.steps import Compilation


@pytest.fixture
def data(text_file: Path, tmp_path: Path) -> TextDataModule:
    data = TextDataModule(str(text_file), block_size=8, batch_size=4, cache_dir=str(tmp_path / "cache"))
    data.setup()
    return data


def test_each_pair_of_the_order_is_asserted(tmp_path: Path, data: TextDataModule) -> None:
    callbacks = recipe_callbacks(tmp_path, data, RunConfig(compile=True, ema_decay=0.9), settings="")
    kinds = [type(callback) for callback in callbacks]
    for earlier, later, reason in ORDER:
        i, j = kinds.index(earlier), kinds.index(later)
        swapped = list(callbacks)
        swapped[i], swapped[j] = callbacks[j], callbacks[i]
        with pytest.raises(AssertionError, match=" comes before "):
            check_order(swapped)
        assert reason


def test_what_is_not_asked_for_is_not_there(tmp_path: Path, data: TextDataModule) -> None:
    callbacks = recipe_callbacks(tmp_path, data, RunConfig(sample_tokens=0), settings="", progress_bar=False)
    assert not any(isinstance(callback, Averaging | Samples | Compilation) for callback in callbacks)


def test_an_evaluation_interval_is_of_optimizer_steps(tmp_path: Path, data: TextDataModule) -> None:
    callbacks = recipe_callbacks(tmp_path, data, RunConfig(eval_interval=7), settings="")
    trainer = make_trainer(callbacks, accelerator="cpu", accumulate_grad_batches=3)
    assert trainer.val_check_interval == 21
    (evaluation,) = (callback for callback in callbacks if isinstance(callback, Evaluation))
    assert evaluation.interval == 7


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"seed_everything": -1}, "seed_everything has to be at least 0, got -1"),
        ({"eval_interval": 0}, "eval_interval has to be at least 1, got 0"),
        ({"save_minutes": float("nan")}, "save_minutes has to be at least 0, got nan"),
    ],
)
def test_a_value_below_its_least_is_refused(values: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RunConfig(**values)  # type: ignore[arg-type]  # of mixed types


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_run_from_python_is_the_run_of_fit(fitted: Fitted) -> None:
    """The same bits in both checkpoints, the same curve, and the same settings in config.yaml."""
    fitted("alone", model__gpt__dropout=0.2)
    text = Path("alone/config.yaml").read_text()
    settings = yaml.safe_load(text)
    gpt, trainer = settings["model"]["gpt"], settings["trainer"]
    config = RunConfig(**{field.name: settings[field.name] for field in fields(RunConfig)})
    data = TextDataModule(**settings["data"], block_size=gpt["block_size"], seed=config.seed_everything)
    pl.seed_everything(config.seed_everything, verbose=False)
    optim = settings["model"]["optim"] | {"betas": tuple(settings["model"]["optim"]["betas"])}
    module = TinyGPT.for_data(data, GPTConfig(**gpt), OptimConfig(**optim))
    callbacks = recipe_callbacks(Path("run"), data, config, log_every_n_steps=trainer["log_every_n_steps"])
    make_trainer(callbacks, **trainer).fit(module, data)
    assert_same(outcome(Path("run")), outcome(Path("alone")))
    assert Path("run/config.yaml").read_text() == text


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_script_cannot_write_over_a_run_or_make_one_that_could_not_resume(fitted: Fitted, text_file: Path) -> None:
    fitted("taken")
    data = TextDataModule(str(text_file), block_size=8)
    with pytest.raises(ValueError, match="taken holds a run already; give another folder"):
        recipe_callbacks(Path("taken"), data)
    with pytest.raises(ValueError, match="the seed of the data is 1337, and that of the run 5"):
        recipe_callbacks(Path("free"), data, RunConfig(seed_everything=5))
    assert not Path("free").exists()


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize(
    ("callback", "code", "message"),
    [
        (["EarlyStopping", "--trainer.callbacks.monitor=val_loss"], 2, r"metric `val_loss` .*`eval/val_loss`"),
        (["ModelCheckpoint", "--trainer.callbacks.monitor=val_loss"], 1, r"could not find .*\['eval/val_loss'"),
        (["LearningRateMonitor", "--trainer.logger=false"], 2, "LearningRateMonitor. callback with .* no logger"),
        (["BackboneFinetuning"], 2, "no attribute 'backbone'"),
    ],
)
def test_what_a_callback_of_lightnings_complains_of_costs_three_lines(
    cli: Run, text_file: Path, callback: list[str], code: int, message: str
) -> None:
    name, *options = callback
    found, _, err = cli("fit", *small(text_file), f"--trainer.callbacks={name}", *options)
    assert found == code
    assert re.search(message, three_lines(err))


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_callback_with_an_enumeration_among_its_defaults_is_written_down(cli: Run, text_file: Path) -> None:
    code, _, err = cli("fit", *small(text_file), "--trainer.callbacks=Timer")
    assert code == 0, err
    written = yaml.safe_load((RUN / "config.yaml").read_text())
    assert written["trainer"]["callbacks"]["init_args"]["interval"] == "step"
    assert cli("fit", "--config", str(RUN / "config.yaml"))[0] == 0


class Failing(pl.Callback):
    """Fails in the middle of a run."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step == 2:
            raise KeyError("in the second step")


class Watcher(pl.Callback):
    """Sees how the blocks compute in steps and while samples are drawn."""

    def __init__(self) -> None:
        self.steps: list[bool] = []
        self.evaluations: list[bool] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object) -> None:
        assert isinstance(pl_module, TinyGPT)
        self.steps.append(all("forward" in vars(block) for block in pl_module.gpt.h))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TinyGPT)
        self.evaluations.append(is_written_out(pl_module.gpt))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # of torch's compiler itself
@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_compiled_block_is_for_steps_and_samples_are_drawn_with_a_cache(
    fitted: Fitted, tmp_path: Path, data: TextDataModule
) -> None:
    """A block with a forward of its own would be run over the whole window for each token of a sample."""
    fitted("alone")
    run, text = RunConfig(compile=True, eval_interval=2), Path("alone/config.yaml").read_text()
    watcher, module = Watcher(), TinyGPT(GPTConfig(data.tokenizer.vocab_size, 8, 2, 2, 16), tokenizer=data.tokenizer)
    callbacks = [*recipe_callbacks(tmp_path, data, run, settings=text, progress_bar=False)]
    make_trainer(callbacks, callbacks=[watcher], accelerator="cpu", max_steps=4).fit(module, data)
    assert watcher.steps == [True] * 4
    assert watcher.evaluations == [True] * 3
    assert is_written_out(module.gpt)
    callbacks = [*recipe_callbacks(tmp_path / "again", data, run, settings=text, progress_bar=False)]
    with pytest.raises(KeyError, match="in the second step"):
        make_trainer(callbacks, callbacks=[Failing()], accelerator="cpu", max_steps=4).fit(module, data)
    assert is_written_out(module.gpt), "what failed is as it was"

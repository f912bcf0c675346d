"""The shipped configurations: each parses, and base.yaml is the recipe value for value."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.small_runs import finish, shell, start, table
from tinygpt_pl.commands.settings import build_parser
from tinygpt_pl.exchange.huggingface import architecture_of
from tinygpt_pl.gpt import GPTConfig, parameter_count

CONFIGS = Path(__file__).parent.parent / "configs"


def parse(*names: str) -> Any:
    words = [word for name in names for word in ("--config", str(CONFIGS / name))]
    return build_parser("fit").parse_args(words)


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_configuration_parses(name: str) -> None:
    assert parse(name).trainer.max_steps >= 1


OVERLAYS = {"accumulate.yaml", "fast.yaml", "ddp.yaml", "fsdp.yaml"}

DISTRIBUTED = {"ddp.yaml", "fsdp.yaml"}
"""Lightning starts the second process with the command line of the first, which has to be one of a shell."""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_configuration_starts(text_file: Path, tmp_path: Path, name: str) -> None:
    """Its own batch, schedule, precision and strategy, with a small network, little text and two steps."""
    names = ["base.yaml", name] if name in OVERLAYS else [name]
    configs = [word for each in names for word in ("--config", str(CONFIGS / each))]
    sizes = {"n_layer": 1, "n_embd": 48, "block_size": 16}
    words = ["fit", *configs, *(f"--model.gpt.{size}={value}" for size, value in sizes.items())]
    words += [f"--data.corpus={text_file}", "--data.eval_iters=2", "--trainer.max_steps=2", "--trainer.accelerator=cpu"]
    words += ["--trainer.enable_progress_bar=false"]  # it would share the lines of the table in a file of both streams
    if name in DISTRIBUTED:
        done = shell(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        output = done.stdout
    else:
        output = finish(start(words, tmp_path), tmp_path)
    assert [row[0] for row in table(output)] == ["0", "2"]
    assert (tmp_path / "lightning_logs/version_0/checkpoints/best.ckpt").exists()


def test_base_is_the_recipe() -> None:
    config = parse("base.yaml")
    assert (config.seed_everything, config.eval_interval) == (1337, 250)
    assert vars(config.model.gpt) == {
        "block_size": 256,
        "n_layer": 6,
        "n_head": 6,
        "n_embd": 384,
        "dropout": 0.2,
        "attn_dropout": None,
        "train_temperature": 1.0,
        "n_kv_head": None,
        "bigrams": False,
        "position": "learned",
        "norm": "layernorm",
        "qk_norm": False,
        "activation": "gelu",
        "bias": True,
    }
    optim = config.model.optim
    assert (optim.max_lr, optim.min_lr, optim.warmup_iters, optim.max_iters) == (3e-4, 3e-5, 100, None)
    assert (optim.weight_decay, tuple(optim.betas)) == (0.1, (0.9, 0.95))
    assert (optim.optimizer, optim.schedule, config.ema_decay) == ("adamw", "cosine", None)
    assert (config.data.corpus, config.data.batch_size, config.data.eval_iters) == ("tinyshakespeare", 64, 200)
    trainer = config.trainer
    assert (trainer.max_steps, trainer.gradient_clip_val, trainer.accumulate_grad_batches) == (5000, 1.0, 1)


def test_without_a_configuration_the_recipe_is_what_runs() -> None:
    base, bare = parse("base.yaml"), parse()
    for config in (base, bare):
        del config["config"]
        config.trainer.accelerator = None  # auto is what Lightning takes
    assert base == bare


def test_accumulation_keeps_the_windows_of_a_step() -> None:
    config = parse("base.yaml", "accumulate.yaml")
    assert (config.data.batch_size, config.trainer.accumulate_grad_batches) == (16, 4)
    assert config.model.gpt.n_embd == 384


@pytest.mark.parametrize(("name", "strategy"), [("ddp.yaml", "ddp"), ("fsdp.yaml", "fsdp2")])
def test_two_devices_keep_the_windows_of_a_step(name: str, strategy: str) -> None:
    config = parse("base.yaml", name)
    assert config.data.batch_size * config.trainer.devices == 64
    assert config.trainer.strategy == strategy


def test_fast_changes_how_and_not_what() -> None:
    base, fast = parse("base.yaml"), parse("base.yaml", "fast.yaml")
    changed = {name for name in base.keys() if base.get(name) != fast.get(name)} - {"config"}  # noqa: SIM118  # a Namespace
    assert changed == {"compile", "data.eval_coverage", "trainer.precision", "trainer.log_every_n_steps"}
    assert (fast.compile, fast.data.eval_coverage, fast.trainer.precision) == ("auto", "full", "auto")


def test_small_has_the_size_of_nanogpt_on_a_laptop() -> None:
    config = parse("small.yaml")
    gpt = config.model.gpt
    sizes = (gpt.block_size, gpt.n_layer, gpt.n_head, gpt.n_embd, gpt.dropout)
    assert sizes == (64, 4, 4, 128, 0.0)
    assert (config.data.batch_size, config.trainer.max_steps) == (12, 2000)
    assert (config.model.optim.max_lr, config.model.optim.min_lr) == (4e-3, 4e-4)
    recipe = parse()
    for part in ("position", "norm", "qk_norm", "activation", "bias", "n_kv_head"):
        assert gpt[part] == recipe.model.gpt[part]
    for part in ("optimizer", "schedule", "weight_decay", "betas"):
        assert config.model.optim[part] == recipe.model.optim[part]


def test_modern_has_the_size_and_the_batch_of_the_recipe() -> None:
    """And less than a third of its steps."""
    modern, base = parse("modern.yaml"), parse("base.yaml")
    count = [parameter_count(GPTConfig(**vars(config.model.gpt))) for config in (modern, base)]
    assert count[0] == pytest.approx(count[1], rel=0.02)
    windows = [(c.data.batch_size, c.model.gpt.block_size, c.trainer.accumulate_grad_batches) for c in (modern, base)]
    assert windows[0] == windows[1]
    assert modern.trainer.max_steps < base.trainer.max_steps / 3


def test_half_an_hour_is_modern_for_fewer_steps() -> None:
    short, modern = parse("half-hour.yaml"), parse("modern.yaml", "fast.yaml")
    changed = {name for name in short.keys() if short.get(name) != modern.get(name)} - {"config"}  # noqa: SIM118  # a Namespace
    assert changed == {"trainer.max_steps"}
    assert short.trainer.max_steps < modern.trainer.max_steps / 3


def test_a_network_of_the_best_configurations_can_be_exported() -> None:
    """That of cpu.yaml once it goes without vectors for pairs of tokens, as the README says."""
    modern, cpu = (GPTConfig(**vars(parse(name).model.gpt)) for name in ("modern.yaml", "cpu.yaml"))
    for config in (modern, replace(cpu, bigrams=False)):
        assert architecture_of(config).NAME == "Llama or Qwen3"
    with pytest.raises(ValueError, match="bigrams True"):
        architecture_of(cpu)

"""The schedule as a table, and the decay groups as a partition."""

import dataclasses
import itertools
import math
from typing import Any

import pytest

from tinygpt_pl.gpt import GPT, GPTConfig
from tinygpt_pl.optim import (
    OptimConfig,
    configure_optimizer,
    decay_groups,
    scheduled_lr,
    warmup_cosine,
    warmup_stable_decay,
)


@pytest.mark.parametrize(
    ("it", "lr"),
    [
        (0, 3e-6),
        (99, 3e-4),
        (100, 3e-4),
        (250, 2.993760e-4),
        (2550, 1.65e-4),  # half way: the mean of both ends
        (4999, 3.0000028e-5),
        (5000, 3e-5),
        (6000, 3e-5),
    ],
)
def test_schedule_of_the_recipe(it: int, lr: float) -> None:
    assert warmup_cosine(it) == pytest.approx(lr, rel=1e-6)


def test_schedule_is_a_line_up_and_half_a_cosine_down() -> None:
    rates = [warmup_cosine(it, 1.0, 0.1, 10, 110) for it in range(120)]
    assert rates[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[110:] == [0.1] * 10
    for k in range(50):  # a cosine is symmetric about its middle
        assert rates[10 + k] + rates[110 - k] == pytest.approx(1.1)


def test_schedule_without_warm_up_or_decay() -> None:
    assert warmup_cosine(0, warmup_iters=0) == 3e-4
    assert warmup_cosine(7, max_lr=1.0, min_lr=0.5, warmup_iters=5, max_iters=5) == 0.5


@pytest.mark.parametrize(
    ("it", "lr"),
    [(0, 0.1), (9, 1.0), (10, 1.0), (79, 1.0), (80, 1.0), (85, 0.8), (90, 0.6), (99, 0.24), (100, 0.2), (999, 0.2)],
)
def test_wsd_is_a_line_up_a_level_and_a_line_down(it: int, lr: float) -> None:
    assert warmup_stable_decay(it, 1.0, 0.2, 10, 100, 0.2) == pytest.approx(lr)


def test_wsd_may_fall_all_the_way_or_not_at_all() -> None:
    falling = [warmup_stable_decay(it, 1.0, 0.0, 0, 50, 1.0) for it in range(51)]
    assert falling == pytest.approx([1 - it / 50 for it in range(51)])
    assert [warmup_stable_decay(it, 1.0, 0.0, 0, 50, 0.0) for it in (0, 49, 50, 60)] == [1.0] * 4


def test_the_schedule_that_is_chosen_is_the_one_that_is_followed() -> None:
    """max_iters wins over the length of the run; without it the schedule ends with the run."""
    config = OptimConfig(schedule="wsd", max_lr=1.0, min_lr=0.0, warmup_iters=0, decay_share=0.5)
    assert [scheduled_lr(it, config, 100) for it in (49, 75, 100)] == [1.0, 0.5, 0.0]
    assert scheduled_lr(75, dataclasses.replace(config, max_iters=300), 100) == 1.0
    assert scheduled_lr(50, OptimConfig(warmup_iters=0, max_iters=100), 999) == warmup_cosine(50, 3e-4, 3e-5, 0, 100)


def test_every_parameter_is_in_exactly_one_group() -> None:
    model = GPT(GPTConfig())
    decay, no_decay = decay_groups(model, OptimConfig())
    assert (len(decay["params"]), len(no_decay["params"])) == (26, 50)
    assert sum(p.numel() for p in decay["params"]) == 10_740_096
    assert sum(p.numel() for p in no_decay["params"]) == 30_720
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.1, 0.0)
    ids = [id(p) for group in (decay, no_decay) for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters()}


def test_frozen_parameters_are_left_out() -> None:
    model = GPT(GPTConfig(n_layer=1))
    model.wte.weight.requires_grad = False
    assert not any(p is model.wte.weight for group in decay_groups(model, OptimConfig()) for p in group["params"])


def test_adamw_gets_the_settings() -> None:
    optimizer = configure_optimizer(
        GPT(GPTConfig(n_layer=1)), OptimConfig(weight_decay=0.3, betas=(0.8, 0.9)), fused=True
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert all(group["betas"] == (0.8, 0.9) and group["fused"] for group in optimizer.param_groups)


def test_the_kernel_is_chosen_anew_when_a_state_is_loaded() -> None:
    """A fused AdamW from a checkpoint would undo float16's loss scaling after the clipping."""
    model = GPT(GPTConfig(n_layer=1))
    state = configure_optimizer(model, OptimConfig(), fused=True).state_dict()
    optimizer = configure_optimizer(model, OptimConfig(), fused=False)
    optimizer.load_state_dict(state)
    assert [group["fused"] for group in optimizer.param_groups] == [False, False]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_lr": 0.0},
        {"max_lr": -1.0},
        {"max_lr": math.nan},
        {"max_lr": math.inf},
        {"min_lr": 1.0},
        {"min_lr": -1e-5},
        {"warmup_iters": -1},
        {"max_iters": 0},
        {"weight_decay": -0.1},
        {"betas": (0.9, 1.0)},
        {"betas": (-0.1, 0.9)},
        {"momentum": 1.0},
        {"optimizer": "sgd"},
        {"schedule": "step"},
        {"decay_share": 1.1},
        {"decay_share": 0.0},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        OptimConfig(**settings)

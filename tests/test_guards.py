"""The loss at iteration 0."""

import math

import pytest
import torch

from tinygpt_pl.gpt import GPT, INIT_STD, GPTConfig
from tinygpt_pl.guards import WrongStart, check_start, expected_start


def test_an_untrained_network_guesses_evenly() -> None:
    assert expected_start(65) == pytest.approx(4.1744, abs=5e-5)


@pytest.mark.parametrize(
    "config",
    [
        GPTConfig(n_layer=2),
        GPTConfig(vocab_size=2, n_layer=1, n_head=1, n_embd=8),
        GPTConfig(vocab_size=5000, block_size=64, n_layer=2, n_head=8, n_embd=768),
    ],
)
def test_fresh_networks_start_right(config: GPTConfig) -> None:
    torch.manual_seed(0)
    idx, targets = torch.randint(config.vocab_size, (2, 4, config.block_size))
    _, loss = GPT(config).eval()(idx, targets)
    assert loss is not None
    check_start(loss.item(), config.vocab_size, config.n_embd * INIT_STD**2)


@pytest.mark.parametrize("loss", [10.4, 2.0, 0.0, 4.17 * 256, math.nan, math.inf])
def test_a_broken_start_is_named(loss: float) -> None:
    with pytest.raises(WrongStart, match=r"far from ln\(65\) = 4\.1744"):
        check_start(loss, 65, 384 * INIT_STD**2)

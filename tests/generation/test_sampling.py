"""How tokens are drawn, with the logits processors and the `generate` of transformers as an independent reference."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tinygpt_pl import GPT, GPTConfig, generate
from tinygpt_pl.generation.sampling import (
    SamplingConfig,
    choose,
    filtered,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    stream,
    uniforms,
)

BLOCK = 12


def network(block_size: int = BLOCK) -> GPT:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(11, block_size, n_layer=2, n_head=3, n_embd=24, dropout=0.3))
    with torch.no_grad():
        for p in gpt.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return gpt


def uncached(gpt: GPT, idx: Tensor, tokens: int) -> Tensor:
    """Greedy text, the last window read whole for each token."""
    gpt = gpt.eval()
    for _ in range(tokens):
        logits, _ = gpt(idx[:, -gpt.config.block_size :])
        idx = torch.cat([idx, logits[:, -1].argmax(-1, keepdim=True)], 1)
    return idx


def test_fault_27_greedy_text_inside_the_window_is_that_without_a_cache() -> None:
    gpt, prompt = network(), torch.randint(11, (3, 4))
    cached = generate(gpt, prompt, BLOCK - 4, temperature=0)
    assert gpt.training, "the network was left in another mode"
    assert torch.equal(cached, uncached(gpt, prompt, BLOCK - 4))


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 5])
def test_an_exact_window_gives_the_text_without_a_cache_for_ever(length: int) -> None:
    gpt, prompt = network(), torch.randint(11, (2, length))
    assert torch.equal(generate(gpt, prompt, 40, temperature=0, exact_window=True), uncached(gpt, prompt, 40))


@pytest.mark.parametrize("block_size", [1, 2, 7, BLOCK])
def test_by_default_the_newer_half_of_a_full_window_is_read_again(block_size: int) -> None:
    """The documented rule, written out: what the network sees is never less than half a window, nor more than one."""
    gpt, text = network(block_size), torch.randint(11, (1, 3))
    expected, seen = text, min(3, block_size)
    for _ in range(40):
        logits, _ = gpt.eval()(expected[:, -seen:])
        expected = torch.cat([expected, logits[:, -1].argmax(-1, keepdim=True)], 1)
        seen = seen + 1 if seen < block_size else max(block_size // 2, 1)
    assert torch.equal(generate(gpt, text, 40, temperature=0), expected)


def test_no_tokens_give_the_prompt() -> None:
    prompt = torch.randint(11, (2, 4))
    assert torch.equal(generate(network(), prompt, 0), prompt)


def test_fault_27_the_seed_repeats_exactly_and_a_sample_does_not_depend_on_the_others() -> None:
    gpt, prompt = network(), torch.randint(11, (1, 4))
    three = generate(gpt, prompt.expand(3, -1), 60, temperature=1.5, seed=7)
    assert torch.equal(three, generate(gpt, prompt.expand(3, -1), 60, temperature=1.5, seed=7))
    assert torch.equal(three[:1], generate(gpt, prompt, 60, temperature=1.5, seed=7))
    assert len({tuple(row) for row in three.tolist()}) == 3
    assert not torch.equal(three[:1], generate(gpt, prompt, 60, temperature=1.5, seed=8))
    assert not torch.equal(*(generate(gpt, prompt, 60, temperature=1.5) for _ in range(2))), "no seed, the same text"


@pytest.mark.parametrize("seed", [0, 2**53, 2**63, 2**64 - 2])
def test_neighbouring_seeds_differ_however_large(seed: int) -> None:
    """Guards against a seed that is rounded to double precision on its way."""
    first, second = (next(uniforms(each, 2)) for each in (seed, seed + 1))
    assert not torch.equal(first, second)


def test_drawing_uses_up_no_other_random_number() -> None:
    state, numbers = torch.get_rng_state(), np.random.get_state()
    generate(network(), torch.zeros(1, 1, dtype=torch.long), 5, seed=1)
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    gpt = network()
    generate(gpt, torch.zeros(1, 1, dtype=torch.long), 5)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), expected)
    assert str(np.random.get_state()) == str(numbers)
    torch.set_rng_state(state)
    generate(gpt, torch.zeros(1, 1, dtype=torch.long), 5)
    assert torch.equal(torch.get_rng_state(), state)


def test_tokens_come_as_often_as_they_are_probable() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -math.inf, 0.5]])
    n = 40_000
    numbers = itertools.islice(uniforms(0, n), 1)
    drawn = choose(logits.expand(n, -1), next(numbers), SamplingConfig(temperature=1.0))
    expected = logits[0].softmax(0)
    counts = torch.bincount(drawn, minlength=5) / n
    # five standard deviations of the commonest: once in a million
    assert (counts - expected).abs().max() < 5 * math.sqrt(0.25 / n)
    assert counts[3] == 0


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-32])
def test_a_token_that_was_filtered_out_is_never_drawn(uniform: float) -> None:
    """At either end of the distribution: guards against an index beyond the vocabulary, or into a run of zeros."""
    scores = 3 * torch.randn(200, 50)
    scores[:, [0, 1, 48, 49]] = -20.0
    config = SamplingConfig(temperature=1.0, top_k=3)
    drawn = choose(scores, torch.full((200,), uniform, dtype=torch.float64), config)
    assert filtered(scores, config).gather(1, drawn[:, None]).isfinite().all()


def test_a_temperature_near_zero_is_greedy() -> None:
    logits = 30 * torch.randn(100, 20)
    drawn = choose(logits, torch.full((100,), 0.99, dtype=torch.float64), SamplingConfig(temperature=1e-300))
    assert torch.equal(drawn, logits.argmax(-1))


def reference(name: str, *args: Any) -> Any:
    pytest.importorskip("transformers")
    from transformers.generation import logits_process

    return getattr(logits_process, name)(*args)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_filters_agree_with_the_logits_processors_of_transformers(temperature: float) -> None:
    torch.manual_seed(0)
    scores = (4 * torch.randn(64, 33)).round(decimals=1)  # rounded, so that some are equal
    pairs = [(keep_top_k, "TopKLogitsWarper", k) for k in (1, 2, 10, 33, 200)]
    pairs += [(keep_top_p, "TopPLogitsWarper", p) for p in (0.0, 1e-6, 0.3, 0.9, 0.999, 1.0)]  # type: ignore[misc]  # k is an int
    pairs += [(keep_min_p, "MinPLogitsWarper", p) for p in (0.0, 0.05, 0.5, 1.0)]  # type: ignore[misc]
    for ours, theirs, value in pairs:
        expected = reference(theirs, value)(None, scores.clone())
        assert torch.equal(ours(scores, value), expected), (theirs, value)
    even = torch.zeros(1, 4)  # half of it adds up to one half exactly
    assert torch.equal(keep_top_p(even, 0.5), reference("TopPLogitsWarper", 0.5)(None, even))
    together = filtered(scores, SamplingConfig(temperature, top_k=20, top_p=0.9, min_p=0.05))
    expected = scores
    for processor in (
        reference("TemperatureLogitsWarper", temperature),
        reference("TopKLogitsWarper", 20),
        reference("TopPLogitsWarper", 0.9),
        reference("MinPLogitsWarper", 0.05),
    ):
        expected = processor(None, expected)
    assert torch.equal(together.isfinite(), expected.isfinite())
    torch.testing.assert_close(together.softmax(-1).float(), expected.softmax(-1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature has to be at least 0 and finite, got -0.1"),
        ({"temperature": math.nan}, "temperature .* got nan"),
        ({"temperature": math.inf}, "temperature .* got inf"),
        ({"top_k": 0}, "top_k has to be at least 1, got 0; leave it out"),
        ({"top_p": 1.1}, "top_p has to lie between 0 and 1, got 1.1"),
        ({"top_p": math.nan}, "top_p .* got nan"),
        ({"min_p": -0.1}, "min_p has to lie between 0 and 1, got -0.1"),
        ({"seed": -1}, "seed has to be at least 0"),
        ({"seed": 2**64}, "seed .* below 2"),
        ({"max_new_tokens": -1}, "max_new_tokens has to be at least 0, got -1"),
    ],
)
def test_fault_26_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(network(), torch.zeros(1, 1, dtype=torch.long), **options)


def test_an_empty_prompt_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        stream(network(), torch.zeros(2, 0, dtype=torch.long))

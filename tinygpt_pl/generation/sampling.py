"""Tokens drawn from a network, one after another. It knows no text and no file.

A learned position cannot slide: a window that is full has to be read again from its first position. By default the
newer half of it is, in one pass, which makes room for as many tokens again; on request the whole window is, at each
token.
"""

import itertools
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinygpt_pl.generation.decoding import AnyDecoder, decoder_of
from tinygpt_pl.gpt import GPT


@dataclass(frozen=True)
class SamplingConfig:
    """How a token is drawn: the logits are divided by the temperature, then the filters leave fewer, one by one.

    Raises:
        ValueError: for a value outside its range.
    """

    temperature: float = 0.8
    """Above 1 the network is bolder than it was trained to be, below 1 more careful; 0 takes the likeliest token."""
    top_k: int | None = None
    """Keep this many of the likeliest tokens, and those as likely as the last of them."""
    top_p: float | None = None
    """Keep the fewest tokens whose probabilities add up to this; nucleus sampling, arXiv 1904.09751."""
    min_p: float | None = None
    """Keep the tokens at least this many times as probable as the likeliest; arXiv 2407.01082."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            raise ValueError(f"temperature has to be at least 0 and finite, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k has to be at least 1, got {self.top_k}; leave it out to keep all tokens")
        for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} has to lie between 0 and 1, got {value}")


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Scores (B, V) with all below the k-th largest of their row at minus infinity."""
    least = scores.topk(min(k, scores.size(-1))).values[:, -1:]  # (B, 1)
    return scores.masked_fill(scores < least, -math.inf)


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    """Scores (B, V) with the least likely tokens of each row, up to a probability of 1 - p, at minus infinity."""
    ordered, order = scores.sort()
    drop = ordered.softmax(-1).cumsum(-1) <= 1 - p
    drop[:, -1] = False  # the likeliest stays, whatever p is
    return scores.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -math.inf)


def keep_min_p(scores: Tensor, p: float) -> Tensor:
    """Scores (B, V) with all tokens less than p times as probable as the likeliest of their row at minus infinity."""
    probabilities = scores.softmax(-1)
    return scores.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -math.inf)


def filtered(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Scores (B, V) to draw from, out of logits (B, V): temperature first, then top-k, top-p and min-p."""
    # In double precision, and the difference first: at a temperature near zero 0/0 and inf - inf are not far.
    scores = (logits.double() - logits.amax(-1, keepdim=True)) / config.temperature
    if config.top_k is not None:
        scores = keep_top_k(scores, config.top_k)
    if config.top_p is not None:
        scores = keep_top_p(scores, config.top_p)
    if config.min_p is not None:
        scores = keep_min_p(scores, config.min_p)
    return scores


def choose(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Tensor:
    """Tokens (B,) of logits (B, V): where numbers (B,) below 1 fall in the cumulative distribution of each row.

    Raises:
        ValueError: for logits that are not numbers, or infinitely large.
    """
    if not logits.amax(-1).isfinite().all():
        raise ValueError("the network's logits are no numbers: its weights are damaged, or far too large")
    if config.temperature == 0.0:
        return logits.argmax(-1)
    cumulative = filtered(logits, config).softmax(-1).cumsum(-1)  # (B, V)
    return torch.searchsorted(cumulative, uniform[:, None], right=True).squeeze(1)


def uniforms(seed: int, samples: int) -> Iterator[Tensor]:
    """Numbers (B,) in [0, 1) for each token in turn; those of a sample are the same however many there are.

    They come from a generator of their own: no other random number of the process is used up. They are multiples of
    2**-32, and so below what probabilities in double precision add up to, which may fall short of 1.
    """
    generators = [np.random.Philox(key=np.array([seed, sample], dtype=np.uint64)) for sample in range(samples)]
    while True:
        raw = np.stack([generator.random_raw(64) for generator in generators], axis=1) >> np.uint64(32)
        yield from torch.from_numpy(raw * 2.0**-32)  # (64, B)


def stream(
    gpt: GPT,
    idx: Tensor,
    config: SamplingConfig = SamplingConfig(),
    *,
    seed: int | None = None,
    exact_window: bool = False,
) -> Iterator[Tensor]:
    """Tokens (B,) that follow a prompt, one after another without end.

    Args:
        gpt: the model; one that is changed, by a subclass, a hook or a replaced module, is run by its own forward over
            the whole window for each token, without a cache.
        idx: the prompts, token ids (B, T), T at least 1; the network sees the last `block_size` of them.
        config: how a token is drawn.
        seed: of the draws; any other each time if left out.
        exact_window: read the last `block_size` tokens again for each token once the window is full, instead of half
            of them once in a while.

    Raises:
        ValueError: for an empty prompt, or a seed that is negative or above 64 bits.
    """
    if not idx.size(1):
        raise ValueError("the prompt is empty: a network needs a token to go on from")
    if seed is not None and not 0 <= seed < 2**64:
        raise ValueError(f"seed has to be at least 0 and below 2**64, got {seed}")
    draws = uniforms(np.random.SeedSequence().generate_state(1, np.uint64)[0] if seed is None else seed, idx.size(0))
    size = gpt.config.block_size
    kept = size if exact_window else max(size // 2, 1)
    return _stream(decoder_of(gpt, len(idx)), idx, config, draws, kept)


def _stream(
    decoder: AnyDecoder, idx: Tensor, config: SamplingConfig, draws: Iterator[Tensor], kept: int
) -> Iterator[Tensor]:
    size = decoder.block_size
    unread = idx[:, -size:].to(decoder.device)
    window = deque(unread.unbind(1), maxlen=size)
    for uniform in draws:
        token = choose(decoder.read(unread).cpu(), uniform, config)
        yield token
        window.append(token.to(unread.device))
        if decoder.length == size:
            decoder.length = 0
            unread = torch.stack([*window][-kept:], 1)
        else:
            unread = window[-1][:, None]


def generate(
    gpt: GPT,
    idx: Tensor,
    max_new_tokens: int = 500,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    exact_window: bool = False,
) -> Tensor:
    """Prompts (B, T) with `max_new_tokens` drawn after each, (B, T + max_new_tokens).

    The other arguments are those of SamplingConfig and of `stream`.

    Raises:
        ValueError: as they do, and for fewer than 0 tokens.
    """
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens has to be at least 0, got {max_new_tokens}")
    config = SamplingConfig(temperature, top_k, top_p, min_p)
    tokens = stream(gpt, idx, config, seed=seed, exact_window=exact_window)
    drawn = [token[:, None].to(idx) for token in itertools.islice(tokens, max_new_tokens)]
    return torch.cat([idx, *drawn], 1)

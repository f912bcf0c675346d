"""An ensemble scores and writes by the mean of its members' probabilities."""

import itertools

import pytest
import torch

from tinygpt_pl import Ensemble, generate
from tinygpt_pl.generation.decoding import EnsembleDecoder, decoder_of
from tinygpt_pl.gpt import GPT, GPTConfig


def members() -> list[GPT]:
    """Three models of different shapes, whose predictions differ."""
    torch.manual_seed(0)
    shapes = [GPTConfig(11, 12, 1, 2, 8), GPTConfig(11, 12, 2, 2, 16, position="rotary"), GPTConfig(11, 12, 1, 1, 4)]
    gpts = [GPT(shape).eval() for shape in shapes]
    with torch.no_grad():
        for parameter in itertools.chain(*(gpt.parameters() for gpt in gpts)):
            parameter.add_(0.5 * torch.randn_like(parameter))
    return gpts


@torch.no_grad()
def test_probabilities_are_the_mean_of_those_of_the_members() -> None:
    """Guards against a mean of logits or of losses: either is another model."""
    gpts = members()
    idx, targets = torch.randint(11, (2, 4, 12))
    logits, loss = Ensemble(gpts)(idx, targets)
    mean = torch.stack([gpt(idx)[0].double().softmax(-1) for gpt in gpts]).mean(0)
    torch.testing.assert_close(logits.double().softmax(-1), mean, rtol=1e-5, atol=1e-7)
    assert loss is not None
    expected = -mean.gather(-1, targets[..., None]).log().mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    alone = [float(gpt(idx, targets)[1]) for gpt in gpts]
    assert float(loss) < sum(alone) / 3  # by Jensen's inequality, as they differ


@torch.no_grad()
def test_half_precision_is_averaged_in_float32() -> None:
    idx = torch.randint(11, (2, 12))
    logits, _ = Ensemble([gpt.bfloat16() for gpt in members()])(idx)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(2, 12))


def test_reading_on_from_the_caches_gives_what_the_whole_window_gives() -> None:
    """Also after the window was full and half of it was read again."""
    ensemble = Ensemble(members())
    decoder = decoder_of(ensemble, 3)
    assert isinstance(decoder, EnsembleDecoder)
    idx = torch.randint(11, (3, 12))
    with torch.no_grad():
        whole, _ = ensemble(idx)
    for parts in ((5, 1, 1, 5), (12,)):
        decoder.length = 0
        for part, end in zip(parts, itertools.accumulate(parts), strict=True):
            logits = decoder.read(idx[:, end - part : end])
            torch.testing.assert_close(logits, whole[:, end - 1], rtol=1e-5, atol=1e-5)
            assert decoder.length == end
    # A member that was changed has no cache; the others keep theirs.
    cached = generate(ensemble, idx[:, :3], 40, seed=1)
    gpts = members()
    gpts[1].register_forward_hook(lambda *call: None)
    assert torch.equal(generate(Ensemble(gpts), idx[:, :3], 40, seed=1), cached)


def test_one_member_is_itself() -> None:
    gpt = members()[0]
    idx = torch.randint(11, (1, 3))
    assert torch.equal(generate(Ensemble([gpt]), idx, 20, seed=2), generate(gpt, idx, 20, seed=2))


def test_members_that_do_not_fit_together_are_refused() -> None:
    gpt = members()[0]
    for shape, named in ((GPTConfig(12, 12, 1, 1, 4), "vocab_size"), (GPTConfig(11, 8, 1, 1, 4), "block_size")):
        with pytest.raises(ValueError, match=f"must have one {named}"):
            Ensemble([gpt, GPT(shape)])
    with pytest.raises(ValueError, match="at least one member"):
        Ensemble([])

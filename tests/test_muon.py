"""Muon against its definition, by singular values, and against torch's own, which has half the digits."""

import copy
import math

import pytest
import torch
from torch import Tensor

from tests.small_runs import assert_same
from tinygpt_pl.gpt import GPT, GPTConfig
from tinygpt_pl.muon import QUINTIC, RMS, STEPS, MuonAdamW, orthogonalized
from tinygpt_pl.optim import OptimConfig, configure_optimizer, decay_groups

CONFIG = OptimConfig(optimizer="muon", weight_decay=0.1, momentum=0.8)
LR = 0.01


def network() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(11, 12, n_layer=2, n_head=3, n_embd=24, dropout=0.0))


def muon(gpt: GPT) -> MuonAdamW:
    optimizer = configure_optimizer(gpt, CONFIG, fused=True)
    assert isinstance(optimizer, MuonAdamW)
    for group in optimizer.param_groups:
        group["lr"] = LR
    return optimizer


def backward(gpt: GPT, step: int) -> None:
    gpt.zero_grad()
    idx = torch.randint(11, (4, 13), generator=torch.Generator().manual_seed(step))
    _, loss = gpt(idx[:, :-1], idx[:, 1:])
    assert loss is not None
    loss.backward()


@pytest.mark.parametrize("shape", [(1, 24, 24), (1, 72, 24), (1, 24, 96), (5, 3, 7), (2, 6, 4)])
def test_singular_vectors_stay_and_singular_values_go_through_the_polynomial(shape: tuple[int, ...]) -> None:
    """Guards against a tall matrix that is not turned back, and against one norm for a whole stack of matrices."""
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    s = s / s.square().sum(-1, keepdim=True).sqrt()
    a, b, c = QUINTIC
    for _ in range(STEPS):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(orthogonalized(x), u @ torch.diag_embed(s) @ vt)
    assert ((s > 0.5) & (s < 1.3)).double().mean() > 0.9


@pytest.mark.parametrize("shape", [(1, 24, 24), (2, 24, 96), (2, 96, 24)])
def test_products_in_bfloat16_bring_singular_values_near_one_all_the_same(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    half = orthogonalized(x, torch.bfloat16)
    assert half.dtype is torch.float32, "the weights are not rounded with their steps"
    assert (half - orthogonalized(x)).norm() < 0.03 * half.norm()
    values = torch.linalg.svdvals(half)
    assert ((values > 0.5) & (values < 1.3)).double().mean() > 0.9


def test_a_matrix_of_zeros_stays_one() -> None:
    assert torch.equal(orthogonalized(torch.zeros(1, 3, 5)), torch.zeros(1, 3, 5))


def test_steps_are_those_of_muon_written_out() -> None:
    gpt = network().double()
    optimizer, expected = muon(gpt), copy.deepcopy(gpt)
    momenta: dict[str, Tensor] = {}
    m = CONFIG.momentum
    for step in range(3):
        backward(gpt, step)
        backward(expected, step)
        optimizer.step()
        with torch.no_grad():
            for name, p in expected.named_parameters():
                if name.startswith("h.") and p.dim() == 2:
                    assert p.grad is not None
                    momenta[name] = m * momenta.get(name, torch.zeros_like(p)) + (1 - m) * p.grad
                    ahead = m * momenta[name] + (1 - m) * p.grad
                    parts = torch.split(ahead, 24) if "c_attn" in name else [ahead]
                    scaled = [RMS * math.sqrt(max(part.shape)) * orthogonalized(part[None])[0] for part in parts]
                    p.copy_(p - LR * CONFIG.weight_decay * p - LR * torch.cat(scaled))
                    torch.testing.assert_close(gpt.get_parameter(name), p, rtol=1e-12, atol=1e-12)
                else:
                    p.copy_(gpt.get_parameter(name))


def test_torchs_muon_takes_the_same_steps_in_bfloat16() -> None:
    """Its matrices that are one; those that are several in one it would take whole."""
    gpt = network()
    optimizer, expected = muon(gpt), copy.deepcopy(gpt)
    matrices = [p for name, p in expected.h.named_parameters() if p.dim() == 2 and "c_attn" not in name]
    theirs = torch.optim.Muon(
        matrices, lr=LR, weight_decay=CONFIG.weight_decay, momentum=0.8, adjust_lr_fn="match_rms_adamw"
    )
    before = {name: p.detach().clone() for name, p in gpt.named_parameters()}
    for _ in range(2):
        for name, p in expected.named_parameters():
            p.grad = torch.randn_like(p)  # singular values alike, so that rounding is not what decides
            gpt.get_parameter(name).grad = p.grad.clone()
        optimizer.step()
        theirs.step()  # type: ignore[no-untyped-call]  # torch's
    for name, p in expected.named_parameters():
        if name.startswith("h.") and p.dim() == 2 and "c_attn" not in name:
            ours, other = gpt.get_parameter(name) - before[name], p - before[name]
            assert (ours - other).norm() < 0.03 * other.norm(), name


def test_a_step_of_muon_is_as_long_as_one_of_adamw() -> None:
    """One learning rate for both supposes it."""
    gpt = network()
    before = {name: p.detach().clone() for name, p in gpt.named_parameters()}
    backward(gpt, 0)
    muon(gpt).step()
    for name, p in gpt.named_parameters():
        if name.startswith("h.") and p.dim() == 2:
            rms = (p - before[name] * (1 - LR * CONFIG.weight_decay)).square().mean().sqrt().item()
            assert 0.6 * RMS * LR < rms < 1.3 * RMS * LR, name


def test_the_rest_is_adamws_to_the_last_bit() -> None:
    gpt = network()
    expected = copy.deepcopy(gpt)
    optimizer = muon(gpt)
    *_, decay, no_decay = decay_groups(expected, CONFIG)
    plain = torch.optim.AdamW([decay, no_decay], lr=LR, betas=CONFIG.betas, fused=True)
    for step in range(3):
        backward(gpt, step)
        for name, p in expected.named_parameters():
            p.grad = gpt.get_parameter(name).grad
        plain.step()
        optimizer.step()
        for name, p in expected.named_parameters():
            if not name.startswith("h.") or p.dim() < 2:
                assert torch.equal(p, gpt.get_parameter(name)), name
            else:
                p.data.copy_(gpt.get_parameter(name))


def test_every_parameter_is_in_exactly_one_group_and_the_embeddings_are_not_muons() -> None:
    gpt = network()
    groups = decay_groups(gpt, CONFIG)
    found = [(group["name"], len(group["params"]), group.get("rows")) for group in groups]
    joined = ("muon_24_24_24", 2, (24, 24, 24))
    assert found == [("muon", 6, ()), joined, ("decay", 2, None), ("no_decay", 18, None)]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in gpt.parameters())
    assert {id(p) for p in groups[2]["params"]} == {id(p) for p in (gpt.wte.weight, gpt.get_parameter("wpe.weight"))}


def test_a_state_that_was_saved_goes_on_to_the_last_bit() -> None:
    alone = network()
    optimizer = muon(alone)
    backward(alone, 0)
    optimizer.step()
    stopped = copy.deepcopy(alone)
    other = muon(stopped)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for gpt, its in ((alone, optimizer), (stopped, other)):
        backward(gpt, 1)
        its.step()
    assert_same(dict(alone.state_dict()), dict(stopped.state_dict()))
    assert_same(optimizer.state_dict(), other.state_dict())


def test_a_closure_is_called_with_gradients() -> None:
    gpt = network()
    before = gpt.get_parameter("h.0.mlp.c_fc.weight").detach().clone()

    def closure() -> Tensor:
        backward(gpt, 0)
        return torch.tensor(3.0)

    assert muon(gpt).step(closure).item() == 3.0
    assert not torch.equal(gpt.get_parameter("h.0.mlp.c_fc.weight"), before)

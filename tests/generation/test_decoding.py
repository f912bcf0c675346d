"""Reading on from a cache gives what reading the whole window gives."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tinygpt_pl.generation.decoding import Decoder, WholeWindow, decoder_of
from tinygpt_pl.generation.sampling import generate
from tinygpt_pl.gpt import GPT, Block, CausalSelfAttention, GPTConfig

PARTS: list[dict[str, Any]] = [
    {},
    {"activation": "gelu_tanh", "n_kv_head": 1},
    {"position": "rotary", "activation": "relu2", "bias": False},
    {"norm": "rmsnorm", "activation": "swiglu"},
    {"qk_norm": True},
    {"bigrams": True},
    {"position": "rotary", "norm": "rmsnorm", "qk_norm": True, "activation": "swiglu", "bias": False, "n_kv_head": 1},
    {"bigrams": True, "position": "rotary", "norm": "rmsnorm"},
]


def network(**parts: Any) -> GPT:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(11, 12, n_layer=2, n_head=3, n_embd=24, dropout=0.5, **parts))
    with torch.no_grad():
        for p in gpt.parameters():
            p.add_(0.3 * torch.randn_like(p))  # biases that are not zero, positions that matter
    return gpt


@pytest.mark.parametrize("network_parts", PARTS)
@given(parts=st.lists(st.integers(1, 5), min_size=1, max_size=12).filter(lambda parts: sum(parts) <= 12))
@settings(max_examples=30, deadline=None)
def test_fault_27_cached_logits_are_those_of_the_whole_window(network_parts: dict[str, Any], parts: list[int]) -> None:
    """However the tokens are divided among the calls: guards against a position or a mask that starts again from 0."""
    gpt = network(**network_parts)
    decoder = Decoder(gpt, batch_size=3)  # though the network is in training mode
    idx = torch.randint(11, (3, sum(parts)))
    whole, _ = gpt.eval()(idx)
    end = 0
    for part in parts:
        logits = decoder.read(idx[:, end : end + part])
        end += part
        torch.testing.assert_close(logits, whole[:, end - 1], rtol=1e-5, atol=1e-5)
        assert decoder.length == end


def test_a_cache_that_is_emptied_is_used_again() -> None:
    gpt, decoder = network(), Decoder(network(), batch_size=1)
    decoder.read(torch.randint(11, (1, 12)))
    decoder.length = 0
    idx = torch.randint(11, (1, 5))
    torch.testing.assert_close(decoder.read(idx), gpt.eval()(idx)[0][:, -1], rtol=1e-5, atol=1e-5)


def test_a_full_cache_takes_nothing_more() -> None:
    decoder = Decoder(network(), batch_size=1)
    decoder.read(torch.zeros(1, 12, dtype=torch.long))
    with pytest.raises(ValueError, match="a window of 13 tokens does not fit into block_size 12"):
        decoder.read(torch.zeros(1, 1, dtype=torch.long))


def test_the_cache_is_of_the_kind_of_the_weights() -> None:
    gpt = network(**PARTS[-1]).bfloat16()
    assert Decoder(gpt, 1).read(torch.zeros(1, 3, dtype=torch.long)).dtype is torch.bfloat16


class OwnBlock(Block):
    def forward(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        return super().forward(x, rotation).flip(-1)


class LowRank(nn.Module):
    """A linear map with two small ones beside it, as LoRA wraps it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.a, self.b = base, nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.b(self.a(x))
        return out


class Doubled(nn.Module):
    """For a parametrization, and in place of an embedding."""

    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if self.weight is None else 2 * self.weight[x]


def no_attention(x: Tensor, rotation: Tensor | None = None) -> Tensor:
    return x.roll(1, -1)


def patch_attention(gpt: Any) -> None:
    for block in gpt.h:
        block.attn.forward = no_attention


CHANGES: dict[str, Callable[[Any], Any]] = {
    "attention of each block": patch_attention,
    "forward of the model": lambda gpt: setattr(
        gpt, "forward", lambda idx: (idx[..., None] * torch.arange(11.0), None)
    ),
    "class of a block": lambda gpt: setattr(gpt.h[1], "__class__", OwnBlock),
    "setting of a block": lambda gpt: setattr(gpt.h[0].mlp, "activation", "relu2"),
    "hook": lambda gpt: gpt.h[1].mlp.register_forward_hook(lambda module, args, out: -out),
    "hook before": lambda gpt: gpt.h[0].register_forward_pre_hook(lambda module, args: (args[0].flip(0), args[1])),
    "weight": lambda gpt: parametrize.register_parametrization(gpt.h[0].attn.c_attn, "weight", Doubled()),
    "linear map": lambda gpt: setattr(gpt.h[0].mlp, "c_fc", LowRank(gpt.h[0].mlp.c_fc)),
    "norm": lambda gpt: setattr(gpt.h[1], "ln_2", nn.Identity()),
    "embedding": lambda gpt: setattr(gpt, "wte", Doubled(gpt.wte.weight)),
    "number of blocks": lambda gpt: setattr(gpt, "h", gpt.h[:1]),
    "order of blocks": lambda gpt: setattr(gpt, "h", nn.ModuleList([gpt.h[0], gpt.h[0]])),
}


def by_its_own_forward(gpt: GPT, idx: Tensor, count: int) -> Tensor:
    """Greedy text inside the window."""
    gpt = copy.deepcopy(gpt).eval()
    for _ in range(count):
        idx = torch.cat([idx, gpt(idx)[0][:, -1:].argmax(-1)], 1)
    return idx


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_writes_what_its_own_forward_scores(change: str) -> None:
    gpt, idx = network(), torch.arange(6).view(2, 3)
    before = gpt.eval()(idx)[0]
    gpt.train()
    assert isinstance(decoder_of(gpt, 2), Decoder)
    CHANGES[change](gpt)
    modes = [module.training for module in gpt.modules()]
    assert torch.equal(generate(gpt, idx, 9, temperature=0), by_its_own_forward(gpt, idx, 9))
    assert modes == [module.training for module in gpt.modules()]
    assert not torch.allclose(gpt.eval()(idx)[0], before, atol=1e-3), "the change makes no difference"
    assert generate(gpt, idx, 30, exact_window=True).shape == generate(gpt, idx, 30).shape == (2, 33), "a full window"


def test_a_class_that_is_changed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CausalSelfAttention, "forward", lambda self, x, rotation=None: no_attention(x))
    gpt, idx = network(), torch.arange(6).view(2, 3)
    assert torch.equal(generate(gpt, idx, 9, temperature=0), by_its_own_forward(gpt, idx, 9))


@pytest.mark.parametrize("network_parts", PARTS)
def test_what_changes_no_result_keeps_the_cache(network_parts: dict[str, Any]) -> None:
    gpt = copy.deepcopy(network(**network_parts)).to(torch.float64).requires_grad_(False)
    gpt.drop.p = 0.0
    assert isinstance(decoder_of(gpt, 1), Decoder)


@pytest.mark.parametrize("network_parts", PARTS)
def test_both_decoders_score_the_same(network_parts: dict[str, Any]) -> None:
    gpt, idx = network(**network_parts), torch.randint(11, (2, 12))
    decoders = Decoder(gpt, 2), WholeWindow(gpt, 2)
    for part in (idx[:, :4], idx[:, 4:5], idx[:, 5:]):
        torch.testing.assert_close(*(decoder.read(part) for decoder in decoders), rtol=1e-5, atol=1e-5)
    for decoder in decoders:
        assert decoder.length == 12
        decoder.length = 0
    torch.testing.assert_close(*(decoder.read(idx[:, 3:5]) for decoder in decoders), rtol=1e-5, atol=1e-5)

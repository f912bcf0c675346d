"""Reading on from a cache gives what reading the whole window gives."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt_pl.generation.decoding import Decoder
from tinygpt_pl.gpt import GPT, GPTConfig

PARTS: list[dict[str, Any]] = [
    {},
    {"activation": "gelu_tanh", "n_kv_head": 1},
    {"position": "rotary", "activation": "relu2", "bias": False},
    {"norm": "rmsnorm", "activation": "swiglu"},
    {"qk_norm": True},
    {"position": "rotary", "norm": "rmsnorm", "qk_norm": True, "activation": "swiglu", "bias": False, "n_kv_head": 1},
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

"""The network: its size, its mask, its attention, its start, and transformers' GPT-2 as an independent reference."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tinygpt_pl.gpt import GPT, CausalSelfAttention, Dropout, GPTConfig

SMALL = GPTConfig(vocab_size=11, block_size=12, n_layer=2, n_head=3, n_embd=24, dropout=0.0)


def small(**changes: float) -> GPT:
    torch.manual_seed(0)
    return GPT(replace(SMALL, **changes)).eval()  # type: ignore[arg-type]  # fields of several types


def test_parameters_at_base_size() -> None:
    model = GPT(GPTConfig())
    assert sum(p.numel() for p in model.parameters()) == 10_770_816
    # Guards against a head that is stored, and so counted and decayed, beside the embedding it is tied to.
    assert sum(p.numel() for p in model.state_dict().values()) == 10_770_816


def test_flops_of_a_window_at_base_size() -> None:
    """The figure that torch's own counter gave for forward and backward of one window."""
    assert 256 * GPT(GPTConfig()).flops_per_token() == 18_157_731_840


def test_flops_agree_with_the_counter_of_torch() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = small()
    idx = torch.zeros(3, SMALL.block_size, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _, loss = model(idx, idx)
        assert loss is not None
        loss.backward()
    assert counter.get_total_flops() == idx.numel() * model.flops_per_token()


def test_future_tokens_never_change_earlier_logits() -> None:
    model = small()
    idx = torch.randint(11, (2, 12))
    with torch.no_grad():
        logits, _ = model(idx)
        for t in range(1, 12):
            changed = idx.clone()
            changed[:, t:] = (changed[:, t:] + 1) % 11
            other, _ = model(changed)
            assert torch.equal(other[:, :t], logits[:, :t]), f"a token at {t} or later changed a logit before it"
            assert not torch.equal(other[:, t], logits[:, t])


def test_attention_equals_a_masked_softmax_written_out() -> None:
    torch.manual_seed(0)
    attention = CausalSelfAttention(SMALL).eval()
    x = torch.randn(2, 12, 24)
    q, k, v = (x @ attention.c_attn.weight.T + attention.c_attn.bias).chunk(3, dim=-1)
    out = torch.zeros_like(x)
    for head in range(3):
        part = slice(8 * head, 8 * (head + 1))
        for t in range(12):
            for b in range(2):
                scores = k[b, : t + 1, part] @ q[b, t, part] / math.sqrt(8)
                probabilities = scores.exp() / scores.exp().sum()
                out[b, t, part] = probabilities @ v[b, : t + 1, part]
    expected = out @ attention.c_proj.weight.T + attention.c_proj.bias
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-6)


def test_attention_with_dropout_is_the_same_attention() -> None:
    """On a processor it is written out; a dropout that rounds to none has to leave the fused kernel's numbers."""
    fused, written_out = small().train(), small(dropout=1e-6).train()
    idx = torch.randint(11, (3, 2, 12))
    for model in (fused, written_out):
        _, loss = model(idx[0], idx[1])
        assert loss is not None
        loss.backward()
    torch.testing.assert_close(written_out(idx[0])[0], fused(idx[0])[0], rtol=1e-5, atol=1e-6)
    for a, b in zip(written_out.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.2, 0.5])
def test_dropout_drops_its_share_and_scales_the_rest(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dropout, n = Dropout(p), 999 * 1001  # no multiple of the four elements that share a random number
    x = torch.ones(999, 1001, dtype=dtype, requires_grad=True)
    y = dropout(x)
    y.sum().backward()
    kept = y != 0
    assert abs(kept.double().mean().item() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / n)
    assert y.dtype is dtype
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)), rtol=2**-8, atol=0)
    assert torch.equal(torch.as_tensor(x.grad), y), "the gradient does not pass where the value did"
    assert not torch.equal(dropout(x), y), "two batches lose the same elements"
    torch.manual_seed(0)
    assert torch.equal(dropout(x), y)


def test_elements_that_share_a_random_number_are_dropped_independently() -> None:
    torch.manual_seed(0)
    n, p = 400_000, 0.25
    dropped = Dropout(p)(torch.ones(n, 4)) == 0
    counts = torch.bincount((dropped * torch.tensor([1, 2, 4, 8])).sum(1), minlength=16)
    for pattern, count in enumerate(counts.tolist()):
        chance = math.prod(p if pattern >> bit & 1 else 1 - p for bit in range(4))
        assert abs(count - n * chance) < 5 * math.sqrt(n * chance), f"pattern {pattern:04b}"


def test_dropout_of_nearly_everything() -> None:
    """A rate that rounds to 1 would divide by zero."""
    assert Dropout(0.999999)(torch.ones(1000)).isfinite().all()


def test_dropout_leaves_evaluation_and_random_numbers_alone() -> None:
    x = torch.randn(5, 7)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(torch.get_rng_state(), state)


def test_loss_is_the_mean_negative_log_probability() -> None:
    model = small()
    idx, targets = torch.randint(11, (2, 3, 12))
    logits, loss = model(idx, targets)
    probabilities = logits.exp() / logits.exp().sum(-1, keepdim=True)
    expected = -sum(probabilities[b, t, targets[b, t]].log() for b in range(3) for t in range(12)) / 36
    torch.testing.assert_close(loss, expected)


def test_loss_of_a_half_precision_network_has_single_precision() -> None:
    _, loss = small().bfloat16()(*torch.randint(11, (2, 3, 12)))
    assert loss.dtype is torch.float32


def test_initial_weights_are_those_of_gpt2() -> None:
    torch.manual_seed(0)
    config = GPTConfig()
    for name, p in GPT(config).named_parameters():
        if name.endswith("c_proj.weight"):
            expected = 0.02 / math.sqrt(2 * config.n_layer)
        elif p.dim() >= 2:
            expected = 0.02
        else:
            assert torch.equal(p, torch.ones_like(p) if ".weight" in name else torch.zeros_like(p)), name
            continue
        # The sample deviation of the smallest, 24,960 normal numbers, is off by 2 % once in 10 million times.
        assert p.std().item() == pytest.approx(expected, rel=0.025), name
        assert abs(p.mean().item()) < expected / 20, name


def test_one_batch_can_be_learned_by_heart() -> None:
    model = small(n_embd=48).train()
    batch: Tensor = torch.randint(11, (4, 13))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loss = None
    for _ in range(150):
        _, loss = model(batch[:, :-1], batch[:, 1:])
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss is not None
    assert loss.item() < 0.1


def test_dropout_acts_in_training_alone() -> None:
    model = small(dropout=0.5)
    idx = torch.randint(11, (2, 12))
    assert torch.equal(model(idx)[0], model(idx)[0])
    model.train()
    assert not torch.equal(model(idx)[0], model(idx)[0])


def test_logits_are_those_of_transformers_gpt2() -> None:
    transformers = pytest.importorskip("transformers")
    model = small()
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=12, n_embd=24, n_layer=2, n_head=3, activation_function="gelu"
    )
    reference = transformers.GPT2LMHeadModel(config).eval()
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # stored transposed there
    state = {f"transformer.{k}": v.T if k.endswith(linear) else v for k, v in model.state_dict().items()}
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"]
    assert unexpected == []
    reference.tie_weights()
    idx = torch.randint(11, (2, 12))
    with torch.no_grad():
        torch.testing.assert_close(model(idx)[0], reference(idx).logits, rtol=1e-5, atol=1e-5)


def test_a_window_longer_than_the_block_is_refused() -> None:
    with pytest.raises(ValueError, match="13 tokens does not fit into block_size 12"):
        small()(torch.zeros(1, 13, dtype=torch.long))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 5}, "multiple of n_head, got n_embd 24 and n_head 5"),
        ({"n_layer": 0}, "n_layer has to be at least 1, got 0"),
        ({"block_size": -1}, "block_size has to be at least 1, got -1"),
        ({"dropout": 1.0}, r"dropout has to be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout has to be in \[0, 1\), got -0.1"),
        ({"dropout": math.nan}, r"dropout has to be in \[0, 1\), got nan"),
    ],
)
def test_an_impossible_shape_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)  # type: ignore[arg-type]  # fields of several types

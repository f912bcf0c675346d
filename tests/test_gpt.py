"""The network: its size, its mask, its attention, its start, and transformers' GPT-2 as an independent reference."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tinygpt_pl.gpt import (
    GPT,
    MLP,
    CausalSelfAttention,
    Dropout,
    GPTConfig,
    Norm,
    hashed_places,
    parameter_count,
    rotate,
    rotations,
)
from tinygpt_pl.training.steps import compiled_forward, put_in_place, take_away

SMALL = GPTConfig(vocab_size=11, block_size=12, n_layer=2, n_head=3, n_embd=24, dropout=0.0)


MODERN = {
    "position": "rotary",
    "norm": "rmsnorm",
    "qk_norm": True,
    "activation": "swiglu",
    "n_kv_head": 1,
    "bigrams": True,
}


def small(**changes: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(replace(SMALL, **changes)).eval()


def test_parameters_at_base_size() -> None:
    model = GPT(GPTConfig())
    assert sum(p.numel() for p in model.parameters()) == 10_770_816
    # Guards against a head that is stored, and so counted and decayed, beside the embedding it is tied to.
    assert sum(p.numel() for p in model.state_dict().values()) == 10_770_816


def test_flops_of_a_window_at_base_size() -> None:
    """The figure that torch's own counter gave for forward and backward of one window."""
    assert 256 * GPT(GPTConfig()).flops_per_token() == 18_157_731_840


@pytest.mark.parametrize("changes", [{}, {**MODERN, "n_kv_head": None}])
def test_flops_agree_with_the_counter_of_torch(changes: dict[str, Any]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = small(**changes)
    idx = torch.zeros(3, SMALL.block_size, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _, loss = model(idx, idx)
        assert loss is not None
        loss.backward()
    assert counter.get_total_flops() == idx.numel() * model.flops_per_token()


@pytest.mark.parametrize("changes", [{}, MODERN])
def test_future_tokens_never_change_earlier_logits(changes: dict[str, Any]) -> None:
    model = small(**changes)
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


@pytest.mark.parametrize("changes", [{}, MODERN])
def test_attention_with_dropout_is_the_same_attention(changes: dict[str, Any]) -> None:
    """On a processor it is written out; a dropout that rounds to none has to leave the fused kernel's numbers."""
    fused, written_out = small(**changes).train(), small(**changes, dropout=1e-6).train()
    idx = torch.randint(11, (3, 2, 12))
    for model in (fused, written_out):
        _, loss = model(idx[0], idx[1])
        assert loss is not None
        loss.backward()
    torch.testing.assert_close(written_out(idx[0])[0], fused(idx[0])[0], rtol=1e-5, atol=1e-6)
    for a, b in zip(written_out.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, MODERN])
def test_attention_in_bfloat16_is_the_same_attention(changes: dict[str, Any]) -> None:
    """In training it is written out on a processor, for the fused kernel's backward is slow in it."""
    plain, half = small(**changes).train(), small(**changes).train()
    idx = torch.randint(11, (3, 2, 12))
    for model in (plain, half):
        with torch.autocast("cpu", torch.bfloat16, enabled=model is half):
            _, loss = model(idx[0], idx[1])
        assert loss is not None
        loss.backward()
    for (name, a), b in zip(half.named_parameters(), plain.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert (a.grad - b.grad).norm() < 0.03 * b.grad.norm(), name


def test_turned_heads_are_those_of_complex_numbers() -> None:
    """The formula of the paper: a pair of channels is a complex number, multiplied by e^(i·position·rate)."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    pairs = torch.complex(x[..., :4], x[..., 4:])
    rates = torch.tensor([10000.0 ** (-2 * d / 8) for d in range(4)], dtype=torch.float64)
    turned = pairs * torch.exp(1j * torch.arange(5, 12)[:, None] * rates)
    torch.testing.assert_close(rotate(x, rotations(5, 12, 8, x)), torch.cat([turned.real, turned.imag], -1))


def test_scores_of_rotary_positions_depend_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 12, 8, dtype=torch.float64)
    here, there = (rotate(q, rotations(a, a + 12, 8, q)) @ rotate(k, rotations(a, a + 12, 8, k)).mT for a in (0, 100))
    torch.testing.assert_close(here, there)
    assert not torch.allclose(here, q @ k.mT)


def test_rotations_have_single_precision_in_a_half_precision_network() -> None:
    """Guards against positions in bfloat16, which cannot tell 257 from 256."""
    table = rotations(0, 300, 8, torch.zeros(1, dtype=torch.bfloat16))
    assert torch.equal(table, rotations(0, 300, 8, torch.zeros(1)))


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_attention_with_every_part_equals_the_same_written_out(norm: Norm) -> None:
    """A head of keys and values for two of queries, norms of both, then rotary positions: in this order."""
    torch.manual_seed(0)
    config = replace(SMALL, n_head=4, n_kv_head=2, norm=norm, qk_norm=True, bias=False, position="rotary")
    attention = CausalSelfAttention(config).eval()
    assert isinstance(attention.q_norm, torch.nn.Module)
    assert isinstance(attention.k_norm, torch.nn.Module)
    with torch.no_grad():
        attention.q_norm.weight.normal_()
        attention.k_norm.weight.normal_()
    x = torch.randn(1, 12, 24)
    turn = rotations(0, 12, 6, x)
    heads = (x @ attention.c_attn.weight.T).view(12, 8, 6)

    def normed(head: Tensor, weight: Tensor) -> Tensor:
        if norm == "layernorm":
            head = head - head.mean(-1, keepdim=True)
        return rotate(head / (head.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight, turn)

    outs = []
    for head in range(4):
        q = normed(heads[:, head], attention.q_norm.weight)
        k, v = normed(heads[:, 4 + head // 2], attention.k_norm.weight), heads[:, 6 + head // 2]
        scores = (q @ k.T / math.sqrt(6)).masked_fill(torch.ones(12, 12).triu(1) > 0, -math.inf)
        outs.append(scores.softmax(-1) @ v)
    expected = torch.cat(outs, -1) @ attention.c_proj.weight.T
    torch.testing.assert_close(attention(x, turn)[0], expected, rtol=1e-5, atol=1e-5)


def test_an_mlp_of_squared_relu_is_that() -> None:
    torch.manual_seed(0)
    mlp = MLP(replace(SMALL, activation="relu2")).eval()
    x = torch.randn(2, 5, 24)
    hidden = (x @ mlp.c_fc.weight.T + mlp.c_fc.bias).clamp(min=0) ** 2
    torch.testing.assert_close(mlp(x), hidden @ mlp.c_proj.weight.T + mlp.c_proj.bias)


def test_swiglu_has_as_many_parameters_as_gelu_at_base_size() -> None:
    """Two thirds of the width, in three matrices."""
    config = GPTConfig(bias=False)
    assert parameter_count(replace(config, activation="swiglu")) == parameter_count(config)


PARTS: list[list[dict[str, Any]]] = [
    [{"position": "learned"}, {"position": "rotary"}],
    [{"norm": "layernorm"}, {"norm": "rmsnorm"}],
    [{"qk_norm": False}, {"qk_norm": True}],
    [{"activation": "gelu"}, {"activation": "swiglu"}],
    [{"bias": True}, {"bias": False}],
    [{"n_kv_head": None}, {"n_kv_head": 1}],
    [{"bigrams": False}, {"bigrams": True}],
]


def test_every_combination_of_parts_learns_and_has_the_parameters_that_are_counted_beforehand() -> None:
    idx = torch.randint(11, (2, 12))
    for choice in itertools.product(*PARTS):
        config = replace(SMALL, **dict(item for part in choice for item in part.items()))
        model = GPT(config)
        assert sum(p.numel() for p in model.parameters()) == parameter_count(config), config
        model(idx, idx)[1].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters()), config


def test_a_pair_of_tokens_has_a_vector_beside_that_of_the_second() -> None:
    """The first token of a window has none: what came before it is not known."""
    model = small(bigrams=True).eval()
    assert model.bigram is not None
    assert model.bigram.weight.shape == (11 * 11, 24)
    idx, read = torch.tensor([[3, 10, 3]]), []
    model.h[0].register_forward_pre_hook(lambda _, args: read.append(args[0][0]))
    model(idx)
    wte, wpe, bigram = model.wte.weight, model.wpe.weight, model.bigram.weight  # type: ignore[union-attr]
    expected = [wte[3] + wpe[0], wte[10] + wpe[1] + bigram[3 * 11 + 10], wte[3] + wpe[2] + bigram[10 * 11 + 3]]
    torch.testing.assert_close(read[0], torch.stack(expected))


def test_pairs_of_a_large_vocabulary_share_rows() -> None:
    """Guards against a table of V² rows, which is 2.5 billion for GPT-2's tokens."""
    config = replace(SMALL, vocab_size=50257, bigrams=True)
    assert config.bigram_rows == 65536
    assert parameter_count(config) - parameter_count(replace(config, bigrams=False)) == 65536 * 24
    idx = torch.randint(50257, (2, 12))
    logits, _ = GPT(config)(idx)
    assert logits.shape == (2, 12, 50257)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_every_part_runs_in_mixed_precision_without_a_warning(dropout: float) -> None:
    """Guards against a norm that gets bfloat16 with weights of float32."""
    model = small(**MODERN, bias=False, dropout=dropout).train()
    idx = torch.randint(11, (2, 12))
    with torch.autocast("cpu", torch.bfloat16):
        _, loss = model(idx, idx)
    assert loss is not None
    loss.backward()
    assert loss.item() == pytest.approx(model.eval()(idx, idx)[1].item(), rel=0.05 + dropout)


def test_attention_has_a_dropout_of_its_own() -> None:
    for own, general in ((0.5, 0.0), (0.0, 0.5)):
        shares = {
            name: module.p
            for name, module in small(attn_dropout=own, dropout=general).named_modules()
            if isinstance(module, Dropout)
        }
        assert shares == {name: own if name.endswith("attn_dropout") else general for name in shares}
        assert sum(name.endswith("attn_dropout") for name in shares) == 2


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


def test_hashed_places_are_uniform_and_independent_of_their_neighbours_and_of_other_keys() -> None:
    """A shift that brings the sign along would give all elements one top bit: none or twice as many are dropped."""
    torch.manual_seed(0)
    like, n = torch.empty(999, 1001), 999 * 1001
    first, second = hashed_places(like), hashed_places(like)
    assert first.dtype is torch.int32
    assert first.flatten().sort()[0].diff().all(), "a hash of 32 bits is one to one"
    for bits in (first, second):
        for bit in range(32):
            assert abs((bits >> bit & 1).double().mean().item() - 0.5) < 5 * 0.5 / math.sqrt(n), bit
    dropped = (first < -(2**30)).double().flatten() - 0.25
    for other in ((second < -(2**30)).double().flatten() - 0.25, *(dropped.roll(k) for k in (1, 2, 16, 1001))):
        assert abs((dropped * other).mean().item()) < 5 * 0.25 * 0.75 / math.sqrt(n)
    torch.manual_seed(0)
    assert torch.equal(hashed_places(like), first)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # of torch's compiler itself
def test_compiled_dropout_drops_its_share_in_the_backward_as_in_the_forward() -> None:
    """Its bits are computed twice, from the same keys."""
    torch.manual_seed(0)
    dropout = Dropout(0.2)
    compiled = torch.compile(lambda x: dropout(x), fullgraph=True, dynamic=False)
    x = torch.ones(999, 1001, requires_grad=True)
    y = compiled(x)
    y.sum().backward()
    assert abs((y == 0).double().mean().item() - 0.2) < 5 * math.sqrt(0.16 / y.numel())
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1.25))
    assert torch.equal(torch.as_tensor(x.grad), y)
    assert not torch.equal(compiled(x), y)
    torch.manual_seed(0)
    assert torch.equal(compiled(x), y)
    assert torch.compile(lambda x: Dropout(1 - 1e-16)(x), dynamic=False)(x).isfinite().all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # of torch's compiler itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {**MODERN, "n_kv_head": 3, "bias": False}])
def test_compiled_blocks_have_the_losses_and_gradients_of_the_others(
    changes: dict[str, Any], precision: torch.dtype
) -> None:
    """At the channels of a head and the tokens of base.yaml: the compiler makes other code for other sizes."""
    size: dict[str, Any] = {"block_size": 256, "n_embd": 192, "n_layer": 2}
    plain, compiled = small(**changes, **size).train(), small(**changes, **size).train()
    forwards = {block: compiled_forward(block) for block in compiled.h}
    put_in_place(forwards)
    idx = torch.randint(11, (3, 257))
    for model in (plain, compiled):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            _, loss = model(idx[:, :-1], idx[:, 1:])
        assert loss is not None
        loss.backward()
    within = 0.02 if precision is torch.bfloat16 else 1e-4
    for (name, p), q in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert (p.grad - q.grad).norm() < within * p.grad.norm(), name
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    take_away(forwards)
    torch.testing.assert_close(compiled.eval()(idx[:, :256])[0], plain.eval()(idx[:, :256])[0])


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


def test_a_temperature_is_for_training_alone() -> None:
    """The loss is that of logits divided by it; the logits themselves stay as they are, and so does evaluation."""
    model, idx = small(train_temperature=0.8), torch.randint(11, (3, 12))
    plain = small()
    logits, loss = model.train()(idx, idx)
    assert loss is not None
    assert torch.equal(logits, plain.train()(idx)[0])
    expected = -(logits / 0.8).log_softmax(-1).gather(-1, idx[..., None]).mean()
    torch.testing.assert_close(loss, expected)
    (_, evaluated), (_, alone) = model.eval()(idx, idx), plain.eval()(idx, idx)
    assert evaluated is not None
    assert alone is not None
    assert torch.equal(evaluated, alone)


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
        ({"attn_dropout": 1.0}, r"attn_dropout has to be in \[0, 1\), got 1.0"),
        ({"train_temperature": 0.0}, "train_temperature must be positive and finite, got 0.0"),
        ({"train_temperature": math.inf}, "train_temperature must be positive and finite, got inf"),
        ({"n_kv_head": 2}, "n_head has to be a multiple of n_kv_head, got n_head 3 and n_kv_head 2"),
        ({"n_kv_head": 0}, "n_kv_head has to be at least 1, got 0"),
        ({"position": "sine"}, "position has to be one of learned, rotary, got 'sine'"),
        ({"norm": "none"}, "norm has to be one of layernorm, rmsnorm, got 'none'"),
        ({"activation": "relu"}, "activation has to be one of gelu, gelu_tanh, relu2, swiglu, got 'relu'"),
        ({"n_embd": 9, "position": "rotary"}, "rotary positions turn pairs of channels, but a head has 3"),
    ],
)
def test_an_impossible_shape_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)

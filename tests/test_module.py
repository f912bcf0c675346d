"""The LightningModule's own parts: clipping, schedule, vocabulary."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from tests.reference import GPT_CONFIG, OPTIM, lightning_fit
from tinygpt_pl.data import TextDataModule
from tinygpt_pl.gpt import GPTConfig
from tinygpt_pl.module import TinyGPT, TokenMean
from tinygpt_pl.optim import OptimConfig
from tinygpt_pl.text.tokenizer import CharTokenizer


def with_gradients() -> tuple[TinyGPT, torch.Tensor]:
    torch.manual_seed(0)
    module = TinyGPT(GPT_CONFIG, OPTIM)
    module.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    for p in module.gpt.parameters():
        p.grad = torch.randn_like(p)
    return module, torch.cat([p.grad.flatten() for p in module.gpt.parameters() if p.grad is not None])


def gradient(module: TinyGPT) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.gpt.parameters() if p.grad is not None])


@pytest.mark.parametrize("limit", [1.0, 1e6, None, 0.0])
def test_clipping_shortens_the_gradient_and_keeps_its_norm_from_before(limit: float | None) -> None:
    module, before = with_gradients()
    module.configure_gradient_clipping(torch.optim.SGD(module.parameters()), limit)
    norm = before.square().sum().sqrt()
    torch.testing.assert_close(module.grad_norm, norm)
    expected = before / norm if limit == 1.0 else before
    torch.testing.assert_close(gradient(module), expected)


def test_clipping_by_value_is_refused() -> None:
    module, _ = with_gradients()
    with pytest.raises(ValueError, match="clipped by norm alone, got 'value'"):
        module.configure_gradient_clipping(torch.optim.SGD(module.parameters()), 1.0, "value")


def test_the_cosine_ends_at_max_steps_if_nothing_else_is_said(text_file: Path) -> None:
    module = TinyGPT(GPT_CONFIG, OptimConfig(max_lr=1e-2, min_lr=1e-3, warmup_iters=2))
    record = lightning_fit(text_file, module, max_steps=6, val_check_interval=6)
    assert module.lr_at(5) > module.lr_at(6) == module.lr_at(9) == 1e-3
    assert [rates[0] for rates in record.learning_rates] == [module.lr_at(it) for it in range(6)]
    assert all(a == b for a, b in record.learning_rates)


def test_a_mean_over_tokens_weighs_each_batch_by_its_size() -> None:
    """Guards against torchmetrics' MeanMetric, which forgets the weights once it is told not to look for NaN."""
    mean = TokenMean()
    mean.update(torch.tensor(2.0), 30)
    mean.update(torch.tensor(5.0), 10)
    assert mean.compute().item() == pytest.approx(2.75)
    mean.update(torch.tensor(float("nan")), 1)
    assert mean.compute().isnan(), "a loss that is not a number was left out"


def test_a_vocabulary_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size is 27, but the vocabulary has 2 tokens"):
        TinyGPT(GPT_CONFIG, OPTIM, CharTokenizer("ab"))


def test_a_model_for_data_has_their_vocabulary_and_context_length(text_file: Path) -> None:
    """Guards against a vocabulary that has to be given twice, and an IndexError where it was not."""
    data = TextDataModule(str(text_file), block_size=12)
    module = TinyGPT.for_data(data, GPTConfig(n_layer=1, n_head=2, n_embd=16), OPTIM)
    config = module.gpt.config
    assert (config.vocab_size, config.block_size, config.n_embd) == (data.tokenizer.vocab_size, 12, 16)
    assert (module.tokenizer, module.optim) == (data.tokenizer, OPTIM)
    _, loss = module(*next(iter(data.train_dataloader())))
    assert loss.isfinite()


def test_data_with_more_tokens_than_the_model_are_refused(text_file: Path) -> None:
    data = TextDataModule(str(text_file), block_size=8, batch_size=2, eval_iters=1)
    trainer = pl.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"vocab_size is 5, but the data have 27 tokens: make it by TinyGPT.for_data"):
        trainer.fit(TinyGPT(GPTConfig(vocab_size=5, block_size=8, n_layer=1, n_head=1, n_embd=8)), data)


def test_forward_is_that_of_the_network() -> None:
    module = TinyGPT(GPT_CONFIG, OPTIM).eval()
    idx = torch.randint(27, (2, 8))
    assert torch.equal(module(idx)[0], module.gpt(idx)[0])
    assert module(idx)[1] is None

"""A text and its windows, as a LightningDataModule."""

import inspect
import math
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.parsing import collect_init_args

from tinygpt_pl.text.corpus import default_cache_dir, download_path, load_corpus
from tinygpt_pl.text.tokenizer import SMALLEST, TOKENIZERS, Tokenizer
from tinygpt_pl.text.tokens import prepare
from tinygpt_pl.windows import CPU, FixedWindows, Ids, TrainingWindows, even_pass, full_pass, shares, window_starts

Coverage = Literal["sampled", "full"]
"""What an evaluation looks at: random windows, or every token of the validation split and as many of the other."""


class Place(NamedTuple):
    """Where a process stands in a run; by default, alone on a CPU before the first step."""

    device: torch.device = CPU
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1
    step: int = 0


class TextDataModule(pl.LightningDataModule):
    """A text, its vocabulary, its two contiguous splits, and windows of them.

    `setup` fills `tokenizer`, `splits`, `characters`, `corpus_name`, `corpus_place`, `corpus_note`, `corpus_sha256` and
    `tokens_per`; it runs once, at the latest with the first loader. Without a Trainer the loaders give what a run on a
    CPU reads.
    """

    def __init__(
        self,
        corpus: str = "tinyshakespeare",
        field: str = "text",
        tokenizer: str = "char",
        vocab_size: int = 4096,
        block_size: int = 256,
        batch_size: int = 64,
        eval_coverage: Coverage = "sampled",
        eval_iters: int = 200,
        val_fraction: float = 0.1,
        cache_dir: str | None = None,
        offline_corpus: str | None = "pydoc",
        eval_seed: int = 1337,
        seed: int = 1337,
        known: Tokenizer | None = None,
    ) -> None:
        """Check the settings; no file is touched before `setup`.

        Args:
            corpus: tinyshakespeare, pydoc, or a file, a folder or a pattern such as 'texts/**/*.txt', of UTF-8; .gz,
                .bz2, .xz and .jsonl are read as what they are.
            field: where a record of a .jsonl file has its text.
            tokenizer: char for a token for each character that occurs, byte for one for each byte, or bpe for
                byte-pair encoding, learnt from the training split.
            vocab_size: tokens of bpe; the other two have as many as it takes.
            block_size: tokens in a window.
            batch_size: windows per device and micro-batch.
            eval_coverage: sampled for random windows of both splits, the same at every evaluation; full for every token
                of the validation split once, and as many of the training split, evenly spaced.
            eval_iters: batches, each as large as that of an optimizer step, that a sampled evaluation averages in each
                split.
            val_fraction: share of the text, at its end, that is kept for validation; 1 lets test score all of a text.
            cache_dir: where downloads and token files are kept; $TINYGPT_CACHE or else data if left out.
            offline_corpus: what to train on where a download fails; null stops instead.
            eval_seed: of the windows of sampled evaluations, so that runs that differ in their seed compare.
            seed: of the windows of training.
            known: a tokenizer of this kind to use instead of making one of the text.

        Raises:
            ValueError: for a setting outside its range.
        """
        super().__init__()
        self.arguments: dict[str, Any] = {}
        """Arguments of the constructor, with those of a subclass."""
        frame = inspect.currentframe()
        assert frame  # CPython always has one
        for given in collect_init_args(frame, [], classes=(TextDataModule,)):
            self.arguments |= given
        for name, value in (("batch_size", batch_size), ("eval_iters", eval_iters)):
            if value < 1:
                raise ValueError(f"{name} has to be at least 1, got {value}")
        if not 0 <= eval_seed < 2**64:
            raise ValueError(f"eval_seed must be at least 0 and below 2**64, got {eval_seed}")
        if vocab_size < SMALLEST and known is None:
            raise ValueError(f"vocab_size has to be at least {SMALLEST}, got {vocab_size}")
        for name, word, words in (
            ("eval_coverage", eval_coverage, get_args(Coverage)),
            ("tokenizer", tokenizer, TOKENIZERS),
        ):
            if word not in words:
                raise ValueError(f"{name} must be one of {', '.join(words)}, got {word!r}")
        if not 0.0 < val_fraction <= 1.0:
            raise ValueError(f"val_fraction must be above 0 and at most 1, got {val_fraction}")
        self.corpus, self.field, self.offline_corpus = corpus, field, offline_corpus
        self.kind, self.vocab_size, self._known = tokenizer, vocab_size, known
        self.block_size, self.batch_size, self.eval_iters = block_size, batch_size, eval_iters
        self.eval_coverage, self.val_fraction = eval_coverage, val_fraction
        self.eval_seed, self.seed = eval_seed, seed
        self.cache_dir = Path(os.path.expanduser(cache_dir)) if cache_dir else default_cache_dir()
        self.splits: dict[str, Ids] = {}
        self.characters: dict[str, int] = {}
        self.tokens_per: dict[str, float] = {}
        self.offline_notice = ""
        """What must be said if another corpus is used for one that could not be downloaded."""

    def setup(self, stage: str | None = None) -> None:
        """Have the text encoded, which happens once, and cut in two: the last characters are for validation.

        The stage `test` looks at the validation split alone, and a window may be as short as that.

        Raises:
            ValueError: if the text is unfit, has something in it that the tokenizer does not know, or if one of its
                splits is too short for a window.
            OSError: if it cannot be had.
        """
        if self.splits:
            return
        # Nothing stands in for the text of a checkpoint: its vocabulary is another.
        offline = None if self._known else self.offline_corpus
        corpus = load_corpus(self.corpus, self.cache_dir, offline, self.field)
        tokens = prepare(corpus, self.cache_dir, self.val_fraction, self.kind, self.vocab_size, self._known)
        total = sum(len(split.ids) for split in tokens.splits.values())
        needed = {"val": 2} if stage == "test" else dict.fromkeys(tokens.splits, self.block_size + 1)
        for name, least in needed.items():
            if (found := len(tokens.splits[name].ids)) < least:
                raise ValueError(
                    f"the {name} split of {corpus.name!r} has {found} of its {total} tokens, but a window needs at "
                    f"least {least}: give a longer text, another val_fraction or a smaller block_size"
                )
        if corpus.name != self.corpus:
            asked = f"{self.corpus} could not be downloaded; save it as {download_path(self.corpus, self.cache_dir)}"
            self.offline_notice = f"NOTE: {asked} to train on it. {corpus.name} is used instead"
        self.corpus_name, self.corpus_place, self.corpus_note = corpus.name, corpus.place, corpus.note
        self.corpus_sha256, self.tokenizer = tokens.sha256, tokens.tokenizer
        self.splits = {name: split.ids for name, split in tokens.splits.items()}
        self.characters = {name: split.characters for name, split in tokens.splits.items()}
        val = tokens.splits["val"]
        # Of the validation split, in whose loss tokenizers are compared.
        self.tokens_per = {"character": len(val.ids) / val.characters, "byte": len(val.ids) / val.bytes}

    @property
    def _place(self) -> Place:
        trainer = self.trainer
        if trainer is None:
            return Place()
        device, accumulate = trainer.strategy.root_device, trainer.accumulate_grad_batches
        return Place(device, trainer.global_rank, trainer.world_size, accumulate, trainer.global_step)

    def _ids(self, split: str) -> Ids:
        self.setup()
        return self.splits[split]

    def windows_per_step(self, trainer: pl.Trainer) -> int:
        """Windows of an optimizer step, over all devices and micro-batches."""
        return self.batch_size * trainer.accumulate_grad_batches * trainer.world_size

    def eval_batches(self, trainer: pl.Trainer) -> float:
        """Batches, each as large as an optimizer step's, that an evaluation takes from each split."""
        if self.eval_coverage == "sampled":
            return self.eval_iters
        return (len(self.splits["val"]) - 1) / self.block_size / self.windows_per_step(trainer)

    def train_dataloader(self) -> TrainingWindows:
        """The windows of this device from the trainer's next optimizer step on."""
        place = self._place
        return TrainingWindows(
            self._ids("train"),
            block_size=self.block_size,
            batch_size=self.batch_size,
            seed=self.seed,
            device=place.device,
            accumulate=place.accumulate,
            first_step=place.step,
            rank=place.rank,
            world_size=place.world_size,
        )

    def val_dataloader(self) -> list[FixedWindows]:
        """The validation windows, then as many of the training split: the same at every evaluation."""
        if self.eval_coverage == "sampled":
            return [self._sample("val"), self._sample("train")]
        place, ids = self._place, self._ids("train")
        count = math.ceil((len(self.splits["val"]) - 1) / self.block_size)
        part = even_pass(len(ids), count, self.block_size, self.batch_size, place.rank, place.world_size)
        return [self.test_dataloader(), FixedWindows(ids, part, place.device)]

    def _sample(self, split: str) -> FixedWindows:
        place, ids = self._place, self._ids(split)
        # An evaluation batch is as large as an optimizer step's, so that accumulation changes no estimate.
        count = self.eval_iters * self.batch_size * place.accumulate * place.world_size
        starts = window_starts(self.eval_seed, f"eval_{split}", 0, count, len(ids) - self.block_size)
        batches = [(share, self.block_size) for share in shares(starts, self.batch_size, place.rank, place.world_size)]
        return FixedWindows(ids, batches, place.device)

    def test_dataloader(self) -> FixedWindows:
        """The whole validation split, every token after its first a target exactly once."""
        place, ids = self._place, self._ids("val")
        batches = full_pass(len(ids), self.block_size, self.batch_size, place.rank, place.world_size)
        return FixedWindows(ids, batches, place.device)

    def predict_dataloader(self) -> FixedWindows:
        """The windows of `test_dataloader`, in order; their last one may be shorter."""
        return self.test_dataloader()

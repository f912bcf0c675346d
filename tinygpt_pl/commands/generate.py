"""The command generate: text goes to the output as it is drawn, everything else to the error stream."""

import itertools
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import BinaryIO, Literal

import torch
from jsonargparse import set_parsing_settings
from torch import Tensor
from tqdm import tqdm

from tinygpt_pl.commands.classes import Classes
from tinygpt_pl.commands.ensemble import read_ensemble
from tinygpt_pl.commands.outcome import Work
from tinygpt_pl.commands.parser import Parser
from tinygpt_pl.generation.sampling import SamplingConfig, stream
from tinygpt_pl.generation.stream import Sample
from tinygpt_pl.runs.checkpoint import read_or_point
from tinygpt_pl.runs.folder import find_checkpoint
from tinygpt_pl.system.files import decode_utf8
from tinygpt_pl.system.machine import find_device
from tinygpt_pl.text.tokenizer import Tokenizer

LONGEST_PROMPT = 2**26  # bytes

ESCAPES = {r"\n": "\n", r"\r": "\r", r"\t": "\t", r"\\": "\\"}
"""What a stop string may be written with."""

ESCAPE = re.compile(r"\\[nrt\\]")

AS_TYPED = r"\n in --prompt is a backslash and a letter; most shells make a line's end of $'\n', or give --prompt_file"


def build_parser() -> Parser:
    """The options of the command."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser.of("generate")
    parser.add_checkpoint()
    parser.add_ensemble()
    parser.add_argument("--prompt", type=str, default="", help="text to go on from; it is part of the output")
    parser.add_argument("--prompt_file", type=str | None, help="a file to read it from; - for the standard input")
    parser.add_argument("--max_new_tokens", type=int, default=500, help="tokens to draw for each sample")
    parser.add_class_arguments(SamplingConfig)
    parser.add_argument("--num_samples", type=int, default=1, help="texts to draw, all at once")
    parser.add_argument("--seed", type=int | None, help="repeats the very text; another each time if left out")
    parser.add_argument(
        "--stop",
        type=str,
        action="append",
        default=[],
        help=r"end a text before these words; \n, \r, \t and \\ are a line's end and so on; repeatable",
    )
    parser.add_argument(
        "--exact_window",
        action="store_true",
        help="once the window is full, read it again whole for each token, instead of its newer half once in a while",
    )
    parser.add_argument(
        "--accelerator",
        type=Literal["auto", "cpu", "gpu", "cuda", "mps"],
        default="auto",
        help="where the network runs; auto takes a GPU if there is one",
    )
    return parser


def generate_text(args: Sequence[str], work: Work, classes: Classes) -> None:
    """Read the prompt and the model, and write what it draws."""
    config = build_parser().parse_args(args)
    for name, least in (("max_new_tokens", 0), ("num_samples", 1)):
        if not least <= config[name] < 2**31:
            raise ValueError(f"{name} has to be at least {least} and below 2**31, got {config[name]}")
    if "" in config.stop:
        raise ValueError("stop has to be some text, got ''")
    sampling = SamplingConfig(**{field.name: config[field.name] for field in fields(SamplingConfig)})
    prompt = prompt_of(config.prompt, config.prompt_file)
    checkpoint = read_or_point(find_checkpoint(config.ckpt_path, config.run_dir))
    gpt, tokenizer = classes.load_model(checkpoint)
    classes.check(checkpoint)
    gpt, name = read_ensemble(checkpoint, gpt, config.ensemble, classes)
    idx = prompt_ids(prompt, tokenizer).expand(config.num_samples, -1)  # (B, T)
    seed = secrets.randbits(32) if config.seed is None else config.seed
    device = find_device(config.accelerator)
    tokens = stream(gpt.to(device), idx, sampling, seed=seed, exact_window=config.exact_window)

    work.begin()
    print(f"{name}, iteration {checkpoint.iteration}; seed {seed}", file=sys.stderr)
    T, size = idx.size(1), gpt.config.block_size
    if T > size:
        print(f"NOTE: the network sees the last {size} of the prompt's {T} {tokenizer.unit}s", file=sys.stderr)
    if ESCAPE.search(config.prompt):
        print(f"NOTE: {AS_TYPED}", file=sys.stderr)
    stop = [ESCAPE.sub(lambda found: ESCAPES[found[0]], word) for word in config.stop]
    samples = [Sample(tokenizer.decode, stop) for _ in idx]
    start = time.perf_counter()
    total = write(samples, prompt, itertools.islice(tokens, config.max_new_tokens), config.max_new_tokens)
    seconds = time.perf_counter() - start
    if total:
        print(f"{total:,} {tokenizer.unit}s in {seconds:.1f}s, {total / seconds:,.0f} a second", file=sys.stderr)


def write(samples: Sequence[Sample], prompt: str, tokens: Iterator[Tensor], most: int) -> int:
    """Write each sample as it grows, one after another; gives the number of tokens drawn, `most` for each at most."""
    drawn, shown = 0, show(samples, prompt)
    next(shown)
    # On a terminal, the text itself is the progress.
    for token in tqdm(tokens, total=most, disable=sys.stdout.isatty() or not sys.stderr.isatty(), leave=False):
        drawn += len(samples)
        for sample, one in zip(samples, token.tolist(), strict=True):
            sample.add(one)
        next(shown, None)
        if all(sample.ended for sample in samples):
            break
    for sample in samples:
        sample.end()
    for _ in shown:
        pass
    return drawn


def show(samples: Sequence[Sample], prompt: str) -> Iterator[None]:
    """At each step, write what has become certain of the samples up to the first that has not ended."""
    for number, sample in enumerate(samples, 1):
        if len(samples) > 1:
            print(f"--- sample {number} of {len(samples)}", file=sys.stderr, flush=True)
        sys.stdout.write(prompt)
        while True:
            ended = sample.ended
            sys.stdout.write(sample.take())
            sys.stdout.flush()
            if ended:
                break
            yield
        sys.stdout.write("\n")
    sys.stdout.flush()


def prompt_ids(prompt: str, tokenizer: Tokenizer) -> Tensor:
    """Token ids (T,) of a prompt, or of the start of a text if it is empty.

    Raises:
        ValueError: for a character that is not in the vocabulary.
    """
    try:
        return torch.as_tensor(tokenizer.encode(prompt) if prompt else [tokenizer.start], dtype=torch.long)
    except ValueError as error:
        note = f" ({AS_TYPED})" if ESCAPE.search(prompt) else ""
        raise ValueError(f"the prompt cannot be read{note}: {error}") from None


def prompt_of(prompt: str, prompt_file: str | None) -> str:
    """The text to go on from.

    Raises:
        ValueError: if both are given, or the file is not UTF-8.
        OSError: if the file cannot be read.
    """
    if prompt_file is None:
        return prompt
    if prompt:
        raise ValueError("give --prompt or --prompt_file, not both")
    if prompt_file == "-":
        if sys.stdin is None:
            raise ValueError("there is no standard input to read the prompt from")
        return _read(sys.stdin.buffer, "the standard input")
    with Path(os.path.expanduser(prompt_file)).open("rb") as file:
        return _read(file, prompt_file)


def _read(file: BinaryIO, name: str) -> str:
    raw = file.read(LONGEST_PROMPT + 1)
    if len(raw) > LONGEST_PROMPT:  # a device without an end, for instance
        raise ValueError(f"{name} has more than {LONGEST_PROMPT} bytes, which is no prompt")
    return decode_utf8(raw, name).removeprefix("\N{BYTE ORDER MARK}")

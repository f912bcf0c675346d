"""Checkpoints as folders of Hugging Face transformers, and such folders as checkpoints; no code in either is run."""

import itertools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import safetensors.torch
import torch
import yaml
from torch import Tensor

from tinygpt_pl.exchange import gpt2, llama
from tinygpt_pl.gpt import GPTConfig
from tinygpt_pl.runs.checkpoint import FORMAT, Checkpoint, Content, DamagedCheckpoint, load_network
from tinygpt_pl.system.files import decode_utf8, making
from tinygpt_pl.system.terminal import readable, say
from tinygpt_pl.text.pairs import END_OF_TEXT
from tinygpt_pl.text.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
SHARDS = "model.safetensors.index.json"
"""Which file has which parameter, where they are in several."""

POINTER = b"version https://git-lfs"
"""What a file begins with that Git LFS has not fetched."""

ARCHITECTURES = (gpt2, llama)
"""What a network can be in transformers; each module has the same functions."""

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

UNUSED = ("normalizer", "dropout", "continuing_subword_prefix", "end_of_word_suffix")
"""Parts that a tokenizer.json can have but GPT-2's has not: with them a text may not come back as it was."""


def architecture_of(gpt: GPTConfig) -> ModuleType:
    """What holds a network in transformers.

    Raises:
        ValueError: if nothing does, with what each of them lacks.
    """
    misfits = {architecture: architecture.misfits(gpt) for architecture in ARCHITECTURES}
    for architecture, lacking in misfits.items():
        if not lacking:
            return architecture
    reasons = "; ".join(f"its {a.NAME} has no {', no '.join(lacking)}" for a, lacking in misfits.items())
    raise ValueError(f"transformers has no network like this one: {reasons}")


def export_folder(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint as a folder that transformers opens: network, tokenizer, and where they come from.

    Raises:
        DamagedCheckpoint: if the checkpoint is no sound network.
        ValueError: if transformers has none like it.
        OSError: if a file cannot be written.
    """
    gpt, tokenizer = load_network(checkpoint)
    held = checkpoint.content
    architecture = architecture_of(gpt.config)
    weights = architecture.exported(gpt.state_dict(), gpt.config)
    origin = {
        "format": "pt",
        "tinygpt_pl": version("tinygpt_pl"),
        "iteration": str(checkpoint.iteration),
        "val_loss": str(held["val_loss"]),
        "corpus": readable(held["corpus"]["name"]),
        "corpus_sha256": held["corpus"]["sha256"],
        "config": held["config"],
    }
    files = {
        WEIGHTS: safetensors.torch.save(weights, origin),
        CONFIG: _json(
            {
                **architecture.config_of(gpt.config),
                **dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.end_of_text),
                "dtype": "float32",
            }
        ),
        TOKENIZER: _tokenizer_json(tokenizer).encode(),
        # transformers' pipeline writes 256 tokens if nobody says how many, and fails at the end of the window.
        "generation_config.json": _json(
            {
                "max_new_tokens": min(256, max(gpt.config.block_size // 2, 1)),
                **dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.end_of_text),
            }
        ),
        "tokenizer_config.json": _json(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": gpt.config.block_size,
                "clean_up_tokenization_spaces": False,
                **({} if tokenizer.end_of_text is None else dict.fromkeys(("bos_token", "eos_token"), END_OF_TEXT)),
            }
        ),
    }
    with making(folder) as partial:
        for name, content in files.items():
            (partial / name).write_bytes(content)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


CHARACTERS = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
"""How the library tokenizers cuts a text into characters."""


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
"""How it turns a text into bytes, and back; each byte goes by a character that can be seen."""


def _tokenizer_json(tokenizer: Tokenizer) -> str:
    """A tokenizer.json; that of characters has no unknown token, so that one outside the vocabulary is an error."""
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer.json
    if isinstance(tokenizer, ByteTokenizer):
        pre_tokenizer, decoder = BYTES, BYTES
        model: dict[str, Any] = {"type": "BPE", "vocab": _byte_signs(), "merges": []}
    elif not isinstance(tokenizer, CharTokenizer):
        raise ValueError(f"transformers has no tokenizer of the kind {tokenizer.kind}")
    else:
        ids = {character: i for i, character in enumerate(tokenizer.characters)}
        pre_tokenizer, decoder = CHARACTERS, {"type": "Fuse"}
        model = {"type": "WordLevel", "vocab": ids, "unk_token": ""}
    parts: dict[str, Any] = {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor")),
        "added_tokens": [],
        "pre_tokenizer": pre_tokenizer,
        "decoder": decoder,
        "model": model,
    }
    return _json(parts).decode()


def _byte_signs() -> dict[str, int]:
    """The bytes by the character that each goes by in byte-level encodings: itself where it can be seen (GPT-2)."""
    others = itertools.count(256)
    seen = {*range(33, 127), *range(161, 256)} - {173}
    return {chr(byte if byte in seen else next(others)): byte for byte in range(256)}


def import_folder(folder: Path) -> Checkpoint:
    """Read a folder of transformers as a checkpoint of no iterations, to write with or to train further.

    Raises:
        ValueError: if something in it is missing, damaged, or not what the network of gpt.py can be.
        OSError: if a file cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    gpt, weights = _read_network(folder)
    rows = gpt.vocab_size
    tokenizer = _read_tokenizer(folder, rows)
    try:
        known = tokenizer.vocab_size
    except ValueError as error:  # of the library, which reads a tokenizer.json only now
        raise ValueError(f"{folder / TOKENIZER}: {error}") from None
    if rows < known:
        raise ValueError(f"{folder}: vocab_size is {rows} in {CONFIG}, but the tokenizer has {known} tokens")
    if rows > known and "wte.weight" in weights:  # some programs round the rows up to a multiple of 64
        say(f"NOTE: {folder}: vocab_size is {rows}, but the tokenizer has {known} tokens: the other rows are left out")
        gpt, weights["wte.weight"] = replace(gpt, vocab_size=known), weights["wte.weight"][:known].clone()
    settings = {name: value for name, value in asdict(gpt).items() if name != "vocab_size"}
    content = {
        "format": FORMAT,
        "pytorch-lightning_version": version("lightning"),  # which Lightning looks for
        "state_dict": {f"gpt.{name}": tensor for name, tensor in weights.items()},
        "hyper_parameters": {"gpt": asdict(gpt), "optim": {}, "tokenizer": asdict(tokenizer)},
        "config": yaml.safe_dump({"model": {"gpt": settings}, "trainer": {}}),
        "corpus": {"name": "", "sha256": ""},
        **{name: [] for name in ("optimizer_states", "lr_schedulers")},
        **{name: {} for name in ("loops", "callbacks", "events")},
        "global_step": 0,
        "epoch": 0,
        "windows_per_step": 0,
        "evaluated": -1,
        "val_loss": math.nan,
    }
    checkpoint = Checkpoint(folder, 0, cast(Content, content), gpt, tokenizer)
    try:
        load_network(checkpoint)
    except DamagedCheckpoint as error:
        raise ValueError(f"{folder}: {str(error).removeprefix('the checkpoint is damaged: ')}") from None
    return checkpoint


def _check_file(path: Path) -> None:
    """Refuse a link whose target is missing, a pipe, and a pointer of Git LFS.

    Raises:
        ValueError: with what it is, and what to do.
    """
    if not path.is_file():
        kind = "a link whose target is missing" if path.is_symlink() and not path.exists() else "not a regular file"
        raise ValueError(f"{path} is {kind}; copy the folder again, with files instead of links")
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ValueError(f"{path} is a pointer of Git LFS; fetch what it stands for: git lfs pull")


def _read_text(path: Path) -> str:
    """The text of a file, without a byte-order mark."""
    _check_file(path)
    return decode_utf8(path.read_bytes(), str(path)).removeprefix("\N{BYTE ORDER MARK}")


def _read_json(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        raise ValueError(f"{path.parent} has no {path.name}, so it was not written by transformers")
    text = _read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no settings")
    return content


def _read_network(folder: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """The network of a folder: its shape by its config.json, and its parameters by the names of gpt.py."""
    path = folder / CONFIG
    config = _read_json(path)
    found = config.get("model_type")
    architecture = next((a for a in ARCHITECTURES if found in a.MODEL_TYPES), None)
    if architecture is None:
        known = ", ".join(name for a in ARCHITECTURES for name in a.MODEL_TYPES)
        raise ValueError(f"{path}: model_type has to be one of {known}, got {found}")
    try:
        gpt = architecture.settings_of(config)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from None
    stored = _read_weights(folder)
    try:
        weights = architecture.imported(stored, gpt)
    except ValueError as error:
        raise ValueError(f"{folder / WEIGHTS}: {error}") from None
    for name, tensor in weights.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{folder / WEIGHTS}: {name} holds {tensor.dtype}")
    return gpt, {name: tensor.float() for name, tensor in weights.items()}


def _read_tokenizer(folder: Path, rows: int) -> Tokenizer:
    """The tokenizer of a folder, for a network with this many rows in its embedding."""
    path = folder / TOKENIZER
    if not path.exists() and (folder / "vocab.json").exists():
        return BPETokenizer(_join_bpe(folder))
    content = _read_json(path)
    try:
        model, decoder = content["model"], content["decoder"]["type"]
        ids = model["vocab"]
        kind = model.get("type", "BPE" if "merges" in model else None)  # the published GPT-2 names none
        if kind == "WordLevel" and content["pre_tokenizer"] == CHARACTERS:
            characters = "".join(sorted(ids, key=ids.__getitem__))
            if [ids[character] for character in characters] == list(range(len(ids))):
                return CharTokenizer(characters)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is no tokenizer: {error!r}") from None
    if (kind, decoder) != ("BPE", "ByteLevel"):
        raise ValueError(f"{path} has to be byte-level BPE, or of characters as `export` writes it, got {kind}")
    parts = {"normalizer": content.get("normalizer"), **model}
    for name in UNUSED:
        if parts.get(name):
            raise ValueError(f"{path}: {name} has to be left out, got {parts[name]!r}")
    if not _keeps_text(content.get("pre_tokenizer")):
        raise ValueError(
            f"{path}: pre_tokenizer must be ByteLevel, after Split or Digits, so that no character is lost"
        )
    # GPT2Tokenizer adds an end of text when it saves, for which a network of bytes has no row.
    if ids == _byte_signs() and not model.get("merges") and (rows == len(ids) or not content.get("added_tokens")):
        return ByteTokenizer()
    return BPETokenizer(_read_text(path))


def _keeps_text(pre_tokenizer: Any) -> bool:
    """Whether a part of a tokenizer.json turns any text into bytes without losing some of it on the way."""
    if not isinstance(pre_tokenizer, dict):
        return False
    *cutting, last = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    keeps = all(part.get("type") in ("Split", "Digits") and part.get("behavior") != "Removed" for part in cutting)
    return keeps and last.get("type") == "ByteLevel"


def _join_bpe(folder: Path) -> str:
    """The tokenizer.json of a vocab.json and a merges.txt, the two files of older folders."""
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    except ImportError:
        raise ValueError("a vocab.json needs a library: pip install tokenizers") from None
    if not (folder / "merges.txt").is_file():
        raise ValueError(f"{folder} has a vocab.json, but no merges.txt")
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    except Exception as error:  # the library's own, which has no class but this
        raise ValueError(f"{folder}: {error}") from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([END_OF_TEXT])
    return str(tokenizer.to_str())


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Parameters by their names in the file, or in several files."""
    names = [WEIGHTS]
    if not os.path.lexists(folder / WEIGHTS) and (folder / SHARDS).exists():
        names = _shards(folder / SHARDS)
    stored: dict[str, Tensor] = {}
    for path in (folder / name for name in names):
        if not os.path.lexists(path):
            raise _without_weights(path)
        _check_file(path)
        try:
            # The library opens names in UTF-8 alone.
            named = readable(str(path)) == str(path)
            stored |= safetensors.torch.load_file(path) if named else safetensors.torch.load(path.read_bytes())
        except OSError:
            raise
        except Exception as error:  # of the library, or of torch for a size that it lacks
            raise ValueError(f"{path} is damaged or no file of safetensors: {error}") from None
    return stored


def _shards(path: Path) -> list[str]:
    """The files that an index names, all of its own folder."""
    places = _read_json(path).get("weight_map")
    names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise ValueError(f"{path} has no weight_map of files beside it")
    return names


def _without_weights(path: Path) -> ValueError:
    """What to say of a file that is missing, and what to do."""
    others = sorted(file.name for file in path.parent.glob("*model*"))
    if not others:
        return ValueError(f"{path.parent} has no {path.name}: no weights")
    return ValueError(
        f"{path.parent} has no {path.name}: only {', '.join(others)}; save it again as safetensors, with "
        f"transformers' AutoModelForCausalLM.from_pretrained({str(path.parent)!r}).save_pretrained('FOLDER')"
    )

"""What transformers makes of our networks, and we of its: the same numbers, the same text, offline."""

import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import english
from tests.runs.test_checkpoint import smallest
from tests.small_runs import BEST, Fitted, Run, assert_same, load, scalars, small, table
from tinygpt_pl import TinyGPT
from tinygpt_pl.exchange.huggingface import WEIGHTS, export_folder, import_folder
from tinygpt_pl.generation.sampling import generate
from tinygpt_pl.generation.stream import Sample
from tinygpt_pl.runs.checkpoint import Checkpoint, Content, load_network, read_checkpoint, write_checkpoint
from tinygpt_pl.text.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own_and_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    """A real byte-level BPE tokenizer, trained here."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator([english()], trainer)
    return BPETokenizer(tokenizer.to_str())


def reference(vocab_size: int, **changes: Any) -> Any:
    """A GPT-2 of transformers with random weights."""
    torch.manual_seed(0)
    sizes = {"n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3, "bos_token_id": None, "eos_token_id": None}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=vocab_size, **sizes | changes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))  # biases that are not zero
    return model


def gpt2_folder(tokenizer: BPETokenizer, path: str = "gpt2", **changes: Any) -> Any:
    """A folder as transformers saves it, and the network in it."""
    model = reference(tokenizer.vocab_size, **changes)
    model.save_pretrained(path)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer.json))
    fast.save_pretrained(path)
    return model


LLAMA = {"position": "rotary", "norm": "rmsnorm", "activation": "swiglu"}
NETWORKS: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {},
    "GPT2LMHeadModel without biases": {"bias": False, "attn_dropout": 0.0, "activation": "gelu_tanh"},
    "LlamaForCausalLM": LLAMA,
    "LlamaForCausalLM without biases": {**LLAMA, "bias": False, "n_kv_head": 1},
    "Qwen3ForCausalLM": {**LLAMA, "bias": False, "qk_norm": True, "n_kv_head": 1},
}
"""transformers' class for each of what it can hold."""


def as_checkpoint(model: TinyGPT, facts: dict[str, Any]) -> Checkpoint:
    """What `read_checkpoint` gives of a model and of what else an export wants to know."""
    assert model.tokenizer is not None
    content = {"state_dict": model.state_dict(), **facts}
    return Checkpoint(Path("x.ckpt"), 0, cast(Content, content), model.gpt.config, model.tokenizer)


def exported(text: str = "the box jumps over the lazy dog\n", tokenizer: Tokenizer | None = None, **parts: Any) -> Any:
    """A checkpoint, of characters if nothing else is asked for, and the folder that it is exported to."""
    torch.manual_seed(0)
    tokenizer = tokenizer or CharTokenizer.from_text(text)
    gpt = {"vocab_size": tokenizer.vocab_size, "block_size": 16, "n_layer": 2, "n_head": 3, "n_embd": 24, **parts}
    model = TinyGPT(gpt, {}, tokenizer)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    facts = {"config": "seed: 1", "global_step": 7, "val_loss": 1.25, "corpus": {"name": "mine", "sha256": "abc"}}
    checkpoint = as_checkpoint(model, facts)
    shutil.rmtree("exported", ignore_errors=True)
    export_folder(checkpoint, Path("exported"))
    return checkpoint


@pytest.mark.parametrize("network", NETWORKS)
def test_transformers_computes_the_same_logits(network: str) -> None:
    gpt, tokenizer = load_network(exported(**NETWORKS[network]))
    theirs = transformers.AutoModelForCausalLM.from_pretrained("exported")
    assert type(theirs).__name__ == network.split()[0]
    idx = torch.randint(tokenizer.vocab_size, (3, 16))
    with torch.no_grad():
        torch.testing.assert_close(theirs(idx).logits, gpt(idx)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", ["GPT2LMHeadModel", "Qwen3ForCausalLM"])
def test_transformers_writes_the_same_greedy_text(network: str) -> None:
    gpt, tokenizer = load_network(exported(**NETWORKS[network]))
    idx = torch.from_numpy(tokenizer.encode("the ")).long()[None]
    ours = generate(gpt, idx, 12, temperature=0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained("exported")
    mask = torch.ones_like(idx)
    assert torch.equal(theirs.generate(idx, attention_mask=mask, max_new_tokens=12, do_sample=False), ours)
    writer = transformers.pipeline("text-generation", model="exported")
    (text,) = writer("the ", max_new_tokens=12, do_sample=False)
    assert text["generated_text"] == tokenizer.decode(ours[0])
    (text,) = writer("the ")  # which would go beyond the window, had the folder no word on that
    assert len(text["generated_text"]) == 4 + 8


@pytest.mark.parametrize("network", NETWORKS)
def test_an_exported_network_comes_back_with_the_same_logits(network: str) -> None:
    """And, where the target has all its parts, as the same network."""
    before, tokenizer = load_network(exported(**NETWORKS[network]))
    after, vocabulary = load_network(import_folder(Path("exported")))
    idx = torch.randint(tokenizer.vocab_size, (3, 16))
    with torch.no_grad():
        assert torch.equal(after(idx)[0], before(idx)[0])
    assert vocabulary == tokenizer
    assert after.config == before.config or network == "GPT2LMHeadModel without biases"


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"position": "rotary"}, "GPT-2 has no position rotary; its Llama or Qwen3 has no norm layernorm, no activ"),
        ({"n_kv_head": 1}, "GPT-2 has no n_kv_head 1; its Llama"),
        ({**LLAMA, "activation": "relu2"}, "no activation relu2; its Llama or Qwen3 has no activation relu2"),
        ({"bigrams": True}, "GPT-2 has no bigrams True; its Llama or Qwen3 has no position learned"),
        ({**LLAMA, "qk_norm": True}, "Llama or Qwen3 has no qk_norm together with bias"),
    ],
)
def test_a_network_that_no_architecture_holds_is_refused_with_the_reason(
    cli: Run, text_file: Path, parts: dict[str, Any], reason: str
) -> None:
    changes = {f"model__gpt__{name}": str(value).lower() for name, value in parts.items()}
    assert cli("fit", *small(text_file, **changes, trainer__max_steps=1))[0] == 0
    code, _, err = cli("export", "--output_dir=folder")
    assert code == 2
    assert reason in err
    assert len(err.splitlines()) <= 3
    assert not Path("folder").exists()


def rename_layer(weights: dict[str, Any]) -> None:
    weights["model.layers.7.mlp.down_proj.weight"] = weights.pop("model.layers.1.mlp.down_proj.weight")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda: spoil_json("config.json", rms_norm_eps=1e-6), "rms_norm_eps has to be 1e-05, got 1e-06"),
        (lambda: spoil_json("config.json", hidden_act="gelu"), "hidden_act has to be silu, got gelu"),
        (lambda: spoil_json("config.json", intermediate_size=5), "intermediate_size has to be 64, got 5"),
        (lambda: spoil_json("config.json", head_dim=5), "head_dim has to be 8, got 5"),
        (lambda: spoil_json("config.json", rope_parameters={"rope_theta": 5.0}), "rope_parameters has to be"),
        (lambda: spoil_json("config.json", hidden_size="wide"), "hidden_size has to be a whole number, got 'wide'"),
        (lambda: spoil_json("config.json", hidden_size=3 * 10**400), "has to be 10"),
        (lambda: spoil_json("config.json", attention_dropout=10**400), "too large"),
        (lambda: spoil_json("config.json", rope_scaling={"rope_type": "linear", "factor": 4}), "rope_scaling"),
        (lambda: spoil_json("config.json", use_sliding_window=True), "use_sliding_window have to be left out"),
        (lambda: spoil_json("config.json", layer_types=["sliding_attention"] * 2), "layer_types have to be full"),
        (
            lambda: (
                lambda folder: spoil_weights(
                    folder, lambda w: w.update({"model.layers.0.self_attn.k_proj.weight": torch.zeros(25, 24)})
                )
            ),
            "k_proj.weight has shape [25, 24], which does not fit",
        ),
        (
            lambda: (
                lambda folder: spoil_weights(
                    folder, lambda w: w.update({"h.0.attn.c_attn.weight": torch.zeros(72, 24)})
                )
            ),
            "h.0.attn.c_attn.weight is there by two names",
        ),
        (lambda: spoil_json("config.json", num_hidden_layers=10**9), "a network like it has 7,"),
        (lambda: lambda folder: spoil_weights(folder, rename_layer), "h.1.mlp.c_proj.weight has shape None in it"),
        (
            lambda: lambda folder: spoil_weights(folder, lambda w: w.update({"lm_head.weight": torch.zeros(2)})),
            "a head of its own",
        ),
    ],
)
def test_a_llama_that_is_no_network_of_ours_is_refused(cli: Run, spoil: Any, reason: str) -> None:
    exported(**NETWORKS["LlamaForCausalLM"])
    spoil()(Path("exported"))
    code, _, err = cli("import", "--input_dir=exported", "--output=x.ckpt")
    assert code == 2
    assert reason in err
    assert len(err.splitlines()) <= 3


def test_the_tokenizer_gives_back_the_whole_corpus(shakespeare_cache: Path) -> None:
    text = (shakespeare_cache / "tinyshakespeare.txt").read_text()
    exported(text)
    theirs = transformers.AutoTokenizer.from_pretrained("exported", model_max_length=10**9)
    ids = theirs(text)["input_ids"]
    assert ids == CharTokenizer.from_text(text).encode(text).tolist()
    assert theirs.decode(ids) == text


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
@settings(max_examples=25, deadline=None)
def test_the_tokenizer_gives_back_any_text_of_its_characters(text: str) -> None:
    checkpoint = exported(text)
    theirs = transformers.AutoTokenizer.from_pretrained("exported")
    _, tokenizer = load_network(checkpoint)
    assert theirs(text)["input_ids"] == tokenizer.encode(text).tolist()
    assert theirs.decode(tokenizer.encode(text).tolist()) == text


def test_the_tokenizer_refuses_what_it_does_not_know() -> None:
    exported()
    with pytest.raises(Exception, match="UNK"):
        transformers.AutoTokenizer.from_pretrained("exported")("é")


def test_the_weights_say_where_they_come_from() -> None:
    exported()
    with safetensors.safe_open("exported/model.safetensors", "pt") as file:
        origin = file.metadata()
    expected = {"iteration": "7", "val_loss": "1.25", "corpus": "mine", "corpus_sha256": "abc", "config": "seed: 1"}
    assert expected.items() <= origin.items()


def test_a_round_trip_is_the_identity_on_weights_and_vocabulary(cli: Run, text_file: Path) -> None:
    cli("fit", *small(text_file, model__gpt__n_layer=2))
    assert cli("export", "--output_dir=there")[0] == 0
    assert cli("import", "--input_dir=there", "--output=back.ckpt")[0] == 0
    before, after = load(BEST), load(Path("back.ckpt"))
    assert before["state_dict"].keys() == after["state_dict"].keys()
    assert all(torch.equal(before["state_dict"][name], after["state_dict"][name]) for name in before["state_dict"])
    for name in ("gpt", "tokenizer"):
        assert before["hyper_parameters"][name] == after["hyper_parameters"][name]
    assert cli("export", "--ckpt_path=back.ckpt", "--output_dir=again")[0] == 0
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert Path("there", name).read_bytes() == Path("again", name).read_bytes()


@pytest.mark.parametrize("parts", [{}, LLAMA], ids=["GPT-2", "Llama"])
@pytest.mark.parametrize(
    ("tokenizer", "saved_by"),
    [
        (ByteTokenizer(), "AutoTokenizer"),
        (ByteTokenizer(), "GPT2Tokenizer"),
        (CharTokenizer("\n bé日"), "AutoTokenizer"),
        (CharTokenizer("a"), "PreTrainedTokenizerFast"),
    ],
    ids=["bytes", "bytes of a GPT2Tokenizer", "characters", "one character"],
)
def test_what_transformers_saves_again_comes_back_as_it_was(
    tokenizer: Tokenizer, saved_by: str, parts: dict[str, Any]
) -> None:
    before, _ = load_network(exported(tokenizer=tokenizer, **parts))
    getattr(transformers, saved_by).from_pretrained("exported").save_pretrained("again")
    transformers.AutoModelForCausalLM.from_pretrained("exported").save_pretrained("again")
    after, vocabulary = load_network(import_folder(Path("again")))
    assert vocabulary == tokenizer
    assert after.config == before.config
    assert all(torch.equal(after.state_dict()[name], tensor) for name, tensor in before.state_dict().items())


def test_a_network_of_bytes_that_was_saved_again_is_trained_further(cli: Run, text_file: Path) -> None:
    exported(tokenizer=ByteTokenizer())
    transformers.AutoTokenizer.from_pretrained("exported").save_pretrained("again")
    transformers.AutoModelForCausalLM.from_pretrained("exported").save_pretrained("again")
    assert cli("import", "--input_dir=again", "--output=bytes.ckpt")[0] == 0
    options = [word for word in small(text_file) if "model.gpt" not in word]
    code, _, err = cli("fit", "--init_from=bytes.ckpt", *options)
    assert code == 0, err
    assert load(BEST)["hyper_parameters"]["tokenizer"] == asdict(ByteTokenizer())


@pytest.mark.parametrize("tied", ["stored once", "stored twice"])
def test_rows_without_a_token_are_left_out_and_said(cli: Run, bpe: BPETokenizer, tied: str) -> None:
    theirs = gpt2_folder(bpe)
    theirs.resize_token_embeddings(320)
    theirs.save_pretrained("gpt2")
    if tied == "stored twice":
        spoil_weights(Path("gpt2"), lambda w: w.update({"lm_head.weight": w["transformer.wte.weight"].clone()}))
    code, out, err = cli("import", "--input_dir=gpt2", "--output=gpt2.ckpt")
    assert code == 0, err
    assert out.splitlines()[0] == (
        "NOTE: gpt2: vocab_size is 320, but the tokenizer has 300 tokens: the other rows are left out"
    )
    gpt, tokenizer = load_network(read_checkpoint(Path("gpt2.ckpt")))
    assert gpt.config.vocab_size == tokenizer.vocab_size == 300
    idx = torch.randint(300, (1, 16))
    with torch.no_grad():
        torch.testing.assert_close(gpt(idx)[0], theirs(idx).logits[..., :300], rtol=1e-5, atol=1e-5)
    assert cli("generate", "--ckpt_path=gpt2.ckpt", "--max_new_tokens=5")[0] == 0


def test_a_folder_in_several_files_is_read(bpe: BPETokenizer) -> None:
    theirs = gpt2_folder(bpe)
    Path("gpt2/model.safetensors").unlink()
    theirs.save_pretrained("gpt2", max_shard_size="20KB")
    assert len([*Path("gpt2").glob("model-*.safetensors")]) > 1
    gpt, _ = load_network(import_folder(Path("gpt2")))
    idx = torch.randint(300, (1, 16))
    with torch.no_grad():
        torch.testing.assert_close(gpt(idx)[0], theirs(idx).logits, rtol=1e-5, atol=1e-5)


def test_a_folder_whose_name_is_not_utf8_is_read(bpe: BPETokenizer) -> None:
    """Its weights were called damaged."""
    gpt2_folder(bpe)
    gpt, _ = load_network(import_folder(Path("gpt2")))
    other, _ = load_network(import_folder(Path("gpt2").rename(os.fsdecode(b"caf\xe9"))))
    assert_same(other.state_dict(), gpt.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_read_as_float32(bpe: BPETokenizer, dtype: torch.dtype) -> None:
    theirs = gpt2_folder(bpe).to(dtype)
    theirs.save_pretrained("gpt2")
    gpt, _ = load_network(import_folder(Path("gpt2")))
    assert torch.equal(gpt.wte.weight, theirs.transformer.wte.weight.float())


def test_special_tokens_that_were_added_are_tokens(bpe: BPETokenizer) -> None:
    theirs = gpt2_folder(bpe)
    fast = transformers.AutoTokenizer.from_pretrained("gpt2")
    fast.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|model|>"]})
    fast.save_pretrained("gpt2")
    theirs.resize_token_embeddings(302)
    theirs.save_pretrained("gpt2")
    gpt, tokenizer = load_network(import_folder(Path("gpt2")))
    assert (gpt.config.vocab_size, tokenizer.encode("<|user|>").tolist()) == (302, [300])


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "gelu_pytorch_tanh"])
def test_an_imported_gpt2_computes_the_same_logits(bpe: BPETokenizer, activation: str) -> None:
    theirs = gpt2_folder(bpe, activation_function=activation)
    gpt, tokenizer = load_network(import_folder(Path("gpt2")))
    text = "the lazy dog, naïve 日本"
    idx = torch.from_numpy(tokenizer.encode(text)).long()[None, :16]
    assert idx.tolist()[0] == transformers.AutoTokenizer.from_pretrained("gpt2")(text)["input_ids"][:16]
    with torch.no_grad():
        torch.testing.assert_close(gpt(idx)[0], theirs(idx).logits, rtol=1e-5, atol=1e-5)


def test_an_imported_gpt2_goes_back_as_it_came(bpe: BPETokenizer) -> None:
    theirs = gpt2_folder(bpe)
    checkpoint = import_folder(Path("gpt2"))
    export_folder(checkpoint, Path("back"))
    again = transformers.AutoModelForCausalLM.from_pretrained("back")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    fast = transformers.AutoTokenizer.from_pretrained("back")
    assert fast.decode(fast("the lazy dog")["input_ids"]) == "the lazy dog"
    assert fast.eos_token_id == again.config.eos_token_id == bpe.start


def test_the_settings_of_the_published_gpt2_are_understood(bpe: BPETokenizer) -> None:
    """Its config.json names few of them, its weights have no prefix and carry masks: as in the folder of 2019."""
    Path("gpt2").mkdir()
    config = {
        **{"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "vocab_size": 50257},
        **{"n_positions": 1024, "n_ctx": 1024, "n_head": 2, "n_embd": 8, "n_layer": 1, "resid_pdrop": 0.1},
    }
    Path("gpt2/config.json").write_text(json.dumps(config))
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config.from_pretrained("gpt2")).eval()
    weights = {name.removeprefix("transformer."): p for name, p in theirs.state_dict().items() if "lm_head" not in name}
    masks = {"h.0.attn.bias": torch.ones(1, 1, 1024, 1024).tril(), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    masks["h.0.attn.bias"] = masks["h.0.attn.bias"].bool()  # as in some
    safetensors.torch.save_file({**weights, **masks}, "gpt2/model.safetensors")
    parts = json.loads(bpe.json)
    ids = parts["model"]["vocab"]
    ids |= {f"filler{i}": i for i in range(len(ids), 50256)} | {"<|endoftext|>": 50256}
    ids.pop("<|endoftext|>")
    first = min(set(range(50256)) - set(ids.values()))
    ids |= {"filler": first, "<|endoftext|>": 50256}
    parts["added_tokens"][0]["id"] = 50256
    del parts["model"]["type"]
    parts["model"]["merges"] = [" ".join(pair) for pair in parts["model"]["merges"]]
    Path("gpt2/tokenizer.json").write_text(json.dumps(parts))
    checkpoint = import_folder(Path("gpt2"))
    gpt, tokenizer = load_network(checkpoint)
    assert (gpt.config.vocab_size, gpt.config.block_size, gpt.config.activation) == (50257, 1024, "gelu_tanh")
    assert tokenizer.start == 50256
    idx = torch.randint(50257, (1, 1024))
    with torch.no_grad():
        torch.testing.assert_close(gpt(idx)[0], theirs(idx).logits, rtol=1e-5, atol=1e-5)


def test_the_two_files_of_an_older_tokenizer_are_read(bpe: BPETokenizer) -> None:
    gpt2_folder(bpe)
    model = json.loads(Path("gpt2/tokenizer.json").read_text())["model"]
    Path("gpt2/tokenizer.json").unlink()
    Path("gpt2/vocab.json").write_text(json.dumps(model["vocab"]))
    Path("gpt2/merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    _, tokenizer = load_network(import_folder(Path("gpt2")))
    text = "the lazy dog<|endoftext|>naïve 日本\n"
    assert tokenizer.encode(text).tolist() == bpe.encode(text).tolist()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(st.integers(0, 255), max_size=30))
def test_a_stream_of_any_tokens_is_what_they_decode_to(bpe: BPETokenizer, ids: list[int]) -> None:
    """Bytes that make no character too, which a network that has learnt little writes."""
    sample = Sample(bpe.decode)
    shown = []
    for token in ids:
        sample.add(token)
        shown.append(sample.take())
    sample.end()
    assert "".join(shown) + sample.take() == bpe.decode(ids)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_byte_level_bpe_gives_back_any_text_also_in_a_stream(bpe: BPETokenizer, text: str) -> None:
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    sample = Sample(bpe.decode)
    shown = []
    for token in ids.tolist():
        sample.add(token)
        shown.append(sample.take())
        assert "\N{REPLACEMENT CHARACTER}" not in shown[-1] or "\N{REPLACEMENT CHARACTER}" in text
    sample.end()
    assert "".join(shown) + sample.take() == text


def test_settings_of_a_tokenizer_file_that_would_cut_a_corpus_are_undone(bpe: BPETokenizer) -> None:
    library = tokenizers.Tokenizer.from_str(bpe.json)
    library.enable_truncation(5)
    library.enable_padding(length=50)
    assert BPETokenizer(library.to_str()).encode(english()).tolist() == bpe.encode(english()).tolist()


def test_from_a_gpt2_to_a_fine_tuned_network_that_speaks(
    cli: Run, text_file: Path, tmp_path: Path, bpe: BPETokenizer
) -> None:
    """The whole way, on own text, with the tokenizer that came along; stopped and resumed on the way."""
    theirs = gpt2_folder(bpe)
    code, out, err = cli("import", "--input_dir=gpt2", "--output=gpt2.ckpt")
    assert code == 0, err
    assert f"{sum(p.numel() for p in theirs.parameters()):,} parameters" in out
    assert cli("generate", "--ckpt_path=gpt2.ckpt", "--prompt=naïve 日本", "--max_new_tokens=40")[0] == 0

    sized = [word for word in small(text_file, model__optim__max_lr=3e-3) if "model.gpt" not in word]
    code, out, err = cli("fit", "--init_from=gpt2.ckpt", *sized, "--trainer.max_steps=8")
    assert code == 0, err
    assert "a new run with the weights of gpt2.ckpt" in out
    rows = table(out)
    assert [row[0] for row in rows] == ["0", "4", "8"]
    checkpoint = load(BEST)
    stored, given = (json.loads(text) for text in (checkpoint["hyper_parameters"]["tokenizer"]["json"], bpe.json))
    assert stored["model"] == given["model"]
    assert checkpoint["hyper_parameters"]["gpt"]["activation"] == "gelu_tanh"

    # It starts from those weights, not from fresh ones: the first row is the score of the imported network.
    code, scored, err = cli("validate", "--ckpt_path=gpt2.ckpt", *sized)
    assert code == 0, err
    assert table(scored)[0][:3] == rows[0][:3]
    assert float(rows[-1][2]) < float(rows[0][2]), "it learnt nothing"
    assert "bits per token | perplexity" in cli("test")[1]
    curve = scalars(BEST.parent.parent)
    per_char = [value for _, value in curve["eval/val_bits_per_char"]]
    per_token = [value / math.log(2) for _, value in curve["eval/val_loss"]]
    assert all(0.1 * b < a < 0.9 * b for a, b in zip(per_char, per_token, strict=True)), "a token is several characters"

    # It goes on with its own tokenizer, and its settings repeat the run; they never take the place of a checkpoint.
    settings = "--config=lightning_logs/version_0/config.yaml"
    assert cli("test", settings)[1] == cli("test")[1]
    code, out, err = cli("fit", "--ckpt_path=last", settings, "--trainer.max_steps=12")
    assert code == 0, err
    assert table(out)[-1][0] == "12"
    assert "of the true next token" in out
    code, out, err = cli("fit", settings, "--trainer.max_steps=8")
    assert code == 0, err
    assert table(out)[0][:3] == rows[0][:3]
    code, text, err = cli("generate", "--prompt=the ", "--max_new_tokens=30", "--seed=1")
    assert code == 0, err
    assert text.startswith("the ")
    assert cli("export", "--output_dir=tuned")[0] == 0
    assert transformers.pipeline("text-generation", model="tuned")("the ", max_new_tokens=3)
    assert TinyGPT.load_from_checkpoint(tmp_path / "gpt2.ckpt").gpt.config.vocab_size == bpe.vocab_size


def test_a_network_of_ones_own_goes_to_another_text(cli: Run, fitted: Fitted, tmp_path: Path) -> None:
    """A new run with its weights alone: other settings, another text, and iteration 0."""
    fitted()
    (tmp_path / "other.txt").write_text("the lazy dog sleeps " * 40)
    code, out, err = cli(
        "fit", "--init_from=best", "--data.corpus=other.txt", "--trainer.max_steps=3", "--eval_interval=3"
    )
    assert code == 0, err
    assert f"a new run with the weights of {BEST}" in out
    assert [row[0] for row in table(out)] == ["0", "3"]
    made = load(Path("lightning_logs/version_1/checkpoints/last.ckpt"))
    assert made["hyper_parameters"]["tokenizer"] == load(BEST)["hyper_parameters"]["tokenizer"]
    code, out, err = cli("fit", "--ckpt_path=last", "--trainer.max_steps=6")
    assert code == 0, err
    assert [row[0] for row in table(out)] == ["6"]


def test_own_text_with_a_character_that_is_unknown_is_refused(cli: Run, tmp_path: Path) -> None:
    exported()
    cli("import", "--input_dir=exported", "--output=mine.ckpt")
    (tmp_path / "other.txt").write_text("the box Über " * 50)
    code, _, err = cli("fit", "--ckpt_path=mine.ckpt", "--data.corpus=other.txt")
    assert code == 2
    assert "corpus 'other.txt' has 1 characters that are not among the 21 known ones: 'Ü'" in err
    assert len(err.splitlines()) <= 3


def spoil_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def spoil_json(name: str, **changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return spoil


def raise_ids(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    ids = content["model"]["vocab"]
    content["model"]["vocab"] = ids | {token: i + 1000 for token, i in ids.items() if i >= len(ids) - 3}
    (folder / "tokenizer.json").write_text(json.dumps(content))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (lambda folder: folder.rename("elsewhere"), "gpt2 is no folder"),
    "no settings": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is no JSON"),
    "deep JSON": (lambda folder: (folder / "config.json").write_text("[" * 10**5), "config.json is no JSON"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json holds no settings"),
    "another model": (
        spoil_json("config.json", model_type="bert"),
        "model_type .* one of gpt2, llama, qwen3, got bert",
    ),
    "untied": (spoil_json("config.json", tie_word_embeddings=False), "tie_word_embeddings has to be True"),
    "narrow": (spoil_json("config.json", n_inner=5), "n_inner has to be four times n_embd, got 5"),
    "epsilon": (spoil_json("config.json", layer_norm_epsilon=1e-6), "layer_norm_epsilon has to be 1e-05, got 1e-06"),
    "scaling": (spoil_json("config.json", scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
    "activation": (spoil_json("config.json", activation_function="relu"), "activation_function .* got 'relu'"),
    "heads": (spoil_json("config.json", n_head=5), "n_embd has to be a multiple of n_head"),
    "nulls": (spoil_json("config.json", resid_pdrop=None), "resid_pdrop has to be a number, got None"),
    "a list of words": (spoil_json("config.json", activation_function=["gelu"]), "activation_function .* got"),
    "three dimensions": (
        lambda folder: spoil_weights(
            folder, lambda w: w.update({"transformer.h.0.attn.c_attn.weight": torch.zeros(24, 72, 1)})
        ),
        r"h.0.attn.c_attn.weight has shape \[24, 72, 1\] in it",
    ),
    "twice": (
        lambda folder: spoil_weights(folder, lambda w: w.update({"ln_f.bias": torch.zeros(24)})),
        "ln_f.bias is there twice",
    ),
    "no vocabulary": (spoil_json("tokenizer.json", model={"type": "WordLevel", "vocab": 3}), "byte-level BPE|no token"),
    "UTF-16": (
        lambda folder: (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text(), "utf-16"),
        "not UTF-8",
    ),
    "a normalizer": (
        spoil_json("tokenizer.json", normalizer={"type": "Replace", "pattern": {"String": "h"}, "content": "hh"}),
        "normalizer has to be left out",
    ),
    "whole numbers": (
        lambda folder: spoil_weights(
            folder, lambda w: w.update({"transformer.ln_f.bias": torch.zeros(24, dtype=torch.int64)})
        ),
        "ln_f.bias holds torch.int64",
    ),
    "gaps": (raise_ids, "the ids of its tokens are not 0, 1 and so on"),
    "words": (spoil_json("config.json", n_layer="two"), "n_layer has to be a whole number, got 'two'"),
    "dropout": (spoil_json("config.json", resid_pdrop="0.1"), "resid_pdrop has to be a number, got '0.1'"),
    "billions": (
        spoil_json("config.json", n_layer=10**9),
        "a network like it has 7,224,000,007,632 parameters",
    ),
    "fewer": (spoil_json("config.json", n_layer=1), "h.1.attn.c_attn.bias has shape"),
    "vocabulary": (
        spoil_json("config.json", vocab_size=299),
        "vocab_size is 299 in config.json, but the tokenizer has",
    ),
    "positions": (spoil_json("config.json", n_positions=17), r"wpe.weight has shape \[16, 24\] in it and \[17, 24\]"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
    "a pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "only pytorch_model.bin; save it again as safetensors, .*'gpt2'.*save_pretrained",
    ),
    "a link to nowhere": (
        lambda folder: os.symlink("no", (folder / WEIGHTS).rename(folder / "other").with_name(WEIGHTS)),
        "model.safetensors is a link whose target is missing",
    ),
    "a pipe": (
        lambda folder: os.mkfifo((folder / "config.json").rename(folder / "other").with_name("config.json")),
        "config.json is not a regular file",
    ),
    "a pointer": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "model.safetensors is a pointer of Git LFS; .* git lfs pull",
    ),
    "a pointer for settings": (
        lambda folder: (folder / "config.json").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "config.json is a pointer of Git LFS",
    ),
    "a shard that is missing": (
        lambda folder: (
            (folder / "model.safetensors")
            .rename(folder / "model.safetensors.index.json")
            .write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
        ),
        "has no model-1.safetensors: only model.safetensors.index.json",
    ),
    "a shard elsewhere": (
        lambda folder: (
            (folder / "model.safetensors")
            .rename(folder / "model.safetensors.index.json")
            .write_text(json.dumps({"weight_map": {"a": "../elsewhere"}}))
        ),
        "index.json has no weight_map of files beside it",
    ),
    "an index of nothing": (
        lambda folder: (folder / "model.safetensors").rename(folder / "model.safetensors.index.json").write_text("{}"),
        "index.json has no weight_map",
    ),
    "cut off": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9]),
        "damaged or no file of safetensors",
    ),
    "a header of 2**62 bytes": (
        lambda folder: (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}"),
        "damaged or no file of safetensors",
    ),
    "no number": (
        lambda folder: spoil_weights(folder, lambda w: w["transformer.ln_f.bias"].fill_(torch.nan)),
        "holds something that is no number",
    ),
    "missing": (
        lambda folder: spoil_weights(folder, lambda w: w.pop("transformer.ln_f.bias")),
        "ln_f.bias has shape None in it",
    ),
    "surplus": (
        lambda folder: spoil_weights(folder, lambda w: w.update(extra=torch.zeros(1))),
        r"extra has shape \[1\] in it and None",
    ),
    "a head": (
        lambda folder: spoil_weights(folder, lambda w: w.update({"lm_head.weight": torch.zeros(3, 24)})),
        "a head of its own",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "no words": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "is no tokenizer"),
    "unigram": (spoil_json("tokenizer.json", model={"type": "Unigram", "vocab": []}), "byte-level BPE"),
    "broken BPE": (spoil_json("tokenizer.json", model={"type": "BPE", "vocab": 3, "merges": 1}), "no tokenizer.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_fault_17_a_folder_that_cannot_be_used_costs_three_lines_and_exit_code_2(
    cli: Run, bpe: BPETokenizer, damage: str
) -> None:
    gpt2_folder(bpe)
    spoil, named = DAMAGE[damage]
    spoil(Path("gpt2"))
    code, out, err = cli("import", "--input_dir=gpt2", "--output=gpt2.ckpt")
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) <= 3
    assert re.search(named, err), err
    assert "gpt2" in err.splitlines()[0].removeprefix("error: model_type"), "it names no file"
    assert not Path("gpt2.ckpt").exists()


def test_byte_order_marks_are_left_out(cli: Run, bpe: BPETokenizer) -> None:
    """Notepad writes them."""
    gpt2_folder(bpe)
    for name in ("config.json", "tokenizer.json"):
        path = Path("gpt2") / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    code, _, err = cli("import", "--input_dir=gpt2", "--output=gpt2.ckpt")
    assert code == 0, err


def test_a_place_that_cannot_be_written_to_is_a_wrong_setting(cli: Run, bpe: BPETokenizer) -> None:
    """And the message names that place, no file in between."""
    gpt2_folder(bpe)
    Path("file").touch()
    assert cli("import", "--input_dir=gpt2", "--output=gpt2.ckpt")[0] == 0
    for command in (
        ("import", "--input_dir=gpt2", "--output=file/new.ckpt"),
        ("import", "--input_dir=gpt2", f"--output={'x' * 300}.ckpt"),
        ("export", "--ckpt_path=gpt2.ckpt", "--output_dir=file/new"),
        ("export", "--ckpt_path=gpt2.ckpt", f"--output_dir={'x' * 300}"),
    ):
        code, _, err = cli(*command)
        assert code == 2, command
        assert "partial" not in err
        assert re.search("/file|xxx", err)


def test_a_folder_that_cannot_be_written_leaves_nothing(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    exported()
    cli("import", "--input_dir=exported", "--output=x.ckpt")
    before = sorted(path.name for path in Path().iterdir())
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limit[1]))
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        commands = ("export", "--ckpt_path=x.ckpt", "--output_dir=y"), ("import", "--input_dir=exported", "--output=z")
        ends = [cli(*command) for command in commands]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, previous)
    for code, _, err in ends:
        assert code == 1, "a full disk is no wrong setting"
        assert "File too large" in err
    assert sorted(path.name for path in Path().iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "signum"), [("export", signal.SIGTERM), ("import", signal.SIGINT)])
def test_a_signal_in_the_middle_of_writing_leaves_nothing(tmp_path: Path, signum: signal.Signals, verb: str) -> None:
    tokenizer = CharTokenizer.from_text("abc")
    gpt = {"vocab_size": 3, "block_size": 16, "n_layer": 6, "n_head": 8, "n_embd": 768}  # 170 MB
    parts = {"gpt": gpt, "optim": {}, "tokenizer": asdict(tokenizer)}
    weights = TinyGPT(gpt, {}, tokenizer).state_dict()
    write_checkpoint(smallest(state_dict=weights, hyper_parameters=parts), Path("large.ckpt"))
    options = "--ckpt_path=large.ckpt --output_dir=made"
    if verb == "import":
        export_folder(read_checkpoint(Path("large.ckpt")), Path("large"))
        options = "--input_dir=large --output=made"
    before = sorted(tmp_path.iterdir())
    command = [sys.executable, "-m", "tinygpt_pl", verb, *options.split()]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        unfinished: list[Path] = []
        while not any(path.exists() and path.stat().st_size for path in unfinished):
            unfinished = [*Path().glob("made.*.partial"), *Path().glob(".*.partial/model.safetensors")]
            assert process.poll() is None, "it ended before it was stopped"
            time.sleep(0.001)  # leaves the CPU to it
        process.send_signal(signum)
    assert process.returncode == 128 + signum
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_written_over(cli: Run, bpe: BPETokenizer) -> None:
    gpt2_folder(bpe)
    Path("gpt2.ckpt").write_text("mine")
    code, _, err = cli("import", "--input_dir=gpt2", "--output=gpt2.ckpt")
    assert code == 2
    assert "gpt2.ckpt is there already; give another --output" in err
    assert Path("gpt2.ckpt").read_text() == "mine"
    write_checkpoint(import_folder(Path("gpt2")).content, Path("new.ckpt"))
    assert read_checkpoint(Path("new.ckpt")).iteration == 0
    code, _, err = cli("export", "--ckpt_path=new.ckpt", "--output_dir=gpt2")
    assert code == 2
    assert "gpt2 is there already, and not an empty folder" in err


def test_export_and_import_start_without_lightning_and_transformers(tmp_path: Path) -> None:
    exported()
    code = (
        "import sys\nfrom tinygpt_pl.commands.main import main\n"
        "assert main(['import', '--input_dir=exported', '--output=x.ckpt']) == 0\n"
        "assert main(['export', '--ckpt_path=x.ckpt', '--output_dir=y']) == 0\n"
        "print({'lightning', 'transformers', 'tokenizers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "set()"


def test_weights_that_were_trained_elsewhere_may_start_anywhere(cli: Run, fitted: Fitted, text_file: Path) -> None:
    """The check at iteration 0 is for fresh weights: what others have learnt can be far from ln V, on either side."""
    fitted()
    cli("export", "--output_dir=there")
    checkpoint = import_folder(Path("there")).content
    checkpoint["state_dict"]["gpt.wte.weight"] *= 15
    write_checkpoint(checkpoint, Path("bold.ckpt"))
    code, out, err = cli("fit", "--ckpt_path=bold.ckpt", *small(text_file), "--trainer.max_steps=4")
    assert code == 0, err
    assert float(table(out)[0][2]) > math.log(27) + 2


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        None,
        {"type": "Whitespace"},
        {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, {"type": "ByteLevel"}]},
    ],
)
def test_a_tokenizer_that_loses_characters_is_refused(bpe: BPETokenizer, pre_tokenizer: Any) -> None:
    gpt2_folder(bpe)
    path = Path("gpt2/tokenizer.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pre_tokenizer": pre_tokenizer}))
    with pytest.raises(ValueError, match="pre_tokenizer must be ByteLevel"):
        import_folder(Path("gpt2"))

"""The command generate: what is text and what is not, when a text ends, and what it refuses."""

import io
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.small_runs import BEST, Fitted, Run, load, shell
from tinygpt_pl import generate
from tinygpt_pl.generation.stream import Sample
from tinygpt_pl.runs.checkpoint import load_network, read_checkpoint, write_checkpoint
from tinygpt_pl.text.tokenizer import CharTokenizer

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

BLOCK = 8  # of `small`


@pytest.fixture
def trained(fitted: Fitted, in_a_folder_of_its_own: None) -> None:
    """A finished run of `small` in this folder."""
    fitted()


def expected(prompt: str, tokens: int, **options: Any) -> str:
    """The text by the function of that name."""
    gpt, tokenizer = load_network(read_checkpoint(BEST))
    idx = torch.from_numpy(tokenizer.encode(prompt)).long()[None]
    return tokenizer.decode(generate(gpt, idx, tokens, **options)[0])


@pytest.mark.usefixtures("trained")
def test_the_output_is_the_text_and_nothing_else(cli: Run) -> None:
    code, out, err = cli(
        "generate", "--prompt=the ", "--max_new_tokens=30", "--seed=5", "--temperature=1.2", "--top_k=9"
    )
    assert code == 0
    assert out == expected("the ", 30, temperature=1.2, top_k=9, seed=5) + "\n"
    assert re.fullmatch(r"\S*best.ckpt, iteration \d+; seed 5\n30 characters in \d\.\ds, [\d,]+ a second\n", err)


@pytest.mark.usefixtures("trained")
def test_without_a_seed_the_text_differs_and_can_be_repeated(cli: Run) -> None:
    first, second = (cli("generate", "--prompt=the ", "--max_new_tokens=40", "--temperature=2") for _ in range(2))
    assert first[1] != second[1]
    match = re.search(r"seed (\d+)", first[2])
    assert match
    again = cli("generate", "--prompt=the ", "--max_new_tokens=40", "--temperature=2", f"--seed={match[1]}")
    assert again[1] == first[1]


@pytest.mark.usefixtures("trained")
def test_greedy_is_always_the_same_and_passes_the_window(cli: Run) -> None:
    options = ("generate", "--prompt=the ", "--max_new_tokens=40", "--temperature=0")
    assert cli(*options)[1] == cli(*options)[1] == expected("the ", 40, temperature=0) + "\n"
    exact = cli(*options, "--exact_window")[1]
    assert exact == expected("the ", 40, temperature=0, exact_window=True) + "\n"


@pytest.mark.usefixtures("trained")
def test_a_prompt_from_a_file_and_from_the_standard_input(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("prompt.txt").write_text("the box ")
    options = ("generate", "--max_new_tokens=9", "--seed=1")
    wanted = cli(*options, "--prompt=the box ")[1]
    assert cli(*options, "--prompt_file=prompt.txt")[1] == wanted
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the box ")))
    assert cli(*options, "--prompt_file=-")[1] == wanted
    Path("marked.txt").write_text("\ufeffthe box ")
    assert cli(*options, "--prompt_file=marked.txt")[1] == wanted


@pytest.mark.usefixtures("trained")
def test_an_empty_prompt_and_one_longer_than_the_window(cli: Run) -> None:
    code, out, _ = cli("generate", "--max_new_tokens=12", "--seed=3")
    assert code == 0
    assert out == expected(" ", 12, seed=3)[1:] + "\n", (
        "this vocabulary has no line's end, so its first character starts"
    )
    long = "the quick brown fox " * 3
    code, out, err = cli("generate", f"--prompt={long}", "--max_new_tokens=12", "--seed=3")
    assert code == 0
    assert out == expected(long, 12, seed=3) + "\n"
    assert f"NOTE: the network sees the last {BLOCK} of the prompt's 60 characters" in err


@pytest.mark.usefixtures("trained")
def test_no_tokens_give_the_prompt(cli: Run) -> None:
    assert cli("generate", "--prompt=the ", "--max_new_tokens=0")[:2] == (0, "the \n")


@pytest.mark.usefixtures("trained")
def test_samples_are_drawn_together_and_written_one_after_another(cli: Run) -> None:
    options = ("generate", "--prompt=the ", "--max_new_tokens=20", "--seed=2", "--temperature=1.5")
    code, out, err = cli(*options, "--num_samples=3")
    assert code == 0
    texts = out.splitlines()
    assert len(set(texts)) == 3
    assert all(text.startswith("the ") and len(text) == 24 for text in texts)
    assert texts[0] + "\n" == cli(*options)[1], "the first sample depends on the others"
    assert re.findall(r"--- sample (\d) of 3", err) == ["1", "2", "3"]


@pytest.mark.usefixtures("trained")
def test_a_stop_string_ends_each_sample_and_is_not_part_of_it(cli: Run) -> None:
    options = ("generate", "--prompt=the ", "--max_new_tokens=60", "--seed=2", "--num_samples=4")
    whole = cli(*options)[1].splitlines()
    code, out, _ = cli(*options, "--stop= ", "--stop=zzzz")
    assert code == 0
    assert out.splitlines() == [text[:4] + text[4:].split(" ")[0] for text in whole], "the prompt's own blank counts"


@pytest.mark.usefixtures("trained")
def test_a_stop_string_may_have_escapes_and_a_prompt_is_taken_as_typed(cli: Run) -> None:
    content = load(BEST)
    vocabulary = content["hyper_parameters"]["tokenizer"]
    vocabulary["characters"] = vocabulary["characters"].replace(" ", "\n")
    write_checkpoint(content, Path("lines.ckpt"))
    options = ("generate", "--ckpt_path=lines.ckpt", "--prompt=the", "--max_new_tokens=200", "--seed=2")
    whole = cli(*options)[1]
    for stop in (r"--stop=\n", "--stop=\n"):
        code, out, err = cli(*options, stop)
        assert (code, out) == (0, whole[: whole.index("\n") + 1])
        assert "NOTE" not in err
    code, _, err = cli("generate", r"--prompt=the\nbox")
    assert code == 2
    assert r"\n in --prompt is a backslash and a letter; most shells make a line's end of $'\n'" in err
    assert len(err.splitlines()) <= 3


@pytest.mark.parametrize("option", ["--prompt", "--stop", "--prompt_file", "--ckpt_path"])
def test_a_value_that_begins_with_a_dash_is_joined(cli: Run, option: str) -> None:
    code, _, err = cli("generate", option, "-the end")
    assert (code, "expected one argument" in err) == (2, False), "a word with a blank is no option"
    code, _, err = cli("generate", option, "-the")
    assert code == 2
    assert f"a value that begins with - is joined by =: {option}=-the." in err


def sample(*pieces: str, stop: tuple[str, ...] = ()) -> tuple[list[str], Sample]:
    """What is shown after each piece of a text, and at its end."""
    tokenizer = CharTokenizer.from_text("".join((*pieces, *stop)))
    text, shown = Sample(tokenizer.decode, stop), []
    for piece in pieces:
        for token in tokenizer.encode(piece).tolist():
            text.add(token)
        shown.append(text.take())
    text.end()
    return [*shown, text.take()], text


def test_what_may_be_the_beginning_of_a_stop_string_is_held_back() -> None:
    assert sample("one <", "/", "b>", stop=("</s>",))[0] == ["one ", "", "</b>", ""]
    assert sample("one <", "/", "s>", " two", stop=("</s>",))[0] == ["one ", "", "", "", ""]
    assert sample("aab", stop=("ab", "b"))[0] == ["a", ""]
    assert sample("one <", stop=("</s>",))[0] == ["one ", "<"], "the end of a text lost what was held back"


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_what_is_shown_is_the_text_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    shown, grown = sample(*text, stop=tuple(stop))
    ends = [(text.find(word) + len(word), text.find(word)) for word in stop if word in text]
    # the string that is complete first ends the text; of several at the same token, the one that begins first
    end = min(ends, default=(0, len(text)))[1]
    assert "".join(shown) == grown.text == text[:end]


@pytest.mark.usefixtures("trained")
def test_text_streams_as_it_is_drawn_and_lightning_stays_out() -> None:
    code = (
        "import sys\nfrom tinygpt_pl.commands.main import main\n"
        "code = main(['generate', '--max_new_tokens=100000', '--prompt=the '])\n"
        "print('lightning' in sys.modules, file=sys.stderr)"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout
        assert process.stderr
        start = process.stdout.read(50)
        assert start.startswith("the ")
        assert process.poll() is None, "the text came at the end, not as it was drawn"
        process.stdout.close()  # as `head` does
        assert process.stderr.read().splitlines()[-1] == "False"
        assert process.wait(60) == 0


@pytest.mark.usefixtures("trained")
def test_an_interrupt_ends_a_text_with_130() -> None:
    command = [sys.executable, "-m", "tinygpt_pl", "generate", "--max_new_tokens=10000000", "--prompt=the "]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.read(20).startswith("the ")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--max_new_tokens=-1"], r"max_new_tokens has to be at least 0 and below 2\*\*31, got -1"),
        (["--num_samples=0"], r"num_samples has to be at least 1 and below 2\*\*31, got 0"),
        (["--num_samples=100000000000"], "num_samples has to be .* below"),
        (["--temperature=-1"], "temperature has to be at least 0 and finite, got -1"),
        (["--temperature=.nan"], "temperature has to be at least 0 and finite, got nan"),
        (["--temperature=nan"], "temperature"),
        (["--top_k=0"], "top_k has to be at least 1, got 0"),
        (["--top_k=2.5"], "top_k"),
        (["--top_p=1.1"], "top_p has to lie between 0 and 1, got 1.1"),
        (["--min_p=2"], "min_p has to lie between 0 and 1, got 2"),
        (["--seed=-1"], "seed has to be at least 0"),
        (["--stop="], "stop has to be some text"),
        (["--temprature=1"], "did you mean --temperature"),
        (["--prompt=naïve"], r"(?s)'ï' at position 2 is not among the 27 known ones.*abcdefghijklmnopqrstuvwxyz"),
        (["--prompt=a", "--prompt_file=x"], "not both"),
        (["--prompt_file=nowhere.txt"], "nowhere.txt"),
        (["--prompt_file=latin"], "latin is not UTF-8: byte 0xef at offset 2"),
        (["--prompt_file=."], "directory"),
        (["--ckpt_path=nowhere.ckpt"], "no checkpoint 'nowhere.ckpt'"),
        (["--ckpt_path=latin"], "latin is damaged or no checkpoint"),
        (["--accelerator=abacus"], "accelerator"),
        *(
            []
            if torch.accelerator.is_available()
            else [([f"--accelerator={name}"], f"accelerator {name} cannot be used") for name in ("gpu", "cuda", "mps")]
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("trained")
def test_fault_26_a_mistake_costs_three_lines_and_exit_code_2(cli: Run, options: list[str], named: str) -> None:
    Path("latin").write_bytes(b"na\xefve")
    code, out, err = cli("generate", *options)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) <= 3
    assert re.search(named, err), err


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    "options", [["--top_k=1000"], ["--top_p=0"], ["--top_p=1"], ["--min_p=1"], ["--temperature=1e-9"]]
)
def test_fault_26_what_looks_odd_but_has_a_meaning(cli: Run, options: list[str]) -> None:
    code, out, _ = cli("generate", "--prompt=the ", "--max_new_tokens=30", "--seed=4", *options)
    assert code == 0
    everything = options[0] in ("--top_k=1000", "--top_p=1")
    assert out == expected("the ", 30, **({"seed": 4} if everything else {"temperature": 0})) + "\n"


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    ("section", "name", "value", "named"),
    [
        ("gpt", "n_layer", 10**9, "a network like it has .* parameters"),
        ("gpt", "n_layer", "1", "no network with its vocabulary"),
        ("gpt", "n_head", 3, "n_embd has to be a multiple of n_head"),
        ("gpt", "surplus", 1, "no network with its vocabulary"),
        ("gpt", "vocab_size", 28, "no network with its vocabulary"),
        ("gpt", "n_embd", 10**7, "a network like it has .* parameters"),
        ("gpt", "activation", "os.system", "activation has to be one of"),
        ("gpt", "block_size", 9, r"wpe.weight has shape \[8, 16\] in it and \[9, 16\]"),
        ("tokenizer", "characters", 5, "a text without repeats"),
        ("tokenizer", "characters", [*"abcdefghijklmnopqrstuvwxyz "], "a text without repeats"),
        ("tokenizer", "characters", 27 * "a", "a text without repeats"),
        ("tokenizer", "characters", "abc", "no network with its vocabulary"),
        ("tokenizer", "json", "{}", "no network with its vocabulary"),
    ],
)
def test_fault_26_a_checkpoint_that_was_tampered_with(
    cli: Run, section: str, name: str, value: Any, named: str
) -> None:
    checkpoint = load(BEST)
    checkpoint["hyper_parameters"][section][name] = value
    write_checkpoint(checkpoint, Path("tampered.ckpt"))
    code, out, err = cli("generate", "--ckpt_path=tampered.ckpt")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) <= 3
    assert re.search(named, err), err


@pytest.mark.usefixtures("trained")
def test_a_dropout_that_is_a_whole_number_is_no_damage(cli: Run) -> None:
    checkpoint = load(BEST)
    checkpoint["hyper_parameters"]["gpt"]["dropout"] = 0
    write_checkpoint(checkpoint, Path("zero.ckpt"))
    assert cli("generate", "--ckpt_path=zero.ckpt", "--max_new_tokens=3")[0] == 0


@pytest.mark.usefixtures("trained")
def test_a_closed_input_and_too_little_memory(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = cli("generate", "--num_samples=2000000000")
    assert (code, out) == (1, "")
    assert "error: out of memory; ask for less, or raise the limit" in err
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = cli("generate", "--prompt_file=-")
    assert code == 2
    assert "there is no standard input" in err


@pytest.mark.usefixtures("trained")
def test_weights_too_large_to_compute_with_are_told(cli: Run) -> None:
    checkpoint = load(BEST)
    checkpoint["state_dict"]["gpt.ln_f.weight"][:] = 3e38
    write_checkpoint(checkpoint, Path("huge.ckpt"))
    for temperature in (0, 1):
        code, _, err = cli("generate", "--ckpt_path=huge.ckpt", f"--temperature={temperature}")
        assert code == 2
        assert "the network's logits are no numbers" in err


@pytest.mark.usefixtures("trained")
def test_streams_that_are_closed_full_or_poor() -> None:
    command = f"{sys.executable} -m tinygpt_pl generate --max_new_tokens=20 --seed=1 --prompt='the '"
    pipe = subprocess.PIPE
    started = {
        words: subprocess.Popen(words, shell=True, stdout=pipe, stderr=pipe, text=True)
        for words in (
            f"{command} >&-",
            f"PYTHONIOENCODING=ascii {command} 2>&-",
            f"{command} >/dev/full",
        )
    }
    for (words, process), code, out in zip(started.items(), (0, 0, 1), ("", "the ", ""), strict=True):
        shown, err = process.communicate(timeout=60)
        assert process.returncode == code, (words, err)
        assert shown.startswith(out), words
        assert bool(shown) == bool(out), words
        assert "Traceback" not in err, words


@pytest.mark.usefixtures("trained")
def test_a_prompt_without_an_end_is_refused(cli: Run) -> None:
    for words in (["--prompt=the "], ["--stop=the "]):
        code, out, err = cli("generate", *words, "--prompt_file=/dev/zero")
        assert (code, out) == (2, "")
        assert len(err.splitlines()) <= 3


@pytest.mark.usefixtures("trained")
def test_weights_that_are_no_numbers_are_refused(cli: Run) -> None:
    checkpoint = load(BEST)
    checkpoint["state_dict"]["gpt.wpe.weight"][0, 0] = torch.nan
    write_checkpoint(checkpoint, Path("spoiled.ckpt"))
    code, _, err = cli("generate", "--ckpt_path=spoiled.ckpt")
    assert code == 2
    assert "wpe.weight holds something that is no number" in err


def test_a_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = shell("generate", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: no best checkpoint: there is no run in \S+; fit makes one\n", done.stderr)

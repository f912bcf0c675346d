"""Text and ids."""

import os
import random
import shutil
import signal
import sys
import threading
import time
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from tests.reference import english
from tinygpt_pl.system import terminal
from tinygpt_pl.text.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer, tokenizer_from

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
"""Any text that has bytes; halves of surrogate pairs have none."""

BPE = BPETokenizer.from_texts([english(), "Straße, 中文, 🦜"], 290)


@given(st.text(min_size=1))
def test_fault_22_decode_undoes_encode(text: str) -> None:
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert set(ids.tolist()) == set(range(tokenizer.vocab_size))


@given(st.text(min_size=1), st.text())
def test_characters_have_their_places_in_any_vocabulary(text: str, others: str) -> None:
    """A vocabulary of at most 256 has a faster way for ASCII, which its ids need not fit."""
    for more in (others, "".join(map(chr, range(0x4E00, 0x4E00 + 300)))):
        characters = "".join(dict.fromkeys(more + text))
        ids = CharTokenizer(characters).encode(text)
        assert ids.tolist() == [characters.index(character) for character in text]


@given(TEXT)
def test_bytes_and_pairs_of_them_know_every_text(text: str) -> None:
    for tokenizer in (ByteTokenizer(), BPE):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.vocab_size for i in ids.tolist())
    assert ByteTokenizer().encode(text).tolist() == list(text.encode())


def test_the_end_of_a_text_is_a_token_also_where_a_text_spells_it() -> None:
    assert BPE.end_of_text == 0
    assert BPE.encode("a<|endoftext|>b").tolist() == [*BPE.encode("a"), 0, *BPE.encode("b")]
    assert BPE.decode(BPE.encode("a<|endoftext|>b")) == "a<|endoftext|>b"


def test_pairs_are_learnt_from_the_text_and_no_more_than_there_are() -> None:
    assert BPE.vocab_size == 290
    assert len(BPE.encode(english())) < 0.6 * len(english())
    poor = BPETokenizer.from_texts(["abababab"], 1000)
    assert poor.vocab_size < 270, "a pair that occurs once is no token"


WORD = "".join(random.Random(1).choices("etaoinshrdlu", k=300_000))
"""Without a blank, which takes the library many seconds."""


def test_ctrl_c_is_heard_while_pairs_are_learnt() -> None:
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        BPETokenizer.from_texts([WORD], 1000)
    assert time.monotonic() - start < 3


def test_learning_pairs_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[float] = []

    class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
        def update(self, n: float = 1) -> None:
            super().update(n)
            counts.append(self.n)

    monkeypatch.setattr(terminal, "tqdm", Bar)
    assert BPETokenizer.from_texts([WORD[:2000]], 300).vocab_size == 300
    assert sorted(counts) == counts
    assert len(counts) > 40


def test_a_library_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(ValueError, match="byte pairs could not be learnt"):
        BPETokenizer.from_texts([WORD], 300)


def test_several_texts_at_once_are_each_encoded_as_if_alone() -> None:
    texts = ["pack my box", "", "with five dozen"]
    assert [ids.tolist() for ids in BPE.encode_all(texts)] == [BPE.encode(text).tolist() for text in texts]


@pytest.mark.parametrize("tokenizer", [CharTokenizer("abc"), ByteTokenizer(), BPE])
def test_a_mapping_brings_a_tokenizer_back(tokenizer: Tokenizer) -> None:
    assert tokenizer_from(asdict(tokenizer)) == tokenizer


def test_vocabulary_is_the_sorted_set_of_characters() -> None:
    tokenizer = CharTokenizer.from_text("banana\n")
    assert tokenizer.characters == "\nabn"
    assert tokenizer.encode("nab").tolist() == [3, 1, 2]


@pytest.mark.parametrize("unknown", ["x", "é", "\ud800", "𝄞"])
def test_an_unknown_character_is_named_with_its_position(unknown: str) -> None:
    with pytest.raises(ValueError, match=r"at position 2 is not among the 2 known ones"):
        CharTokenizer.from_text("ab").encode("ab" + unknown)


@pytest.mark.parametrize(
    ("tokenizer", "message"), [(ByteTokenizer(), "at position 1 is half of a surrogate"), (BPE, "cannot be turned")]
)
def test_half_of_a_surrogate_pair_has_no_bytes(tokenizer: Tokenizer, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer.encode("a\ud800")


def test_bytes_that_are_no_text_become_a_replacement_character() -> None:
    assert ByteTokenizer().decode([0x61, 0xFF, 0x62]) == "a\N{REPLACEMENT CHARACTER}b"

"""Characters and ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt_pl.tokenizer import CharTokenizer


@given(st.text(min_size=1))
def test_fault_22_decode_undoes_encode(text: str) -> None:
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert set(ids.tolist()) == set(range(tokenizer.vocab_size))


def test_vocabulary_is_the_sorted_set_of_characters() -> None:
    tokenizer = CharTokenizer.from_text("banana\n")
    assert tokenizer.characters == "\nabn"
    assert tokenizer.encode("nab").tolist() == [3, 1, 2]


@pytest.mark.parametrize("unknown", ["x", "é", "\ud800", "𝄞"])
def test_an_unknown_character_is_named_with_its_position(unknown: str) -> None:
    with pytest.raises(ValueError, match=r"at position 2 is not among the 2 known ones"):
        CharTokenizer.from_text("ab").encode("ab" + unknown)

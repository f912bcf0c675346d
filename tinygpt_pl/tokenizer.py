"""Text to token ids and back."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class CharTokenizer:
    """One token per character; a token's id is the character's place in the vocabulary."""

    characters: str
    """The vocabulary, sorted and without repeats."""

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        """Take every character that occurs in the text."""
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.characters)

    @cached_property
    def _ids(self) -> npt.NDArray[np.int32]:
        """The id of every code point, -1 for those outside the vocabulary."""
        ids = np.full(0x110000, -1, dtype=np.int32)
        ids[_code_points(self.characters)] = np.arange(self.vocab_size)
        return ids

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Ids of the characters of a text.

        Raises:
            ValueError: for a character that is not in the vocabulary, with its position.
        """
        ids = self._ids[_code_points(text)]
        unknown = np.flatnonzero(ids < 0)
        if unknown.size:
            at = int(unknown[0])
            raise ValueError(f"character {text[at]!r} at position {at} is not among the {self.vocab_size} known ones")
        return ids

    def decode(self, ids: npt.ArrayLike) -> str:
        """Text of a sequence of ids."""
        return "".join(self.characters[i] for i in np.asarray(ids).tolist())


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    # surrogatepass: a lone surrogate is an unknown character to be named, not a failure inside the codec
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)

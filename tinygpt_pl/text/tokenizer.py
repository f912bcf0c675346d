"""Text to token ids and back."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from tinygpt_pl.text.pairs import END_OF_TEXT, learn_pairs

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

SMALLEST = 257
"""Tokens that byte-pair encoding needs at least: one for each byte, and that one."""


@dataclass(frozen=True)
class CharTokenizer:
    """One token per character; a token's id is the character's place in the vocabulary."""

    characters: str
    """The vocabulary, sorted and without repeats."""

    kind: Literal["char"] = "char"

    unit = "character"
    """What a token is."""

    end_of_text = None
    """There is no token for it."""

    def __post_init__(self) -> None:
        if not isinstance(self.characters, str) or len(set(self.characters)) < len(self.characters):
            raise ValueError("a vocabulary of characters has to be a text without repeats")

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        """Take every character that occurs in the text."""
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.characters)

    @property
    def start(self) -> int:
        """The id that stands before a text of which nothing is known: a line's end, if there is one."""
        return max(self.characters.find("\n"), 0)

    @cached_property
    def _ids(self) -> npt.NDArray[np.int32]:
        """The id of every code point, -1 for those outside the vocabulary."""
        ids = np.full(0x110000, -1, dtype=np.int32)
        ids[_code_points(self.characters)] = np.arange(self.vocab_size)
        return ids

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Ids of the characters of a text.

        Raises:
            ValueError: for a character that is not in the vocabulary, with its position, and the vocabulary.
        """
        if text.isascii() and self.vocab_size <= 256:  # translating bytes is several times as fast as indexing an array
            ids, raw = self._ids[:256], text.encode()
            if not raw.translate(None, bytes(np.flatnonzero(ids >= 0).tolist())):
                return np.frombuffer(raw.translate(ids.astype(np.uint8).tobytes()), np.uint8).astype(np.int32)
        ids = self._ids[_code_points(text)]
        unknown = np.flatnonzero(ids < 0)
        if unknown.size:
            at = int(unknown[0])
            raise ValueError(
                f"character {text[at]!r} at position {at} is not among the {self.vocab_size} known ones:\n"
                f"{self.characters!r}"
            )
        return ids

    def decode(self, ids: npt.ArrayLike) -> str:
        """Text of a sequence of ids."""
        return "".join(self.characters[i] for i in np.asarray(ids).tolist())


@dataclass(frozen=True)
class ByteTokenizer:
    """One token per byte of UTF-8, which knows every text; a token's id is the byte's value."""

    encoding: str = "utf-8"
    """What the bytes are; nothing else is known here."""

    kind: Literal["byte"] = "byte"

    unit = "byte"
    """What a token is."""

    end_of_text = None
    """There is no token for it."""

    vocab_size = 256
    """Number of tokens."""

    start = ord("\n")
    """The id that stands before a text of which nothing is known: a line's end."""

    def __post_init__(self) -> None:
        if self.encoding != "utf-8":
            raise ValueError(f"bytes have to be of utf-8, got {self.encoding!r}")

    def encode(self, text: str) -> npt.NDArray[np.uint8]:
        """Ids of the bytes of a text.

        Raises:
            ValueError: for half of a surrogate pair, which has no bytes.
        """
        try:
            return np.frombuffer(bytearray(text.encode()), dtype=np.uint8)  # which torch may write to
        except UnicodeEncodeError as error:
            raise ValueError(f"{text[error.start]!r} at position {error.start} is half of a surrogate pair") from None

    def decode(self, ids: npt.ArrayLike) -> str:
        """Text of a sequence of ids; bytes that make no character become U+FFFD."""
        return bytes(np.asarray(ids, dtype=np.uint8)).decode(errors="replace")


@dataclass(frozen=True)
class BPETokenizer:
    """Byte-level byte-pair encoding (GPT-2), which knows every text; the library `tokenizers` does the work."""

    json: str
    """The content of its tokenizer.json, the library's own format."""

    kind: Literal["bpe"] = "bpe"

    unit = "token"
    """What a token is."""

    @classmethod
    def from_texts(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Join the pairs of bytes that occur most, until there are `vocab_size` tokens or no pair occurs twice.

        The first token is GPT-2's for the end of a text.

        Raises:
            ValueError: if the library is missing.
        """
        if find_spec("tokenizers") is None:
            raise ValueError("byte-pair encoding needs a library: pip install tokenizers")
        return cls(learn_pairs(texts, vocab_size))

    @cached_property
    def _library(self) -> "Library":
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ValueError("its tokenizer needs a library: pip install tokenizers") from None
        try:
            library = Tokenizer.from_str(self.json)
        except Exception as error:  # the library's own, which has no class but this
            raise ValueError(f"this is no tokenizer.json: {error}") from None
        if sorted(library.get_vocab().values()) != list(range(library.get_vocab_size())):
            raise ValueError("the ids of its tokens are not 0, 1 and so on")
        library.no_truncation()  # both may be settings of the file
        library.no_padding()
        return library

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return int(self._library.get_vocab_size())

    @property
    def end_of_text(self) -> int | None:
        """The id that stands between two texts, if there is one."""
        end: int | None = self._library.token_to_id(END_OF_TEXT)
        return end

    @property
    def start(self) -> int:
        """The id that stands before a text of which nothing is known: the end of another, else a line's end."""
        if self.end_of_text is not None:
            return self.end_of_text
        return int(next(iter(self.encode("\n")), 0))

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Ids of the tokens of a text.

        Raises:
            ValueError: for half of a surrogate pair, or where the library fails.
        """
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Ids of the tokens of several texts, on all processors.

        Raises:
            ValueError: as `encode` does.
        """
        try:
            encodings = self._library.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # the library's own, or of a str that has half of a surrogate pair
            raise ValueError(f"{texts[0][:40]!r} cannot be turned into tokens: {error}") from None
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def decode(self, ids: npt.ArrayLike) -> str:
        """Text of a sequence of ids; bytes that make no character become U+FFFD."""
        return str(self._library.decode(np.asarray(ids).tolist(), skip_special_tokens=False))


Tokenizer = CharTokenizer | ByteTokenizer | BPETokenizer

TOKENIZERS: dict[str, type[Tokenizer]] = {"char": CharTokenizer, "byte": ByteTokenizer, "bpe": BPETokenizer}
"""Tokenizer classes by kind, the name used in settings and checkpoints.

A tokenizer that you add is a dataclass of plain data with the attributes and methods of BPETokenizer. Token files are
cached by kind: if you change how it encodes, change its kind.
"""


def tokenizer_from(settings: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `dataclasses.asdict` turned into a mapping.

    Raises:
        TypeError: if it is not such a mapping.
    """
    older = {"characters": "char", "encoding": "byte", "json": "bpe"}  # older checkpoints store no kind
    kind = settings.get("kind") or next((kind for name, kind in older.items() if name in settings), None)
    if not isinstance(kind, str) or kind not in TOKENIZERS:
        raise TypeError(f"not the settings of a tokenizer: {[*settings]}")
    return TOKENIZERS[kind](**settings)


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    # surrogatepass: a lone surrogate is an unknown character to be named, not a failure inside the codec
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)

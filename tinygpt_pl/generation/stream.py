"""Text out of tokens as they are drawn: whole characters alone, and nothing that may begin a stop string."""

from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What the first bytes of a character decode to while the others are missing."""


class Sample:
    """A text that grows by one token at a time, until a stop string ends it."""

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        """Begin with nothing.

        Args:
            decode: turns token ids into text.
            stop: strings that end it, and are left out.
        """
        self.decode, self.stop = decode, stop
        self.text, self.ended, self._shown = "", False, 0
        self._pending: list[int] = []

    def add(self, token: int) -> None:
        """Take a token, unless the text has ended."""
        if self.ended:
            return
        self._pending.append(token)
        piece = self.decode(self._pending)
        if not piece.endswith(UNFINISHED):
            self._append(piece)

    def _append(self, piece: str) -> None:
        before = len(self.text)
        self.text += piece
        self._pending.clear()
        found = [self.text.find(word, max(0, before - len(word) + 1)) for word in self.stop]
        if any(at >= 0 for at in found):
            self.text, self.ended = self.text[: min(at for at in found if at >= 0)], True

    def end(self) -> None:
        """Take no more tokens."""
        if not self.ended:
            self._append(self.decode(self._pending))
            self.ended = True

    def take(self) -> str:
        """What has become certain since the last call: not what may be the beginning of a stop string."""
        held = 0
        if not self.ended:
            starts = (word[:n] for word in self.stop for n in range(1, len(word)))
            held = max((len(start) for start in starts if self.text.endswith(start)), default=0)
        since, self._shown = self._shown, max(self._shown, len(self.text) - held)
        return self.text[since : self._shown]

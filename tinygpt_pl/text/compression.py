"""Compressed files, read as what is in them."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import Any, BinaryIO

BLOCK = 2**16  # bytes of a file that are read at a time


class Members(io.RawIOBase):
    """The content of a .bz2 or .xz file, one member after the other.

    Python's own readers take damage at the start of a later member for the end of the file.
    """

    def __init__(self, file: BinaryIO, decompressor: Callable[[], Any]) -> None:
        self.file, self.decompressor = file, decompressor
        self.member = decompressor()

    def readable(self) -> bool:
        """Whether the content can be read: always; io.BufferedReader asks."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; gives the number of bytes, which is 0 at the end.

        Raises:
            EOFError: if a member is cut off.
            OSError, lzma.LZMAError: if a member is damaged, or what follows one is not a member.
        """
        data = b""
        while not data:
            raw = b""
            if self.member.eof:
                raw = self._next_member()
                if not raw:
                    return 0
                self.member = self.decompressor()
            elif self.member.needs_input:
                raw = self.file.read(BLOCK)
                if not raw:
                    raise EOFError("the file ends before its last member does")
            data = self.member.decompress(raw, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _next_member(self) -> bytes:
        """The first bytes of the next member, or none at the end; an .xz file may have NUL between members."""
        raw: bytes = self.member.unused_data.lstrip(b"\0")
        while not raw and (block := self.file.read(BLOCK)):
            raw = block.lstrip(b"\0")
        return raw


def _by_members(decompressor: Callable[[], Any]) -> Callable[[BinaryIO], io.BufferedReader]:
    return lambda file: io.BufferedReader(Members(file, decompressor), BLOCK)


DECOMPRESSORS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": _by_members(bz2.BZ2Decompressor),
    ".xz": _by_members(lzma.LZMADecompressor),
}
"""Readers of compressed files, by the end of the name in lower case."""

PACKED = (".tgz", ".tbz", ".tbz2", ".txz", ".tzst")
"""Ends of the names of archives that are compressed."""

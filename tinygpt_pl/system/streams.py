"""The output and the error stream: no character ends a command, and no reader that goes away ends a run."""

import io
import os
import sys

from tinygpt_pl.system.terminal import warn


class Unfailing(io.FileIO):
    """Drops what cannot be written: the reader or the terminal is gone, or the disk behind it is full."""

    def __init__(self, descriptor: int, warning: str = "") -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.warning = warning

    def write(self, data: "io.ReadableBuffer") -> int:  # type: ignore[name-defined]  # known to typeshed alone
        """Write as much as goes; all of it counts as written if nothing does."""
        try:
            return super().write(data) or memoryview(data).nbytes
        except OSError as error:
            warning, self.warning = self.warning, ""
            if warning:
                warn(f"the output cannot be written ({error.strerror}); {warning}")
            return memoryview(data).nbytes


def secure_streams(*, training: bool) -> None:
    """Replace characters that a stream lacks, and drop messages that nobody takes; the table of a run is one of them.

    The output of other commands is what they are asked for: if it cannot be written, they end.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed: the next file would get its number, and the messages
            os.dup2(null, descriptor)
            stream = open(descriptor, "w", closefd=False)  # noqa: SIM115  # for as long as the process lives
        elif stream is getattr(sys, f"__{name}__") and (name == "stderr" or training):
            stream = _unfailing(stream, "the run goes on" if name == "stdout" else "")
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")
        setattr(sys, name, stream)
    if null > 2:
        os.close(null)


def _unfailing(stream: object, warning: str) -> object:
    """A stream to the same place that never fails, unless it is none of bytes, as a console of Windows."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    raw = getattr(stream.buffer, "raw", stream.buffer)
    if not isinstance(raw, io.FileIO):
        return stream
    stream.flush()
    unfailing = Unfailing(raw.fileno(), warning)
    return io.TextIOWrapper(
        unfailing if stream.write_through else io.BufferedWriter(unfailing),  # as Python does
        encoding=stream.encoding,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def close_output() -> None:
    """Drop what is left of an output that nobody takes, so that Python does not complain about it at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""Byte pairs, learnt in a process of its own, which Ctrl-C ends at once.

In one process, no signal would reach Python while the library works. It prints its progress on the error stream alone.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import BinaryIO

END_OF_TEXT = "<|endoftext|>"
"""What GPT-2 puts between two texts."""

SIZE = 8  # bytes of the number before each text, its length in bytes


def learn_pairs(texts: Iterable[str], vocab_size: int) -> str:
    """Join the pairs of bytes that occur most, until there are `vocab_size` tokens or no pair occurs twice.

    The first token is GPT-2's for the end of a text.

    Returns:
        The content of a tokenizer.json.

    Raises:
        ValueError: if the library cannot do it.
        MemoryError: if the system ended the process.
    """
    from tinygpt_pl.system.terminal import progress_bar  # the other process runs this file without the package

    command = [sys.executable, "-P", __file__, str(vocab_size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        line = b""
        try:
            with suppress(BrokenPipeError), child.stdin as pipe:  # one that has ended says why
                for text in texts:
                    raw = text.encode()
                    pipe.write(len(raw).to_bytes(SIZE) + raw)
            with progress_bar("learning byte pairs", vocab_size) as bar:
                for line in child.stderr:
                    if line.startswith(b'{"stage":"Compute merges"'):
                        bar.update(json.loads(line)["current"] - bar.n)
            learnt = child.stdout.read()
        except BaseException:
            child.kill()
            raise
    if child.returncode < 0:
        raise MemoryError
    if child.returncode:
        raise ValueError(f"byte pairs could not be learnt: {line.decode(errors='replace').strip()}")
    return learnt.decode()


def _received(file: BinaryIO) -> Iterator[str]:
    """The texts that the other process sends."""
    while size := file.read(SIZE):
        yield file.read(int.from_bytes(size)).decode()


def _learn(vocab_size: int) -> None:
    """Learn from the texts on the standard input; the result goes to the output."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=True,
        progress_format="json",
    )
    library.train_from_iterator(_received(sys.stdin.buffer), trainer)
    sys.stdout.buffer.write(library.to_str().encode())


if __name__ == "__main__":
    _learn(int(sys.argv[1]))

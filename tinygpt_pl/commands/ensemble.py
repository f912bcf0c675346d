"""The option --ensemble of the commands test and generate: several checkpoints, read as one model."""

from collections.abc import Sequence

from tinygpt_pl.commands.classes import DEFAULT, Classes
from tinygpt_pl.generation.ensemble import Ensemble
from tinygpt_pl.gpt import GPT
from tinygpt_pl.runs.checkpoint import Checkpoint, read_or_point
from tinygpt_pl.runs.folder import find_checkpoint


def read_ensemble(first: Checkpoint, gpt: GPT, others: Sequence[str], classes: Classes = DEFAULT) -> tuple[GPT, str]:
    """The ensemble of a checkpoint and others, and its name: the first one's path, and how many more there are.

    Args:
        first: the checkpoint whose vocabulary the others must have.
        gpt: its model, which is the result if there are no others.
        others: files of further checkpoints; `first` itself is skipped, so that a shell's pattern may match it.
        classes: the module and data classes.

    Raises:
        ValueError: for a checkpoint that cannot be read, or has another vocabulary or window.
        OSError: if a file cannot be opened.
    """
    members, paths = [gpt], {path.resolve(): path for path in map(find_checkpoint, others)}
    paths.pop(first.path.resolve(), None)
    for path in paths.values():
        checkpoint = read_or_point(path)
        if checkpoint.tokenizer != first.tokenizer:
            raise ValueError(f"the vocabulary of {path} is not that of {first.path}")
        members.append(classes.load_model(checkpoint)[0])
        classes.check(checkpoint)
    return (Ensemble(members), f"{first.path} and {len(paths)} more") if paths else (gpt, str(first.path))

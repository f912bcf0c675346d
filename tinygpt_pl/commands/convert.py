"""The commands export and import: from a checkpoint to a folder of Hugging Face transformers, and back."""

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse import Namespace

from tinygpt_pl.commands.parser import PROG, VERBS, Parser
from tinygpt_pl.exchange.huggingface import architecture_of, export_folder, import_folder
from tinygpt_pl.runs.checkpoint import read_or_point, stored_settings, write_checkpoint
from tinygpt_pl.runs.folder import find_checkpoint


def build_parser(verb: str) -> Parser:
    """The options of one of the two."""
    parser = Parser(prog=f"{PROG} {verb}", description=VERBS[verb], allow_abbrev=False)
    if verb == "export":
        parser.add_checkpoint()
        parser.add_argument("--output_dir", type=str, required=True, help="folder to make, or an empty one")
    else:
        parser.add_argument("--input_dir", type=str, required=True, help="folder with a network and its tokenizer")
        parser.add_argument("--output", type=str, required=True, help="checkpoint to make")
    return parser


def prepare(verb: str, options: Sequence[str]) -> Callable[[], None]:
    """Read what one of them is given; gives what then writes.

    Raises:
        ValueError: for a setting or a file that is wrong.
        OSError: if a file cannot be read.
    """
    config = build_parser(verb).parse_args(options)
    return prepare_export(config) if verb == "export" else prepare_import(config)


def prepare_export(config: Namespace) -> Callable[[], None]:
    """Read the checkpoint, and see that transformers has a network like it."""
    folder = Path(os.path.expanduser(config.output_dir))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already, and not an empty folder; give another --output_dir")
    path = find_checkpoint(config.ckpt_path, config.run_dir)
    checkpoint = read_or_point(path)
    architecture_of(stored_settings(checkpoint)[0])

    def write() -> None:
        export_folder(checkpoint, folder)
        print(f"{folder}: {path}, iteration {checkpoint['global_step']}, for transformers' AutoModelForCausalLM")

    return write


def prepare_import(config: Namespace) -> Callable[[], None]:
    """Read the folder."""
    output = Path(os.path.expanduser(config.output))
    if os.path.lexists(output):
        raise ValueError(f"{output} is there already; give another --output")
    checkpoint = import_folder(Path(os.path.expanduser(config.input_dir)))

    def write() -> None:
        write_checkpoint(checkpoint, output)
        total = sum(tensor.numel() for tensor in checkpoint["state_dict"].values())
        path = shlex.quote(str(output))
        print(f"{output}: {total:,} parameters ({total / 1e6:.2f}M)")
        print(f"let it write: {PROG} generate --ckpt_path {path}")
        print(f"train it on: {PROG} fit --init_from {path} --data.corpus my.txt")

    return write

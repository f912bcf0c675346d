"""The commands export and import: from a checkpoint to a folder of Hugging Face transformers, and back."""

import os
from collections.abc import Sequence
from pathlib import Path

from tinygpt_pl.commands.classes import DEFAULT
from tinygpt_pl.commands.outcome import Work
from tinygpt_pl.commands.parser import Parser
from tinygpt_pl.exchange.huggingface import architecture_of, export_folder, import_folder
from tinygpt_pl.runs.checkpoint import read_or_point, write_checkpoint
from tinygpt_pl.runs.folder import find_checkpoint
from tinygpt_pl.system.files import PARTIAL
from tinygpt_pl.system.terminal import program, quoted


def build_parser(verb: str) -> Parser:
    """The options of one of the two."""
    parser = Parser.of(verb)
    if verb == "export":
        parser.add_checkpoint()
        parser.add_argument("--output_dir", type=str, required=True, help="folder to make, or an empty one")
    else:
        parser.add_argument("--input_dir", type=str, required=True, help="folder with a network and its tokenizer")
        parser.add_argument("--output", type=str, required=True, help="checkpoint to make")
    return parser


def export_checkpoint(args: Sequence[str], work: Work) -> None:
    """Write a checkpoint as a folder, once it is clear that transformers has a model like it."""
    config = build_parser("export").parse_args(args)
    folder = Path(os.path.expanduser(config.output_dir))
    if folder.exists() and (not folder.is_dir() or any(file.suffix != PARTIAL for file in folder.iterdir())):
        raise ValueError(f"{folder} is there already, and not an empty folder; give another --output_dir")
    checkpoint = read_or_point(find_checkpoint(config.ckpt_path, config.run_dir))
    DEFAULT.check(checkpoint)  # transformers has no such subclass
    architecture_of(checkpoint.gpt)
    work.begin()
    export_folder(checkpoint, folder)
    print(f"{folder}: {checkpoint.path}, iteration {checkpoint.iteration}, for transformers' AutoModelForCausalLM")


def import_model(args: Sequence[str], work: Work) -> None:
    """Write the model of a folder as a checkpoint."""
    config = build_parser("import").parse_args(args)
    output = Path(os.path.expanduser(config.output))
    if output.exists():
        raise ValueError(f"{output} is there already; give another --output")
    checkpoint = import_folder(Path(os.path.expanduser(config.input_dir)))
    work.begin()
    write_checkpoint(checkpoint.content, output)
    total = sum(tensor.numel() for tensor in checkpoint.content["state_dict"].values())
    path = quoted(output)
    print(f"{output}: {total:,} parameters ({total / 1e6:.2f}M)")
    print(f"generate text: {program()} generate --ckpt_path {path}")
    print(f"train it on: {program()} fit --init_from {path} --data.corpus my.txt")

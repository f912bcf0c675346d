"""The commands export and import: from a checkpoint to a folder of Hugging Face transformers, and back."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from tinygpt_pl.checkpoint import read_or_point, write_checkpoint
from tinygpt_pl.huggingface import export_folder, import_folder
from tinygpt_pl.parser import PROG, VERBS, Parser, fail
from tinygpt_pl.runs import find_checkpoint


def build_parser(verb: str) -> Parser:
    """The options of one of the two."""
    parser = Parser(prog=f"{PROG} {verb}", description=VERBS[verb], allow_abbrev=False)
    if verb == "export":
        ckpt_path = "last or best (of --run_dir, else of the newest run), or a file"
        parser.add_argument("--ckpt_path", type=str, default="best", help=ckpt_path)
        parser.add_argument("--run_dir", type=str | None, help="folder of the run; the newest one if left out")
        parser.add_argument("--output_dir", type=str, required=True, help="folder to make, or an empty one")
    else:
        parser.add_argument("--input_dir", type=str, required=True, help="folder with a network and its tokenizer")
        parser.add_argument("--output", type=str, required=True, help="checkpoint to make")
    return parser


def run(verb: str, options: Sequence[str]) -> int:
    """Carry one of them out; gives the exit code."""
    config = build_parser(verb).parse_args(options)
    try:
        (export_checkpoint if verb == "export" else import_checkpoint)(config)
    except (ValueError, OSError) as error:
        fail(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def export_checkpoint(config: Namespace) -> None:
    """Write the folder, and say what it is."""
    folder = Path(os.path.expanduser(config.output_dir))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already, and not an empty folder; give another --output_dir")
    path = find_checkpoint(config.ckpt_path, Path(os.path.expanduser(config.run_dir)) if config.run_dir else None)
    checkpoint = read_or_point(path)
    export_folder(checkpoint, folder)
    print(f"{folder}: {path}, iteration {checkpoint['global_step']}, for transformers' AutoModelForCausalLM")


def import_checkpoint(config: Namespace) -> None:
    """Write the checkpoint, and say what can be done with it."""
    output = Path(os.path.expanduser(config.output))
    if output.exists():
        raise ValueError(f"{output} is there already; give another --output")
    checkpoint = import_folder(Path(os.path.expanduser(config.input_dir)))
    write_checkpoint(checkpoint, output)
    total = sum(tensor.numel() for tensor in checkpoint["state_dict"].values())
    path = shlex.quote(str(output))
    print(f"{output}: {total:,} parameters ({total / 1e6:.2f}M)")
    print(f"write with it: {PROG} generate --ckpt_path {path}")
    print(f"train it on: {PROG} fit --ckpt_path {path} --data.corpus my.txt")

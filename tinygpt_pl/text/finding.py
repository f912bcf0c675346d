"""Which files a path or pattern stands for: each once, and none that this program wrote."""

import fnmatch
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

CURVE, WEIGHTS = "events.out.tfevents.*", "*.safetensors"
"""Names of files that mark a folder as one of a run, of token files or of an export, with all that is in it."""

OUTPUTS = (CURVE, WEIGHTS, "*.ckpt", "*.partial")
"""Names of what runs and exports write."""

BESIDE = ("*.yaml", "*.yml", "*.log", "nohup.out", "slurm-*.out")
"""Names of settings and of printed output, which often lie beside the texts; a pattern may ask for such files."""

REPORT = b"default-src 'none'; style-src 'unsafe-inline'"
"""What the first lines of a page of `diagnose --report` hold."""


def find_files(corpus: str, downloads: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The files of a path or pattern in the order of their names, and what of this program's own is left out.

    A file is taken once, however many links lead to it. Folders and patterns leave out hidden files.

    Args:
        corpus: the path of a file or folder; or a pattern with `*`, and `**` for any folders.
        downloads: files of the cache, which are not a part of the folder that the cache lies in.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if it is a pipe or device.
        OSError: if a folder cannot be read.
    """
    path = Path(os.path.expanduser(corpus))
    if path.is_file():
        return [path], []
    left_out: list[Path] = []
    names: tuple[str, ...] = OUTPUTS
    if path.is_dir():
        root, names = path, OUTPUTS + BESIDE
        found = _walk(root, left_out)
    elif any(sign in corpus for sign in "*?["):
        root = _fixed(path)
        found = _matching(path, root, left_out)
    elif path.exists():
        raise ValueError(f"corpus {corpus!r} cannot be read twice; save it as a file")
    else:
        raise FileNotFoundError(corpus)
    own = {_identity(file) for file in downloads if file.exists() and not file.parent.samefile(root)} | _streams()
    files: dict[tuple[int, int], Path] = {}
    for file in sorted(found):
        if file.is_symlink() and not file.exists():
            left_out.append(file)  # which is printed: with its text, it would be another corpus
        if not file.is_file():
            continue
        identity = _identity(file)
        if identity in own or _fits_any(file.name, names) or _is_report(file):
            left_out.append(file)
        else:
            files.setdefault(identity, file)
    return list(files.values()), left_out


def _walk(root: Path, left_out: list[Path]) -> Iterator[Path]:
    """The files of a folder and of those below it, into each of which links lead once."""
    seen = set()
    for folder, folders, names in os.walk(root, onerror=_raise, followlinks=True):
        place = Path(folder)
        output = place != root and _is_output(names)
        if output:
            left_out.append(place)
        if output or _identity(place) in seen:
            folders.clear()
            continue
        seen.add(_identity(place))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (place / name for name in names if not name.startswith("."))


def _raise(error: OSError) -> None:
    """Refuse a folder that cannot be read: without its texts, it would be another corpus."""
    raise error


def _fixed(pattern: Path) -> Path:
    """The folders of a pattern before the first sign of one; a folder may have such a sign in its name."""
    return next(path for path in pattern.parents if path.is_dir() or not any(sign in str(path) for sign in "*?["))


def _matching(pattern: Path, root: Path, left_out: list[Path]) -> Iterator[Path]:
    """What a pattern fits; `glob` itself would follow links for ever where there is a `**`."""
    signs = pattern.parts[len(root.parts) :]
    if "**" not in signs:
        found = sorted(map(Path, glob.iglob(os.path.join(glob.escape(str(root)), *signs))))
        outputs = {folder for folder in {file.parent for file in found} - {root} if _is_output(os.listdir(folder))}
        left_out.extend(sorted(outputs))
        return (file for file in found if file.parent not in outputs)
    return (file for file in _walk(root, left_out) if _fits(file.parts[len(root.parts) :], signs))


def _is_output(names: Iterable[str]) -> bool:
    """Whether a folder with files of these names is one of a run, of token files or of an export."""
    return any(_fits_any(name, (CURVE, WEIGHTS)) for name in names)


def _fits(names: Sequence[str], signs: Sequence[str]) -> bool:
    """Whether the parts of a path fit those of a pattern, where `**` stands for any number of folders."""
    if not (names and signs):
        return not names and all(sign == "**" for sign in signs)
    if signs[0] == "**":
        return _fits(names, signs[1:]) or _fits(names[1:], signs)
    return fnmatch.fnmatch(names[0], signs[0]) and _fits(names[1:], signs[1:])


def _fits_any(name: str, signs: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, sign) for sign in signs)


def _identity(path: Path) -> tuple[int, int]:
    """What a file or folder has in common with all links to it."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _streams() -> set[tuple[int, int]]:
    """The files that this program's own output goes to."""
    found = set()
    for descriptor in (1, 2):
        with suppress(OSError):  # it is closed
            status = os.fstat(descriptor)
            found.add((status.st_dev, status.st_ino))
    return found


def _is_report(path: Path) -> bool:
    if path.suffix.lower() not in (".html", ".htm"):
        return False
    with path.open("rb") as file:
        return REPORT in file.read(300)

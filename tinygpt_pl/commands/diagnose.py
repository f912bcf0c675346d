"""The command diagnose: what the event files of runs tell, in words and as a page."""

import os
from collections.abc import Sequence
from pathlib import Path

from tinygpt_pl.commands.outcome import Work
from tinygpt_pl.commands.parser import Parser
from tinygpt_pl.insight.diagnosis import Diagnosis, diagnose
from tinygpt_pl.insight.history import History, read_history
from tinygpt_pl.runs.folder import event_files, newest_run
from tinygpt_pl.system.files import replacing
from tinygpt_pl.system.terminal import warn

FOUND = 3
"""Exit code of a run that is ill."""


def build_parser() -> Parser:
    """The options of diagnose."""
    parser = Parser.of("diagnose")
    parser.add_argument("run_dirs", nargs="*", type=str, help="folders of runs; the newest one if left out")
    parser.add_argument("--report", action="store_true", help="write a page with charts, one for all runs, besides")
    parser.add_argument(
        "--output", type=str | None, help="the page; report.html in the run's folder, or here for several, if left out"
    )
    return parser


def diagnose_runs(args: Sequence[str], work: Work) -> int:
    """Print what the curves of runs show, and write the page if it was asked for."""
    config = build_parser().parse_args(args)
    folders = [Path(os.path.expanduser(name)) for name in config.run_dirs or [newest_run()]]
    runs: dict[str, History] = {}
    for folder in folders:
        if not event_files(folder):
            raise ValueError(
                f"no run in {str(folder)!r}: give a folder that fit has written, as lightning_logs/version_0"
            )
        runs[str(folder)] = read_history(folder)
    if config.output and not config.report:
        raise ValueError(f"--output {config.output} is the place of a page: ask for one with --report")
    place = (folders[0] if len(runs) == 1 else Path()) / "report.html"
    output, page = Path(os.path.expanduser(config.output)) if config.output else place, ""
    if config.report:
        from tinygpt_pl.insight.report import HEAD
        from tinygpt_pl.insight.report import page as make_page

        page = make_page(runs)
        _check_place(output, HEAD.encode(), named=config.output is not None)

    work.begin()
    failure = _write(page.encode(errors="replace"), output) if page else None
    verdicts = {name: diagnose(history) for name, history in runs.items()}
    for name, verdict in verdicts.items():
        print(*describe(name, verdict), sep="\n")
    if failure:
        raise failure
    if page:
        print(f"report: {output}")
    return 0 if all(verdict.healthy for verdict in verdicts.values()) else FOUND


def _check_place(output: Path, head: bytes, *, named: bool) -> None:
    """See that a page can be written, and takes the place of none but an earlier page, or of one that was named."""
    if not output.parent.is_dir() or output.is_dir():
        raise ValueError(f"{output} cannot be the page: it has to be a file in a folder that exists")
    if not output.is_file() or not output.stat().st_size:
        return
    with output.open("rb") as file:
        if file.read(len(head)) == head:
            return
    if not named or output.suffix not in (".html", ".htm"):
        raise ValueError(f"{output} is there already, and no page of diagnose; give another --output")
    warn(f"{output} was there already, and no page of diagnose; it is replaced")


def _write(page: bytes, output: Path) -> OSError | None:
    """Write the page: in one step, also where a link leads, but to a device or a pipe as it comes.

    It comes before the lines, whose reader may have seen enough; so they are printed even if it fails.

    Returns:
        What went wrong, if something did.
    """
    try:
        if output.exists() and not output.is_file():
            output.write_bytes(page)
        else:
            with replacing(output) as file:
                file.write(page)
    except OSError as error:
        return error
    return None


def describe(name: str, verdict: Diagnosis) -> list[str]:
    """A run's diagnosis as lines of text."""
    lines = [f"{name}: {verdict.line}"]
    for finding in verdict.findings:
        lines += [
            f"  {'FINDING' if finding.fault else 'remark'} {finding.name}, at iteration {finding.it}",
            f"    seen:   {finding.evidence}",
            f"    likely: {'; or '.join(finding.causes)}",
            f"    change: {finding.fix}",
        ]
    return lines

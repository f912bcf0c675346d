"""`python -m tinygpt_pl`, and the command `tinygpt`."""

import gc
import os
import sys

from tinygpt_pl.system.loading import loading


def main() -> int:
    """Run the command line; gives the exit code."""
    try:
        os.getcwd()  # torch ends the process where the working folder is gone
        with loading():
            from tinygpt_pl.commands.main import main as run
    except Exception as error:  # without memory, libraries fail in ways of their own
        why = str(error) or type(error).__name__
        print(f"error: the program cannot be loaded: {why}\n{_way_out(error)}", file=sys.stderr)
        return 2
    try:
        return run()
    except KeyboardInterrupt:  # outside of a run, which saves
        return 130
    finally:
        gc.freeze()  # else Python's end looks at each object of torch and Lightning, which takes seconds


def _way_out(error: Exception) -> str:
    """What to do where a library cannot be imported."""
    if isinstance(error, FileNotFoundError):
        return "the working folder may be gone: change to one that exists"
    if isinstance(error, ValueError):  # tqdm reads its variables while it is imported
        names = ", ".join(name for name in os.environ if name.startswith("TQDM_"))
        return f"check the variables of the environment: {names}" if names else "check the variables of the environment"
    return "install it again, or raise the limit of memory (ulimit -v)"


if __name__ == "__main__":
    sys.exit(main())

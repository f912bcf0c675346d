"""`python -m tinygpt_pl`, and the command `tinygpt`."""

import gc
import sys


def main() -> int:
    """Run the command line; gives the exit code."""
    try:
        from tinygpt_pl.commands.main import main as run

        return run()
    except KeyboardInterrupt:  # before there is anything to save, while the libraries are imported for instance
        return 130
    finally:
        gc.freeze()  # else Python's end looks at each object of torch and Lightning, which takes seconds


if __name__ == "__main__":
    sys.exit(main())

"""The command line: a file for each command, which parses, calls the rooms and prints.

It may import everything; only `__main__`, tests and benchmarks import it.
"""

from tinygpt_pl.commands.main import main

__all__ = ["main"]

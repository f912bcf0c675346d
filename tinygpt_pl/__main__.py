"""`python -m tinygpt_pl`."""

import sys

from tinygpt_pl.cli import main

sys.exit(main())

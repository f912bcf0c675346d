"""`python -m tinygpt_pl`."""

import sys

try:
    from tinygpt_pl.commands.main import main

    sys.exit(main())
except KeyboardInterrupt:  # before there is anything to save, while the libraries are imported for instance
    sys.exit(130)

"""`python -m manticore` does what the command `manticore` does."""

import sys

from manticore.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

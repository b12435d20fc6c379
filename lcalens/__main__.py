"""`python -m lcalens` is the command `lcalens`."""

import sys

from lcalens.cli import main

if __name__ == "__main__":
    sys.exit(main())

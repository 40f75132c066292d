"""`python -m zemosaicd`."""

import sys

from zemosaicd.cli import main

if __name__ == "__main__":
    sys.exit(main())

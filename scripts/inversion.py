"""The same as ``convlens invert``: python scripts/inversion.py --help"""

from __future__ import annotations

import sys

from convlens.cli.main import main

if __name__ == "__main__":
    sys.argv = [sys.argv[0], "invert", *sys.argv[1:]]
    main()

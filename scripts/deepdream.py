"""The same as ``convlens dream``: python scripts/deepdream.py --help"""

from __future__ import annotations

import sys

from convlens.cli.main import main

if __name__ == "__main__":
    sys.argv = [sys.argv[0], "dream", *sys.argv[1:]]
    main()

"""The same as ``convlens texture``: python scripts/texture.py --help"""

from __future__ import annotations

import sys

from convlens.cli.main import main

if __name__ == "__main__":
    sys.argv = [sys.argv[0], "texture", *sys.argv[1:]]
    main()

"""axe-core, which finds what makes a page hard to use without eyes or a mouse: https://github.com/dequelabs/axe-core.

``python tests/support/axe_core.py`` fetches it into the cache.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
from devtools import Page

from convlens.explorer.npm_package import NpmPackage
from convlens.utils.cache_dir import CacheDir

AXE = NpmPackage(
    name="axe-core",
    version="4.14.1",
    sha512="FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
    files=("axe.min.js", "LICENSE"),
    kind="tests of accessibility",
    purpose="testing whether pages are accessible",
    command="python tests/support/axe_core.py",
)
# Of the user who runs the tests, who fetched it: the tests themselves keep their cache elsewhere, and fetch nothing.
_FOLDER = CacheDir().folder / AXE.key


def require_axe() -> None:
    """Skips the test where axe-core was not fetched."""
    if not _FOLDER.is_dir():
        pytest.skip(f"axe-core is not in {_FOLDER.parent}; run `{AXE.command}`")


def violations(page: Page) -> list[dict[str, Any]]:
    """What axe finds wrong with the page as it is now, by all of its rules: the rule, and the elements."""
    script = (_FOLDER / "content" / "axe.min.js").read_text(encoding="utf-8")
    page.evaluate(f"{script}\n;null")
    found = page.evaluate(
        "axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => violations.map(({ id, nodes }) =>"
        " ({ id, elements: nodes.map((node) => `${node.html.slice(0, 200)}: ${node.failureSummary}`) })))"
    )
    assert isinstance(found, list)
    return found


if __name__ == "__main__":
    sys.exit(AXE.main())

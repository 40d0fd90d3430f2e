"""Puts the figures of benchmarks/results into the README, between its ``<!-- NAME -->`` marks.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


def relu_rules(result: dict[str, Any]) -> str:
    """The table of benchmarks/relu_rules.py with the machine below it."""
    lines = [
        "| network | batch | captum, three calls | ConvLens, one forward | captum ÷ ConvLens | … given channels_last |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['model']} | {row['batch']} | {row['captum ms']:.0f} ms | {row['convlens ms']:.0f} ms "
            f"| {row['captum / convlens']:.2f} | {row['captum, channels last / convlens']:.2f} |"
        )
    machine = result["machine"]
    lines += ["", f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}; medians, sides taking turns."]
    return "\n".join(lines)


TABLES = {"relu_rules": relu_rules}


def filled(readme: str) -> str:
    """The README's text with every table as its result file has it."""
    for name, table in TABLES.items():
        result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        before, mark, rest = readme.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        readme = f"{before}{mark}{table(result)}\n{end}{after}"
    return readme


def main() -> None:
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Java ``.properties`` text to a mapping and back, by the rules of java.util.Properties."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

# A key ends at the first unescaped '=', ':' or white space; white space around the separator belongs to neither side.
_PAIR = re.compile(r"((?:\\.|[^\\=:\s])*)[ \t\f]*[=:]?[ \t\f]*(.*)", re.DOTALL)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_CONTROL = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_NAMES = {control: letter for letter, control in _CONTROL.items()}


def parse(text: str) -> dict[str, str]:
    """The pairs in the text's order; of a repeated key the last value counts, as in Java."""
    pairs = (_PAIR.match(line) for line in _logical_lines(text))
    return {_plain(pair.group(1)): _plain(pair.group(2)) for pair in pairs if pair is not None}


def dump(values: Mapping[str, str]) -> str:
    """Text that ``parse``, and Java, read back as these values, in pure ASCII: Java reads the file as Latin-1."""
    return "".join(f"{_escaped(key, key=True)}={_escaped(value)}\n" for key, value in values.items())


def _logical_lines(text: str) -> Iterator[str]:
    """Lines without comments and blanks, those that end in an odd number of backslashes joined to the next."""
    held = ""
    for line in re.split(r"\r\n|\r|\n", text):
        line = line.lstrip(" \t\f")
        if not held and (not line or line[0] in "#!"):
            continue
        held += line
        if (len(held) - len(held.rstrip("\\"))) % 2:
            held = held[:-1]
            continue
        yield held
        held = ""
    if held:
        yield held


def _plain(text: str) -> str:
    """Letters beyond 16 bits come as two escapes, which the round trip through UTF-16 makes one letter again."""
    units = _ESCAPE.sub(lambda found: _unescaped(found.group(1)), text)
    return units.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _unescaped(code: str) -> str:
    return chr(int(code[1:], 16)) if len(code) == 5 else _CONTROL.get(code, code)


def _escaped(text: str, *, key: bool = False) -> str:
    special = "\\=: #!" if key else "\\"
    out = "".join(_escaped_letter(letter, special) for letter in text)
    return "\\" + out if out.startswith(" ") else out


def _escaped_letter(letter: str, special: str) -> str:
    if letter in _NAMES:
        return "\\" + _NAMES[letter]
    if letter in special:
        return "\\" + letter
    if " " <= letter <= "~":
        return letter
    units = letter.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))

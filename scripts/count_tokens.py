"""How many Python tokens the three packages have, without comments, docstrings and layout."""

from __future__ import annotations

import ast
import tokenize
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGES = ("edgeadv", "runtime/edgeadv_runtime", "export/edgeadv_export")
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def docstring_lines(source: str) -> set[int]:
    """Numbers of the lines that docstrings cover, those of attributes too."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def tokens(file: Path) -> int:
    """The tokens of one file."""
    docstrings = docstring_lines(file.read_text(encoding="utf-8"))
    with tokenize.open(file) as opened:
        found = tokenize.generate_tokens(opened.readline)
        return sum(token.type not in LAYOUT and token.start[0] not in docstrings for token in found)


def main() -> None:
    """Print a line for each package, and the sum."""
    counts = {name: sum(map(tokens, sorted((CHECKOUT / name).rglob("*.py")))) for name in PACKAGES}
    for name, count in {**counts, "together": sum(counts.values())}.items():
        print(f"{name:25s} {count:8,d}")


if __name__ == "__main__":
    main()

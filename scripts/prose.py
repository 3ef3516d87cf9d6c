"""Measure the prose of the pages by the rules of ``docs/style.md``; the exit status is 1 if one is broken.

python scripts/prose.py            one line for all pages
python scripts/prose.py --pages    and a line for each
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_WORDS, MEAN, LONGEST, WIDTH = 16_000, 16.0, 25, 120


@dataclass(frozen=True)
class Page:
    """What a page was measured at.

    Attributes:
        words: all of them, with tables and code, as ``wc -w`` counts.
        sentences: of its prose: paragraphs and list items, not headings, tables or code.
        wide: lines of prose of more than 120 columns.
    """

    path: Path
    words: int
    sentences: list[str]
    wide: list[str]


def paragraphs(text: str) -> list[str]:
    """Prose, a list item or a paragraph each."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith(("|", "#", ":::", "!!!")) or (line.startswith("    ") and not found[-1]):
            found.append([])
            continue
        if re.match(r"([-*]|\d+\.) ", stripped):
            found.append([])
        found[-1].append(stripped)
    return [" ".join(lines) for lines in found if lines]


def sentences(text: str) -> list[str]:
    """The sentences of all paragraphs; code in backticks is a word, a link is its text."""
    found = []
    for paragraph in paragraphs(text):
        plain = re.sub(r"`[^`]*`", "code", paragraph)
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain)
        plain = re.sub(r"^([-*]|\d+\.) ", "", plain).replace("*", "")
        found += [each for each in re.split(r"(?<=[.!?])[)\"']? +(?=[A-Z0-9(\"'c])", plain) if each.strip()]
    return found


def measure(path: Path) -> Page:
    """One page."""
    text = path.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    wide = [line for line in prose.splitlines() if len(line) > WIDTH and not line.startswith("|")]
    return Page(path, len(text.split()), sentences(text), wide)


def faults(pages: list[Page]) -> list[str]:
    """What breaks a rule, a line each."""
    found = []
    words = sum(page.words for page in pages)
    lengths = [len(sentence.split()) for page in pages for sentence in page.sentences]
    if words > MOST_WORDS:
        found.append(f"{words:,} words, and {MOST_WORDS:,} are the most")
    if (mean := sum(lengths) / len(lengths)) > MEAN:
        found.append(f"{mean:.1f} words in a sentence on average, and {MEAN:.0f} are the most")
    for page in pages:
        name = page.path.relative_to(ROOT)
        found += [f"{name}: wider than {WIDTH} columns: {line[:60]}..." for line in page.wide]
        found += [f"{name}: {len(s.split())} words: {s[:80]}..." for s in page.sentences if len(s.split()) > LONGEST]
    return found


def main() -> int:
    """Print, and return the exit status."""
    pages = [measure(path) for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))]
    if "--pages" in sys.argv:
        for page in pages:
            lengths = [len(sentence.split()) for sentence in page.sentences] or [0]
            mean = sum(lengths) / len(lengths)
            print(f"{page.words:6,} words, mean {mean:4.1f}, longest {max(lengths):3}  {page.path.relative_to(ROOT)}")
    lengths = [len(sentence.split()) for page in pages for sentence in page.sentences]
    print(f"{sum(page.words for page in pages):,} words; {sum(lengths) / len(lengths):.1f} words in a sentence")
    for fault in (found := faults(pages)):
        print(fault)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

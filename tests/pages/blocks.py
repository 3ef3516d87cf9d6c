"""The code blocks of a page, and what its comments say of them.

Above a block a comment may stand that is seen in the source only::

    <!-- not run: needs a GPU -->                  the block is passed over, and the reason is not empty
    <!-- smaller: --epochs 20 = --epochs 1 -->     replaced before it runs; several pairs, separated by ";"
    <!-- exits: 1 -->                              the exit status of its last command
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"(?P<notes>(?:^<!-- [^\n]* -->\n+)*)^```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
_NOTE = re.compile(r"^<!-- (?P<kind>not run|smaller|exits): (?P<text>.*) -->$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        line: where it begins on the page, from 1.
        language: ``sh``, ``python`` or another.
        code: its text, after ``smaller``.
        not_run: why it is passed over; None if it runs.
        exits: the exit status of its last command.
    """

    line: int
    language: str
    code: str
    not_run: str | None
    exits: int

    @property
    def commands(self) -> list[str]:
        """Its commands, comments and line breaks removed."""
        joined = self.code.replace("\\\n", " ")
        lines = (" ".join(shlex.split(line, comments=True, posix=False)) for line in joined.splitlines())
        return [line for line in lines if line]


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in their order.

    Raises:
        ValueError: ``smaller`` names a text that is not in its block, or no reason is given.
    """
    text, found = page.read_text(encoding="utf-8"), []
    for match in _BLOCK.finditer(text):
        notes = {note["kind"]: note["text"] for note in _NOTE.finditer(match["notes"])}
        code = match["code"]
        for pair in filter(None, notes.get("smaller", "").split("; ")):
            before, _, after = pair.partition(" = ")
            if before not in code:
                raise ValueError(f"{page.name}: {before!r} is not in the block below")
            code = code.replace(before, after)
        line = text.count("\n", 0, match.start("language")) + 1
        found.append(Block(line, match["language"], code, notes.get("not run"), int(notes.get("exits", 0))))
    return found

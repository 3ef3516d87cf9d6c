"""A card as one HTML page, with the style, and the tables of the report."""

from __future__ import annotations

from pathlib import Path

from edgeadv_runtime.errors import InputError
from edgeadv_runtime.files import write_bytes, write_json
from edgeadv_runtime.records.card import Card

from .card_markdown import markdown
from .card_sections import SEVERAL, sections, what_worst
from .page import fill
from .phrases import MEANINGS

_TEMPLATE = "card.html.j2"
ENDINGS = (".html", ".json", ".md")
"""What a card may be written as."""


def check_ending(out: Path) -> None:
    """Refuse a file of another kind.

    Raises:
        InputError: ``out`` is called otherwise than :data:`ENDINGS`.
    """
    if out.suffix not in ENDINGS:
        named = f"ends in {out.suffix!r}" if out.suffix else "has no ending"
        raise InputError(
            "out", f"{out} {named}: call it {', '.join(f'card{each}' for each in ENDINGS[:-1])} or card.md"
        )


def write_card(card: Card, out: Path) -> None:
    """Write a card as the ending of ``out`` says: a page, the record or Markdown.

    Raises:
        InputError: it is none of them.
        MissingDependencyError: of a page: the extra ``report`` is not installed.
        StorageError: ``out`` cannot be written.
    """
    check_ending(out)
    if out.suffix == ".json":
        write_json(out, card.to_json())
    else:
        write_bytes(out, (page(card) if out.suffix == ".html" else markdown(card)).encode())


def page(card: Card) -> str:
    """The card as text; the same card gives the same text.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    head = card.headline
    return fill(
        _TEMPLATE,
        title=card.model.title or card.model.architecture,
        subjects=["model card"],
        head=head,
        several=SEVERAL if len(card.scores) > 1 else "",
        what_worst=what_worst(card),
        meaning=MEANINGS[head.verdict],
        sections=sections(card),
    )

"""What the gate found, for a pipeline: JUnit XML and JSON, written whole, also where a rule failed or nothing was
judged."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..files import write_bytes, write_json
from .measurement import WRITER
from .release_gate import Ruling
from .results import Results

SCHEMA_VERSION = 1
SUITE_NAME = "edgeadv gate"
# what XML 1.0 cannot hold
_NO_XML = re.compile(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def gate_json(
    file: Path, results: Results | None, rulings: Sequence[Ruling], *, error: str | None = None
) -> dict[str, Any]:
    """The gate's outcome as a JSON object; ``docs/how-to/gate-in-ci.md`` describes the keys.

    Args:
        file: the results file that was asked about; only its name is kept.
        results: what it holds; None where it could not be read.
        rulings: one of each rule.
        error: why nothing was judged; None where it was.
    """
    about: dict[str, Any] = {}
    if results is not None:
        data = results.data
        about = {
            "bundle_id": results.bundle.id,
            "created": results.created,
            "data": {key: getattr(data, key) for key in ("name", "split", "n", "sha256")}
            | {"training_images": data.trained_on},
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "gate",
        "edgeadv_version": WRITER,
        "file": file.name,
        **about,
        "status": "error" if error is not None else "passed" if all(ruling.passed for ruling in rulings) else "failed",
        "error": error,
        "rulings": [asdict(ruling) for ruling in rulings],
    }


def gate_junit(file: Path, rulings: Sequence[Ruling], *, error: str | None = None) -> bytes:
    """The gate's outcome as JUnit XML, UTF-8: a test case for each rule, or one with an ``<error>`` where nothing was
    judged.

    The arguments are those of :func:`gate_json`.
    """
    cases = [(ruling.rule, "system-out" if ruling.passed else "failure", str(ruling), "rule") for ruling in rulings]
    if error is not None:
        cases.append((SUITE_NAME, "error", error, "nothing judged"))
    tags = Counter(tag for _, tag, _, _ in cases)
    counts = {"tests": str(len(cases)), "failures": str(tags["failure"]), "errors": str(tags["error"])}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": SUITE_NAME, **counts})
    for name, tag, text, kind in cases:
        case = ElementTree.SubElement(suite, "testcase", {"classname": _xml(file.name), "name": _xml(name)})
        attributes = {} if tag == "system-out" else {"message": _xml(text), "type": kind}
        ElementTree.SubElement(case, tag, attributes).text = _xml(text)
    ElementTree.indent(root)
    made: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return made + b"\n"


def write_outcome(
    file: Path,
    results: Results | None,
    rulings: Sequence[Ruling],
    *,
    error: str | None = None,
    junit: Path | None = None,
    json: Path | None = None,
) -> None:
    """Write what is asked for, each file whole or not at all.

    Args:
        file: the results file that was asked about.
        results: what it holds; None where it could not be read.
        rulings: one of each rule.
        error: why nothing was judged; None where it was.
        junit: where the JUnit XML goes; None writes none.
        json: where the JSON goes; None writes none.

    Raises:
        StorageError: one cannot be written.
    """
    if junit is not None:
        write_bytes(junit, gate_junit(file, rulings, error=error))
    if json is not None:
        write_json(json, gate_json(file, results, rulings, error=error))


def _xml(text: str) -> str:
    return _NO_XML.sub("?", text)

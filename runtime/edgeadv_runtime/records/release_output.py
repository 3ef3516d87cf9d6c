"""What the gate found, for a pipeline: JUnit XML and JSON, written whole, also where a rule failed or nothing was
judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..files import write_bytes, write_json
from .measurement import WRITER
from .release_gate import Ruling
from .results import Results

SCHEMA_VERSION = 1
SUITE_NAME = "edgeadv gate"
PASSED, FAILED, ERROR = "passed", "failed", "error"


def gate_json(
    file: Path, results: Results | None, rulings: Sequence[Ruling], *, error: str | None = None
) -> dict[str, Any]:
    """The gate's outcome as a JSON object; ``docs/gate.md`` describes the keys.

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
        "status": _status(rulings, error),
        "error": error,
        "rulings": [
            {
                "rule": ruling.rule,
                "passed": ruling.passed,
                "scope": ruling.scope,
                "text": ruling.text,
                "figures": ruling.figures,
            }
            for ruling in rulings
        ],
    }


def gate_junit(file: Path, rulings: Sequence[Ruling], *, error: str | None = None) -> bytes:
    """The gate's outcome as JUnit XML, UTF-8: a test case for each rule, or one with an ``<error>`` where nothing was
    judged.

    The arguments are those of :func:`gate_json`.
    """
    failures = sum(not ruling.passed for ruling in rulings)
    counts = {
        "tests": str(len(rulings) + (error is not None)),
        "failures": str(failures),
        "errors": str(int(error is not None)),
    }
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": SUITE_NAME, **counts})
    for ruling in rulings:
        case = ElementTree.SubElement(suite, "testcase", {"classname": _xml(file.name), "name": _xml(ruling.rule)})
        if ruling.passed:
            ElementTree.SubElement(case, "system-out").text = _xml(str(ruling))
        else:
            attributes = {"message": _xml(str(ruling)), "type": "rule"}
            ElementTree.SubElement(case, "failure", attributes).text = _xml(str(ruling))
    if error is not None:
        case = ElementTree.SubElement(suite, "testcase", {"classname": _xml(file.name), "name": SUITE_NAME})
        attributes = {"message": _xml(error), "type": "nothing judged"}
        ElementTree.SubElement(case, "error", attributes).text = _xml(error)
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


def _status(rulings: Sequence[Ruling], error: str | None) -> str:
    if error is not None:
        return ERROR
    return PASSED if all(ruling.passed for ruling in rulings) else FAILED


def _xml(text: str) -> str:
    """``text`` without what XML 1.0 cannot hold."""
    return "".join(
        c if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "?" for c in text
    )

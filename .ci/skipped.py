"""Print the skipped tests with their reasons; exit 1 unless they are those of skipped.txt.

Each line of skipped.txt is `TEST ID`, and may begin with `shared:` for a test that may skip where the folder with the
real photographs is not beside the checkout, or with `machine:` for one that some machines can run and others cannot.
`TEST ID` may end with `*`, for all tests of a module.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def main(reports: list[str]) -> int:
    """Compare the skipped tests of these JUnit files with the list."""
    here = Path(__file__).resolve().parent
    lines = [line.strip() for line in (here / "skipped.txt").read_text().splitlines()]
    listed = {line for line in lines if line and not line.startswith("#")}
    have_shared = (here.parent.parent / "shared" / "data").is_dir()
    allowed = {
        line.removeprefix("shared:").removeprefix("machine:").strip()
        for line in listed
        if not (line.startswith("shared:") and have_shared)
    }
    required = {line for line in listed if not line.startswith(("shared:", "machine:"))}
    skipped = {}
    for report in reports:
        for case in ET.parse(report).getroot().iter("testcase"):
            reason = case.find("skipped")
            if reason is not None:
                skipped[f"{case.get('classname')}.{case.get('name')}"] = reason.get("message", "")
    print(f"skipped tests: {len(skipped)}")
    for name, reason in sorted(skipped.items()):
        print(f"  {name}: {reason}")
    modules = tuple(name[:-1] for name in allowed if name.endswith("*"))
    unexpected = sorted(name for name in set(skipped) - allowed if not name.startswith(modules))
    missing = sorted(required - set(skipped))
    for name in unexpected:
        print(f"skipped but not listed in .ci/skipped.txt: {name}")
    for name in missing:
        print(f"listed in .ci/skipped.txt but not skipped: {name}")
    return 1 if unexpected or missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

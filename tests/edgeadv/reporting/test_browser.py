"""The page in a real browser: what it says, that it complains of nothing, and that nothing overlaps or sticks out."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from edgeadv.reporting.study import write_pages

UNDEFENDED_FGSM = {("fgsm", "2/255"): 31, ("fgsm", "8/255"): 12}
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--enable-logging=stderr",
    "--v=0",
)
# what the page may not have, run in a copy of it that has no policy to forbid it
PROBE = """
const labels = [...document.querySelectorAll('.curves')].map(svg => [...svg.querySelectorAll('text')]
  .map(text => text.getBoundingClientRect()));
const cut = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
top.document.body.dataset.labels = labels.flat().length;
top.document.body.dataset.overlaps = labels
  .flatMap(panel => panel.flatMap((a, i) => panel.slice(i + 1).filter(b => cut(a, b)))).length;
const width = document.documentElement.clientWidth;
top.document.body.dataset.width = width;
top.document.body.dataset.beyond = [...document.querySelectorAll('body *')]
  .filter(e => e.getBoundingClientRect().right > width + 1).length;
"""


class Visit(NamedTuple):
    """What the browser made of a page."""

    dom: str
    complaints: list[str]

    def measured(self, name: str) -> int:
        found = re.search(rf'data-{name}="(\d+)"', self.dom)
        assert found, f"the probe did not run: {self.complaints}"
        return int(found[1])


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("no chromium: CI must see the page in a browser (apt-get install chromium)")
    if found is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    return found


@pytest.fixture
def visit(chromium, tmp_path) -> Callable[..., Visit]:
    def open_page(path: Path) -> Visit:
        flags = (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,900", "--dump-dom")
        command = [chromium, *flags, path.as_uri()]
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert outcome.returncode == 0, outcome.stderr
        # Chromium has worries of its own, about D-Bus and the like: only what names a page comes from one
        complaints = [line for line in outcome.stderr.splitlines() if "CONSOLE" in line or path.name in line]
        return Visit(outcome.stdout, complaints)

    return open_page


@pytest.fixture
def pages(report, results, undefended, several, bench, tmp_path):
    """The usual page: three models, one with all attacks on five artefacts, and latencies."""
    return report(undefended, results(), several(), bench(title="regnet_y_400mf, undefended"), bench())


def test_headline_can_be_read_and_the_console_is_silent(visit, pages, tmp_path):
    seen = visit(tmp_path / "report.html")
    headline = seen.dom[seen.dom.index('id="headline"') : seen.dom.index('id="comparison"')]
    assert re.findall(r'data-verdict="(\w+)"', headline) == ["PASS", "MASKED", "PASS"]
    assert "plain FGSM says 84%, the worst case says 0%" in headline
    assert seen.complaints == []


def test_a_script_in_a_name_does_not_run(visit, report, results, tmp_path):
    report(results(title="<script>document.title = 'ran'; throw new Error('ran')</script>"))
    seen = visit(tmp_path / "report.html")
    assert "<title>ran" not in seen.dom and seen.complaints == []


@pytest.mark.parametrize(
    "body", ["<script>throw new Error('planted')</script>", "<img src='http://localhost:9/planted.png'>"]
)
def test_a_planted_fault_is_seen(visit, pages, tmp_path, body):
    # the first without the policy, which would refuse the script; the second with it, and it must refuse the image
    source = pages.source.replace("</body>", f"{body}</body>")
    if "script" in body:
        source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source)
    (tmp_path / "planted.html").write_text(source, encoding="utf-8")
    complaints = visit(tmp_path / "planted.html").complaints
    assert any("planted" in line for line in complaints)


def framed(source: str, width: int, path: Path) -> Path:
    """A page that measures ``source`` in a frame, because Chromium's own window does not get narrower than 500
    pixels."""
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source)
    source = source.replace("<details", "<details open").replace("</body>", f"<script>{PROBE}</script></body>")
    frame = f'<!DOCTYPE html><body><iframe width="{width}" height="900" srcdoc="{html.escape(source)}"></iframe></body>'
    path.write_text(frame, encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [1280, 970, 800, 420, 360])
def test_no_label_overlaps_and_nothing_sticks_out(visit, pages, tmp_path, width):
    seen = visit(framed(pages.source, width, tmp_path / "probe.html"))
    assert seen.measured("width") in range(width - 20, width + 1)
    assert seen.measured("labels") > 40
    assert seen.measured("overlaps") == 0
    assert seen.measured("beyond") == 0


@pytest.mark.parametrize("width", [1280, 800, 360])
def test_the_page_of_a_study_fits_too(visit, study, results, tmp_path, width):
    names = ("vit_base_patch16_clip_224.openai_ft_in12k_in1k", "alexnet")
    measured = [results(title=names[0]), results(UNDEFENDED_FGSM, title=names[1], verdict="UNCHECKED", clean=560)]
    write_pages(study(*measured), tmp_path)
    assert visit(tmp_path / "study.html").complaints == []
    seen = visit(framed((tmp_path / "study.html").read_text(encoding="utf-8"), width, tmp_path / "probe.html"))
    assert seen.measured("labels") > 20
    assert seen.measured("overlaps") == 0
    assert seen.measured("beyond") == 0


@pytest.mark.parametrize("name", ["int8", "masked"])
def test_a_card_fits_and_the_console_is_silent(visit, request, tmp_path, name):
    source = request.getfixturevalue(name).write(tmp_path / "card.html")
    seen = visit(tmp_path / "card.html")
    assert seen.complaints == [] and 'id="limits"' in seen.dom
    for width in (1280, 800, 360):
        seen = visit(framed(source, width, tmp_path / "probe.html"))
        assert seen.measured("width") in range(width - 20, width + 1)
        assert seen.measured("beyond") == 0

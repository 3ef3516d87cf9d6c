"""The page and the Markdown of a study, from counts that a test chooses."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from edgeadv.reporting.study import FGSM_ALONE, entries, markdown, page

NAME = "regnet_y_400mf"


def test_lines_are_errors_of_fgsm_alone(study, results):
    """The other attacks of a results file, the worst case included, are not in the paper's table."""
    (entry,) = entries(study(results(title=NAME)))
    assert [(line.budget, line.row.masking and line.row.verdict) for line in entry.lines] == [
        ("no attack", None),
        ("2/255", "MASKED"),
        ("8/255", "MASKED"),
    ]
    # 852, 850 and 840 of 1,000 are right
    for line, wrong in zip(entry.lines, (148, 150, 160), strict=True):
        interval = binomtest(wrong, 1000).proportion_ci(method="wilson")
        assert line.top1.value == wrong / 1000
        assert line.top1.interval == pytest.approx((interval.low, interval.high), abs=1e-12)
        assert line.top5 is not None and abs(line.top5.value - (wrong - 90) / 1000) < 1e-12


def test_what_fgsm_did_not_attack_stands_beside_its_figure(study, results, taken_apart):
    measured = study(results(title=NAME))
    assert markdown(measured).count("| MASKED, 63.7% not attacked |") == 2
    assert taken_apart(page(measured)).text.count("63.7% not attacked") == 2


def test_a_finding_is_said_with_its_reason(study, results, taken_apart):
    measured = study(results(title=NAME))
    for text in (markdown(measured), taken_apart(page(measured)).text):
        assert (
            "masking check: MASKED (hidden or false gradients)" in text
            and "637 images have no gradient." in text
            and ".." not in text
        )
        assert "Nothing of note" not in text
        assert FGSM_ALONE.partition("`")[0] in text


def test_the_page_is_whole_and_other_peoples_text_stays_text(study, results, taken_apart):
    source = page(study(results(title="<b>x</b>"), results(title=NAME)))
    parsed = taken_apart(source)
    assert (parsed.open, parsed.misplaced) == ([], [])
    assert "<b>" not in source and "a&lt;b&gt;.pth" in source
    assert len(parsed.all("svg", role="img")) == 2


def test_five_classes_have_no_top5(study, results, taken_apart):
    measured = study(results(title=NAME, top5=False))
    assert "| – | – |" in markdown(measured)
    assert "top-5 error" not in page(measured).split('id="curves"')[1]


def test_unreadable_images_are_listed_once(study, results):
    measured = study(results(title="a"), results(title="b"))
    assert markdown(measured).count("- cat/0173.jpg: cut") == 1

"""What the page says, and how it behaves with hostile, odd and missing input."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
import sys
from importlib.resources import files

import pytest
from msgspec.structs import replace

from edgeadv.reporting import build_report
from edgeadv_runtime.errors import BundleError, InputError, MissingDependencyError, SchemaError, StorageError
from edgeadv_runtime.files import read_json, write_json
from edgeadv_runtime.records.machine import Conditions
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import CLEAN, WORST_CASE


def test_headline_is_the_worst_case_at_the_largest_eps_with_its_verdict(report, results, undefended):
    page = report(undefended, results())
    assert [card["data-verdict"] for card in page.cards] == ["PASS", "MASKED"]
    assert [card["data-eps"] for card in page.cards] == ["8/255", "8/255"]
    assert [float(card["data-worst-case"]) for card in page.cards] == [0.0, 0.002]
    assert [float(card["data-clean"]) for card in page.cards] == [0.853, 0.852]
    assert len(page.all("section", id="headline")) == 1
    headline = page.source[: page.source.index('id="comparison"')]
    # the large figure is the worst case and nothing else; the interval is Wilson's for 0 of 1,000
    assert re.findall(r'class="number">(?:<span class="bound">(.)</span>)?([\d.]+%)', headline) == [
        ("", "0.0%"),
        ("≤", "0.2%"),
    ]
    assert "95% interval 0.0–0.4%, n&nbsp;=&nbsp;1,000" in headline


def test_pass_is_a_word_about_the_measurement(report, undefended):
    page = report(undefended)
    assert page.text.count("masking check: PASS (no sign of hidden or false gradients)") == 2
    assert "says nothing about how hard the model is to fool" in page.text
    assert not re.search(r"(?<!worst-case )\brobust\b(?! accuracy)", page.text)


def test_fgsm_against_the_worst_case_in_words(report, results, undefended):
    gap = "plain FGSM says 84%, the worst case says 0%: "
    assert f"{gap}the difference is hidden gradients, not robustness" in report(results()).text
    suspect = report(results(verdict="SUSPECT")).text
    assert f"{gap}the difference may be hidden gradients" in suspect and "not robustness" not in suspect
    # one step is a weak attack: a difference alone does not prove that anything is hidden
    honest = {("fgsm", "2/255"): 393, (WORST_CASE, "2/255"): 150}
    assert "plain FGSM says 39%, the worst case says 15%: one step" in report(results(honest, verdict="PASS")).text
    assert "plain FGSM says" not in report(undefended).text


def test_without_a_margin_attack_the_number_is_only_an_upper_bound(report, results):
    only_fgsm = {("fgsm", "8/255"): 653, (WORST_CASE, "8/255"): 653}
    reason = {"rule": "coverage", "eps": None, "n": 850, "finding": None, "text": "pgd-margin did not run"}
    page = report(results(only_fgsm, verdict="UNCHECKED", masking={"verdict": "UNCHECKED", "evidence": [reason]}))
    assert page.cards[0]["data-verdict"] == "UNCHECKED"
    assert "Reason: pgd-margin did not run." in page.text
    assert "not checked" in page.text and "nothing found" not in page.text
    assert '<span class="bound">≤</span>65.3%' in page.source
    assert "plain FGSM found no gradient on 64% of the images: it did not attack them" in page.text


def test_headline_takes_the_artefact_with_the_lowest_worst_case(report, results):
    measured = results()
    weaker = [
        replace(row, correct_top1=1) if row.backend == "onnxruntime" and row.attack == WORST_CASE else row
        for row in measured.rows
    ]
    page = report(dataclasses.replace(measured, rows=tuple(weaker)))
    assert float(page.cards[0]["data-worst-case"]) == 0.001
    assert "lowest of its artefacts: onnxruntime fp16 transfer" in page.text


def test_comparison_shows_every_budget_artefact_threat_and_unattacked_share(report, results, undefended):
    page = report(undefended, results())
    table = page.source[page.source.index('id="comparison"') : page.source.index('id="curves"')]
    assert table.count('<th scope="row" class="c-model">') == 2 * 2 * 2
    assert table.count("63.7% not attacked") == 4 and "0.0% not attacked" not in table
    gradient = re.findall(r'<td class="c-gradient" data-label="gradient">(.*?)</td>', table)
    assert [re.sub("<.*?>", "", cell) for cell in gradient[:2]] == [
        "16.2% 14.0–18.6% PGD margin, white-box",
        "14.0% 12.0–16.3% PGD margin, white-box",
    ]
    assert len(gradient) == 8 and sum("transfer" in cell for cell in gradient) == 4
    # every figure of every attack is further down, threat and parameters with it
    for attack in ("fgsm", "fgsm-rescaled", "fgsm-rs", "pgd-margin", "worst-case"):
        assert table.count(f"<code>{attack}</code>") == 2 * 2 * 2
    assert "35.0%" in table and "32.1–38.0%" in table and table.count("all 11 rows") == 4


def test_a_threat_and_a_count_of_its_own_are_said_at_the_figure(report, results):
    measured = results(backends=(("torch", "fp32", "white-box"),))
    rows = [
        replace(row, threat="query", n=200, correct_top1=10, correct_top5=20) if row.attack == "pgd-margin" else row
        for row in measured.rows
    ]
    page = report(dataclasses.replace(measured, rows=tuple(rows)))
    cells = re.findall(r'<td class="c-gradient".*?</td>', page.source)
    assert len(cells) == 2
    assert all("query" in cell and "n&nbsp;=&nbsp;200" in cell and "5.0%" in cell for cell in cells)


def test_latency_says_what_is_timed_and_leaves_p99_out_where_it_is_not_given(report, bench):
    page = report(bench())
    assert page.all("section", id="latency") and not page.cards
    assert "This page" not in page.text and "this page says nothing about accuracy or robustness" in page.text
    assert "paced 30 Hz" in page.text and "no capture or decoding" in page.text and "2 threads" in page.text
    assert '<td data-label="p99 ms">–</td>' in page.source and '<td data-label="p99 ms">11.40</td>' in page.source
    assert '<td data-label="before">2700</td><td data-label="after">2698</td>' in page.source
    assert '<td data-label="before">0.1, 0.2, 0.1</td><td data-label="after">–</td>' in page.source


def test_parts_of_a_call_energy_and_warnings_are_shown(report, bench):
    plain = report(bench())
    assert "mJ/image" not in plain.source and "Energy" not in plain.text and not plain.all("p", **{"class": "warning"})
    rows = list(bench().rows)
    rows[1] = replace(
        rows[1], energy_mj_per_image=41.24, energy_source="tegrastats every 100 ms: the whole module (VDD_IN)"
    )
    rows.append(replace(rows[1], stage="compute", energy_mj_per_image=None, includes="the <model> alone"))
    page = report(bench(rows=tuple(rows), warnings=("GPU 0 was held back by SwPowerCap & more",)))
    assert page.source.count('<td data-label="mJ/image">41.24</td>') == 1
    assert page.source.count('<td data-label="mJ/image">–</td>') == 3
    assert "idle parts included: tegrastats every 100 ms: the whole module (VDD_IN)." in page.text
    assert '<th scope="row">compute</th>' in page.source and "the <model> alone" in page.text
    assert "GPU 0 was held back by SwPowerCap & more" in page.text and len(page.all("p", **{"class": "warning"})) == 1
    assert not page.misplaced and not page.open


def test_processor_time_is_shown_with_how_threads_waited(report, bench):
    plain = report(bench())
    assert "CPU ms" not in plain.source
    first = next(row for row in bench().rows if row.mode == "paced")
    rows = [
        replace(first, spin=spin, stage="end-to-end", cpu_ms_per_image=ms)
        for spin, ms in ((True, 19.31), (False, 3.62))
    ]
    page = report(bench(rows=(*bench().rows, *rows)))
    for ms, how in ((19.31, "spinning"), (3.62, "sleeping")):
        assert page.source.count(f'<td data-label="CPU ms">{ms}</td>') == 1
        assert f"paced 30 Hz, {how}" in page.text
    assert page.source.count('<td data-label="CPU ms">–</td>') == len(bench().rows)
    assert "that of waiting included" in page.text
    assert not page.misplaced and not page.open


def test_plans_are_named_and_a_declared_precision_is_in_sight(report, results, bench, plan):
    plain = report(results(), bench())
    assert "precision" not in plain.text and "Plan of" not in plain.text
    measured = results(backends=(("tensorrt", "int8-s8s8", "transfer"), ("torch", "fp32", "white-box")))
    rows = [replace(row, engine=plan() if row.backend == "tensorrt" else None) for row in measured.rows]
    timed = bench()
    fast = plan(plan_sha256="e" * 64, profile=[1, 8, 32], precision="verified")
    page = report(
        dataclasses.replace(measured, rows=tuple(rows)),
        dataclasses.replace(timed, rows=tuple(replace(row, engine=fast) for row in timed.rows)),
    )
    sentences = re.findall(r'<span class="detail plan">(.*?)</span>', page.source)
    assert sentences == [
        "plan 0123456789ab, batch 1, precision declared, not verified",
        "plan eeeeeeeeeeee, batch 1 to 32, best 8, precision verified",
    ]
    headline = page.source[: page.source.index('id="comparison"')]
    # at the headline if it is that artefact, and at its line among the artefacts
    assert headline.count('<span class="threat declared">precision declared</span>') == 2
    assert page.text.count("Plan of tensorrt int8-s8s8") == 1 and page.text.count("Plan of onnxruntime fp16") == 1
    assert "e" * 64 in page.text and "driver 540.4.0" in page.text
    assert not page.misplaced and not page.open


def test_two_models_on_one_artefact_each_name_their_plan(report, results, plan):
    def run(title, sha256):
        measured = results(title=title, backends=(("tensorrt", "fp16", "transfer"),))
        rows = tuple(replace(row, engine=plan(plan_sha256=sha256, precision="verified")) for row in measured.rows)
        return dataclasses.replace(measured, rows=rows)

    page = report(run("one", "a" * 64), run("other", "b" * 64))
    assert re.findall(r'<span class="detail plan">(.*?)</span>', page.source) == [
        "one: plan aaaaaaaaaaaa, batch 1, precision verified",
        "other: plan bbbbbbbbbbbb, batch 1, precision verified",
    ]
    assert "precision declared" not in page.text


@pytest.mark.parametrize(
    "engine", ["a plan", [], {}, {"plan_sha256": "ab" * 32, "profile": [1, 1, 1], "precision": "FINE"}]
)
def test_a_plan_that_is_not_whole_is_one_clear_error(results, bench, tmp_path, engine):
    for kind, measured in (("results", results()), ("bench", bench())):
        path = tmp_path / f"{kind}.json"
        value = measured.to_json()
        value["rows"][0]["engine"] = engine
        write_json(path, value)
        with pytest.raises(SchemaError, match="not a complete"):
            build_report([path], tmp_path / "report.html")


def test_images_left_out_for_calibration_are_counted_where_the_data_is(report, results, undefended):
    data = results().to_json()["data"]
    page = report(results(data=data | {"calibration_left_out": 1024}), undefended)
    said = "regnet_y_400mf, papernot T=40: 1,024 images that int8 was calibrated on were left out, for every artefact."
    assert said in page.text and page.text.count("were left out") == 1
    assert "were left out" not in report(results(data=data | {"calibration_left_out": 0})).text
    for broken in ("many", -1, None, True):
        with pytest.raises(SchemaError, match="not a complete"):
            report(results(data=data | {"calibration_left_out": broken}))


def test_training_images_among_the_data_are_told_where_the_figures_are(report, results, undefended):
    data = results().to_json()["data"]
    n = data["n"]
    page = report(results(data=data | {"training_images": n // 2}), undefended)
    said = f"{n // 2} of {n} images were trained on: these figures flatter."
    assert page.text.count(said) == 2 and f"regnet_y_400mf, papernot T=40: {said}" in page.text
    few = report(results(data=data | {"training_images": 1})).text
    assert f"1 of {n} images were trained on." in few and "these figures flatter" not in few
    assert "trained on" not in report(results(data=data | {"training_images": 0})).text
    assert (
        "whether the images were trained on is not known" in report(results(data=data | {"training_images": None})).text
    )
    # an older file does not tell
    assert "trained on" not in report(results()).text
    for broken in ("many", -1, True, 0.5):
        with pytest.raises(SchemaError, match="not a complete"):
            report(results(data=data | {"training_images": broken}))


def test_one_device_in_two_states_is_refused_and_two_devices_are_not(report, bench, tmp_path):
    def run(mode, processor="ARMv8"):
        state = {"power_mode": mode}
        return bench(environment={"processor": processor}, conditions={"before": state, "after": state})

    assert report(run("15W"), run("15W"), run("MAXN", processor="ARMv9")).all("section", id="latency")
    (tmp_path / "report.html").unlink()
    with pytest.raises(InputError, match=r"0\.json and .*1\.json cannot be compared: .*power_mode 15W and MAXN"):
        report(run("15W"), run("MAXN"))
    assert not (tmp_path / "report.html").exists()


def test_examples_evidence_and_provenance_are_there(report, results, bench):
    page = report(results(), bench())
    images = page.all("img")
    assert len(images) == 3 and all(image["src"].startswith("data:image/png;base64,") for image in images)
    assert all(image["class"] == "pixelated" and image["width"] == "32" for image in images)
    assert "perturbation × 15.9" in page.text and "88.1%" in page.text
    assert "637 images have no gradient." in page.text and "gained 4 · lost 2" in page.text
    for words in ("provenance.temperature 40", "cat/0173.jpg: cut", "versions.numpy 2.0", "torch runs fp32 only"):
        assert words in page.text
    assert "ef" * 32 in page.text and "0.json" in page.text and "2026-02-03 11:00:00 UTC" in page.text


def test_large_images_are_not_pixelated(report, results, picture):
    page = report(results(examples=(picture(clean_size=200),)))
    assert ["class" in image for image in page.all("img")] == [False, True, True]


def test_names_from_files_never_become_markup(report, results, bench, picture):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&{{ 7 * 7 }}"
    measured = results(
        {("fgsm", "8/255"): 10, (evil, "8/255"): 5, (WORST_CASE, "8/255"): 3},
        title=evil,
        backends=((evil, evil, "query"),),
        examples=(picture(label=evil, artefact=evil, clean_prediction=evil, adversarial_prediction=evil, attack=evil),),
        data={"name": evil, "split": evil, "n": 1000, "unreadable": [evil]},
        environment={"processor": evil, "versions": {evil: evil}},
        skipped=({"backend": evil, "variant": evil, "reason": evil},),
        masking={"verdict": "PASS", "evidence": [{"rule": evil, "eps": evil, "finding": None, "text": evil}]},
        created=evil,
        edgeadv_version=evil,
    )
    timed = bench(title=evil)
    rows = tuple(replace(row, device=evil, variant=evil, includes=evil) for row in timed.rows)
    state = Conditions(power_mode=evil, temperatures_c={evil: 40.0})
    page = report(measured, dataclasses.replace(timed, rows=rows, conditions={"before": state, "after": state}))
    assert page.text.count("<script>alert(1)</script>") > 20 and "49" not in re.findall(r"&(\d+)", page.text)
    assert not page.all("script")
    assert not [have for _, have in page.elements if any(key.startswith("on") for key in have)]
    assert {image["src"][:22] for image in page.all("img")} == {"data:image/png;base64,"}
    assert not page.misplaced and not page.open


def test_page_reaches_for_nothing_outside_itself(report, results, undefended, bench):
    page = report(undefended, results(), bench())
    assert not page.misplaced and not page.open
    references = [have[key] for _, have in page.elements for key in ("src", "href", "srcset", "action") if key in have]
    assert references and all(reference.startswith(("data:", "#")) for reference in references)
    assert "://" not in page.source and "@import" not in page.source and "url(" not in page.source
    targets = {have["id"] for _, have in page.elements if "id" in have}
    assert {reference[1:] for reference in references if reference.startswith("#")} <= targets
    policy = page.all("meta", http_equiv="Content-Security-Policy")[0]["content"]
    style = page.source.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"'sha256-{digest}'" in policy and "unsafe" not in policy
    # the policy would refuse them
    assert not [have for _, have in page.elements if "style" in have]


def test_same_files_give_the_same_bytes(report, results, undefended, bench, tmp_path):
    report(undefended, results(), bench(), out="first.html")
    report(undefended, results(), bench(), out="second.html")
    assert (tmp_path / "first.html").read_bytes() == (tmp_path / "second.html").read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"counts": {}}, "No worst case was measured"),
        ({"counts": {}, "rows": ()}, "No worst case"),
        ({"counts": {("fgsm", "8/255"): 500}}, "No worst case"),
        ({"masking": {"verdict": "UNCHECKED"}}, "The file lists no evidence."),
        ({"top5": False, "zero": None, "examples": (), "skipped": ()}, "all 11 rows"),
        ({"counts": {(WORST_CASE, "8/255"): 1000}, "clean": 1000}, "100.0%"),
        ({"counts": {("a new attack", "1/255"): 3, (WORST_CASE, "1/255"): 2}}, "a new attack 0.3%"),
        ({"bundle": {"id": "1", "name": "a name"}}, "a name"),
    ],
)
def test_missing_pieces_still_give_a_page(report, results, changes, words):
    page = report(results(**changes))
    assert words in page.text and len(page.cards) == 1
    assert not re.search(r"\b(None|nan|inf)\b", page.text)
    assert not page.misplaced and not page.open


def test_two_runs_of_one_model_stay_apart(report, results):
    page = report(results(), results())
    assert [card["data-model"] for card in page.cards] == [f"regnet_y_400mf, papernot T=40 ({i}.json)" for i in (0, 1)]


def test_an_eps_that_is_no_grey_level_is_written_as_a_number(report, results):
    measured = results({("fgsm", "8/255"): 100, (WORST_CASE, "8/255"): 50})
    rows = tuple(row if row.attack == "clean" else replace(row, eps="0.03", eps_value=0.03) for row in measured.rows)
    page = report(dataclasses.replace(measured, rows=rows))
    assert page.cards[0]["data-eps"] == "0.03" and "eps, pixels in [0, 1]" in page.text


def test_no_input_is_an_error(tmp_path):
    with pytest.raises(InputError, match="at least one"):
        build_report([], tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_inputs_that_cannot_be_meant(results, tmp_path):
    path = tmp_path / "results.json"
    results().save(path)
    with pytest.raises(InputError, match="named twice"):
        build_report([path, tmp_path / "." / "results.json"], tmp_path / "report.html")
    with pytest.raises(InputError, match="one of the files"):
        build_report([path], path)
    with pytest.raises(BundleError, match="does not exist"):
        build_report([tmp_path / "missing.json"], tmp_path / "report.html")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "bundle"},
        {"schema_version": 2},
        {"masking": {"verdict": "FINE", "evidence": []}},
        {"masking": {}},
        {"masking": {"verdict": "PASS", "evidence": [{"rule": "r", "text": "t", "finding": "FINE"}]}},
        {"bundle": {}},
        {"data": "CIFAR-10"},
        {"skipped": ["torch"]},
        {"examples": [{}]},
    ],
)
def test_a_file_that_is_not_ours_or_not_whole_is_one_clear_error(results, tmp_path, change):
    path = tmp_path / "results.json"
    write_json(path, results().to_json() | change)
    with pytest.raises(SchemaError, match=r"results\.json"):
        build_report([path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "change", [{"correct_top1": 1001}, {"n": 0}, {"eps_value": 0.0}, {"eps_value": "8"}, {"zero_gradient_share": 2}]
)
def test_rows_that_cannot_be(results, tmp_path, change):
    path = tmp_path / "results.json"
    value = results().to_json()
    value["rows"][1] |= change
    write_json(path, value)
    with pytest.raises(SchemaError, match="not a complete"):
        build_report([path], tmp_path / "report.html")


@pytest.mark.parametrize(
    "change",
    [{"p50_ms": 99.0}, {"max_ms": "slow"}, {"p90_ms": None}, {"energy_mj_per_image": 0}, {"energy_mj_per_image": "x"}],
)
def test_latencies_that_cannot_be(bench, tmp_path, change):
    path = tmp_path / "bench.json"
    bench().save(path)
    value = read_json(path, what="bench file")
    value["rows"][0] |= change
    write_json(path, value)
    with pytest.raises(SchemaError, match="not a complete"):
        build_report([path], tmp_path / "report.html")


@pytest.mark.parametrize("text", ["not base64!", base64.b64encode(b"GIF89a").decode(), ""])
def test_an_example_that_is_no_png(results, picture, tmp_path, text):
    path = tmp_path / "results.json"
    write_json(path, results().to_json() | {"examples": [picture(adversarial_png=text)]})
    with pytest.raises(SchemaError, match="example image"):
        build_report([path], tmp_path / "report.html")


def test_a_page_that_cannot_be_written(results, tmp_path):
    path = tmp_path / "results.json"
    results().save(path)
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(StorageError, match="cannot write"):
        build_report([path], tmp_path / "taken" / "report.html")


def test_without_the_extra_the_error_names_it(results, tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    results().save(path)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependencyError, match=r"edgeadv\[report\]"):
        build_report([path], tmp_path / "report.html")


def test_template_and_style_lie_in_the_package():
    assert all((files("edgeadv.reporting") / name).is_file() for name in ("template.html.j2", "style.css"))


def told_confidence(**changes):
    bins = [{"n": 0, "confidence": 0.0, "accuracy": 0.0}] * 13
    return {
        "temperature": 1.8,
        "n": 500,
        "n_held_out": 400,
        "nll_before": 0.62,
        "nll_after": 0.51,
        "ece_before": 0.5,
        "ece_after": 0.5,
        "rejection": {"coverage": 0.95, "threshold": 0.41, "answered": 384, "wrong": 60, "wrong_answered": 44},
        "data": {"name": "<b>photos", "split": "test"},
        "reliability": {
            "before": [
                *bins,
                {"n": 100, "confidence": 0.9, "accuracy": 0.7},
                {"n": 300, "confidence": 1.0, "accuracy": 0.9},
            ],
            "after": [
                *bins,
                {"n": 100, "confidence": 0.9, "accuracy": 0.86},
                {"n": 300, "confidence": 0.95, "accuracy": 0.95},
            ],
        },
    } | changes


def test_confidence_is_shown_with_its_table(report, results):
    plain = results()
    page = report(results(bundle=plain.to_json()["bundle"] | {"confidence": told_confidence()}))
    assert "Temperature 1.800, fitted on 500 images of <b>photos (test)" in page.text
    # a quarter is off by 0.2 and the rest by 0.1; then a quarter by 0.04
    assert "expected calibration error 12.5% without it, 1.0% with it" in page.text
    assert "96.0% were (93.6–97.5%) , 44 of them wrong; of all 400, 60 are wrong" in page.text
    assert "87% to 93% 100 90.0% 70.0% 100 90.0% 86.0%" in page.text
    assert page.text.count("0.86") == 0 and not page.misplaced
    assert "says nothing about images of another kind, and nothing under attack" in page.text
    assert 'id="confidence"' not in report(plain).source


@pytest.mark.parametrize(
    "value",
    [
        7,
        {},
        told_confidence(temperature=0),
        told_confidence(n_held_out=401),
        told_confidence(n="500"),
        told_confidence(reliability={"before": [], "after": []}),
        told_confidence(nll_after=None),
        told_confidence(
            rejection={"coverage": 0.95, "threshold": 0.41, "answered": 384, "wrong": 60, "wrong_answered": 61}
        ),
    ],
)
def test_a_confidence_that_does_not_fit_together_is_refused(report, results, value):
    with pytest.raises(SchemaError, match=r"not a complete results file \(bundle\.confidence"):
        results(bundle=results().to_json()["bundle"] | {"confidence": value})


def in_l2(measured: Results) -> Results:
    """The same with budgets that are lengths: 2/255 is 0.5, 8/255 is 2."""
    lengths = {"2/255": ("0.5", 0.5), "8/255": ("2", 2.0)}
    rows = [
        row
        if row.attack == CLEAN
        else replace(row, eps=lengths[row.eps][0], eps_value=lengths[row.eps][1], params=replace(row.params, norm="l2"))
        for row in measured.rows
    ]
    return dataclasses.replace(measured, rows=tuple(rows), comparisons=(), examples=())


def test_budgets_in_l2_may_be_above_1_and_say_what_they_are(report, results):
    page = report(in_l2(results()))
    assert page.cards[0]["data-eps"] == "2" and "at eps 2 (L2)" in page.text
    assert "eps, L2 length over all pixels" in page.text and "pixels in [0, 1]" not in page.text
    assert page.source.count('<th scope="col">eps (L2)</th>') >= 2
    assert "(L2)" not in report(results()).text


def test_two_norms_are_two_reports(report, results):
    with pytest.raises(InputError, match="eps is measured in linf in some of these results, and in l2 in others"):
        report(results(), in_l2(results()))


def test_equal_titles_and_file_names_are_told_apart_by_their_folders(tmp_path, results, bench, taken_apart):
    files = []
    for folder in ("a/x", "b/x", "c"):
        for name, measured in (("results.json", results()), ("bench.json", bench())):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            files.append(tmp_path / folder / name)
            measured.save(files[-1])
    build_report(files, tmp_path / "report.html")
    page = taken_apart((tmp_path / "report.html").read_text())
    titles = {card["data-model"] for card in page.cards}
    assert titles == {f"regnet_y_400mf, papernot T=40 ({place}/results.json)" for place in ("a/x", "b/x", "c")}
    assert all(f"({place}/bench.json)" in page.text for place in ("a/x", "b/x", "c"))


def refused_with(path, measured, key, value):
    """Write ``measured`` with another value of ``key``, in the file or in its second row, and see that it is said of
    the file."""
    measured.save(path)
    content = read_json(path, what="measurement")
    (content if key == "created" else content["rows"][1])[key] = value
    write_json(path, content)
    with pytest.raises(SchemaError, match=r"is not a complete (results|bench) file .*: Expected"):
        build_report([path], path.with_suffix(".html"))


@pytest.mark.parametrize("value", [True, [], 7, None])
@pytest.mark.parametrize("key", ["device", "provider", "eps", "created"])
def test_what_is_no_text_is_said_of_the_file(tmp_path, results, key, value):
    refused_with(tmp_path / "r.json", results(), key, value)


@pytest.mark.parametrize("value", [True, [], 7])
@pytest.mark.parametrize("key", ["device", "mode", "stage", "created"])
def test_what_is_no_text_in_a_bench_is_said_of_the_file(tmp_path, bench, key, value):
    refused_with(tmp_path / "b.json", bench(), key, value)

"""Which files make a card together, what it says of signature and training, and that other people's words are no
markup."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from markdown_it import MarkdownIt

from edgeadv.workflows.reporting import card
from edgeadv_runtime import Bundle, Results
from edgeadv_runtime.errors import InputError, IntegrityError
from tests.edgeadv.reporting.cards import Measured, command, measure

HOSTILE = '<script>alert("x")</script> | **a** `b` [c](javascript:d) --- é\u202e\U0001f600\n# e: {f}'


@pytest.fixture
def of_run(tmp_path: Path, run: Path, split: Path) -> Measured:
    """A network of a training, exported by the command."""
    bundle = tmp_path / "run.edgeadv"
    assert command("export", run, "--out", bundle) == 0
    options = ("--eps", "8/255", "--attack", "fgsm", "--precision", "fp32")
    return measure(bundle, tmp_path, "--data", split / "test", *options)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which the command ends with 2."""
    capsys.readouterr()
    assert command("card", *arguments) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert len(line) <= 300 and not said.out
    return line


def test_files_of_another_bundle_are_refused(
    int8: Measured, masked: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "card.html"
    assert "is of another bundle" in refused(capsys, masked.results, "--bundle", int8.bundle, "--out", out)
    line = refused(capsys, int8.results, masked.bench, "--bundle", int8.bundle, "--out", out)
    assert "bench.json is of another bundle" in line
    value = json.loads(int8.results.read_text(encoding="utf-8"))
    for row in value["rows"]:
        row["artifact_sha256"] = "ab" * 32
    value["comparisons"] = []
    (tmp_path / "other.json").write_text(json.dumps(value))
    assert "which is no artefact of" in refused(capsys, tmp_path / "other.json", "--bundle", int8.bundle, "--out", out)
    assert "at least one results file" in refused(capsys, int8.bench, "--bundle", int8.bundle, "--out", out)
    assert not out.exists()


def changed(results: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A results file of which something is different."""
    value = json.loads(results.read_text(encoding="utf-8"))
    change(value)
    out.write_text(json.dumps(value))
    return out


def only(eps: str) -> Callable[[dict[str, Any]], None]:
    """Leave one budget."""

    def change(value: dict[str, Any]) -> None:
        value["rows"] = [row for row in value["rows"] if row["eps"] in ("0", eps)]
        value["comparisons"] = [pair for pair in value["comparisons"] if pair["eps"] in ("0", eps)]

    return change


def test_results_that_say_the_same_thing_twice_are_refused(
    int8: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = shutil.copyfile(int8.results, tmp_path / "again.json")
    line = refused(capsys, int8.results, again, "--bundle", int8.bundle, "--out", tmp_path / "card.html")
    assert "both say what onnxruntime fp32 on the same images does" in line
    assert "named twice" in refused(capsys, again, again, "--bundle", int8.bundle, "--out", tmp_path / "card.html")


def test_two_budgets_in_two_files_are_one_card_unless_they_contradict_each_other(
    int8: Measured, tmp_path: Path
) -> None:
    small = changed(int8.results, tmp_path / "small.json", only("0.05"))
    large = changed(int8.results, tmp_path / "large.json", only("0.1"))
    both = card([small, large], int8.bundle)
    assert [[worst.eps for worst in score.worst_cases] for score in both.scores] == [["0.05"]] * 3 + [["0.1"]] * 3
    assert both.headline.worst_case == card(int8.results, int8.bundle).headline.worst_case

    def lower(value: dict[str, Any]) -> None:
        only("0.05")(value)
        value["comparisons"] = []
        for row in value["rows"]:
            if row["eps"] != "0":
                row["correct_top1"], row["correct_top5"] = 0, None
                for key in ("top1", "top1_ci95", "top5", "top5_ci95"):
                    row.pop(key)

    broken = changed(int8.results, tmp_path / "broken.json", lower)
    with pytest.raises(InputError, match="evaluate both in one run"):
        card([broken, large], int8.bundle)

    def clean(value: dict[str, Any]) -> None:
        only("0.1")(value)
        value["comparisons"] = []
        for row in value["rows"]:
            if row["eps"] == "0":
                row["correct_top1"] -= 1
                for key in ("top1", "top1_ci95", "top5", "top5_ci95"):
                    row.pop(key)

    with pytest.raises(InputError, match="without an attack"):
        card([small, changed(int8.results, tmp_path / "less.json", clean)], int8.bundle)


@pytest.mark.parametrize("name", ["card.pdf", "card", "card.HTML"])
def test_another_ending_is_refused_before_anything_is_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, tmp_path / "none.json", "--bundle", tmp_path / "none", "--out", tmp_path / name)
    assert "call it card.html, card.json or card.md" in line and "--out" in line


def test_a_card_does_not_replace_what_it_is_of(int8: Measured, capsys: pytest.CaptureFixture[str]) -> None:
    before = int8.results.read_bytes()
    line = refused(capsys, *int8.files, "--bundle", int8.bundle, "--out", int8.results)
    assert "one of the files that the card is of" in line and int8.results.read_bytes() == before


def test_the_signature_is_what_the_key_says(int8: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = shutil.copytree(int8.bundle, tmp_path / "signed.edgeadv")
    assert card(int8.results, bundle).signature.state == "none"
    keys = []
    for name in ("own", "other"):
        private = Ed25519PrivateKey.generate()
        secret, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.public.pem"
        secret.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        keys.append((secret, public))
    (secret, public), (_, other) = keys
    assert command("bundle", "sign", bundle, "--key", secret) == 0
    unchecked = card(int8.results, bundle)
    assert unchecked.signature.state == "unchecked"
    said = [line for limit in unchecked.limits for line in limit.lines]
    assert any("whose signature it is was not checked" in line for line in said)
    fits = card(int8.results, bundle, public_key=public)
    assert fits.signature.state == "fits"
    assert fits.signature.public_key_sha256 == hashlib.sha256(public.read_bytes()).hexdigest()
    with pytest.raises(IntegrityError):
        card(int8.results, Bundle.open(bundle), public_key=other)
    line = refused(capsys, int8.results, "--bundle", bundle, "--public-key", other, "--out", tmp_path / "card.html")
    assert "signed with another key" in line


def test_training_and_the_commands_that_repeat_it(of_run: Measured, split: Path, tmp_path: Path) -> None:
    made = card(of_run.files, of_run.bundle)
    about = made.training
    assert (about.data, about.images, about.stage["epochs"], about.listed_images) == ("split", 64, 1, 64)
    assert about.recipe["recipe"] == "undefended" and about.config["seed"] == 0 and about.versions["torch"]
    commands = [line for each in made.commands for line in each.lines]
    assert [line.split()[1] for line in commands] == ["train", "export", "evaluate", "bench"]
    places = {"split": str(split), "DATA": str(split / "test"), "RUN": str(tmp_path / "again")}
    places |= {"BUNDLE": str(tmp_path / "again.edgeadv"), "RESULTS.json": str(tmp_path / "r2.json")}
    places |= {"BENCH.json": str(tmp_path / "b2.json")}
    for line in commands:
        words = [places.get(word, word) for word in shlex.split(line)[1:]]
        assert command(*words) == 0, line
    repeated = card([tmp_path / "r2.json", tmp_path / "b2.json"], tmp_path / "again.edgeadv")
    assert [score.worst_cases for score in repeated.scores] == [score.worst_cases for score in made.scores]
    assert (repeated.training.recipe, repeated.training.config) == (about.recipe, about.config)
    assert [line for each in repeated.commands for line in each.lines] == commands


@pytest.fixture
def hostile(rewritten: Callable[..., Path], tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> Measured:
    """Names that are markup, in a title, a class and a recipe."""
    classes = [each.to_json() for each in tiny_bundle.manifest.classes]
    classes[0]["name"] = HOSTILE
    recipe = {"recipe": HOSTILE, "file": "/home/somebody/secret/teacher.pth"}
    bundle = rewritten(title=HOSTILE, classes=classes, provenance={"recipe": recipe})
    options = ("--eps", "8/255", "--attack", "fgsm", "--limit", "20", "--precision", "fp32")
    return measure(bundle, tmp_path, "--data", photos, *options)


def test_names_are_no_markup(hostile: Measured, tmp_path: Path) -> None:
    page = hostile.write(tmp_path / "card.html")
    assert "<script" not in page and "&lt;script&gt;" in page and "\u202e" not in page
    text = hostile.write(tmp_path / "card.md")
    assert "/home/somebody" not in text + page + hostile.write(tmp_path / "card.json") and "teacher.pth" in text
    _, front, body = text.split("---\n", 2)
    found = yaml.safe_load(front)
    assert found["library_name"] == "edgeadv" and found["tags"][0] == "image-classification"
    assert found["model-index"][0]["name"].startswith('<script>alert("x")</script> | **a**')
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    inner = [token for each in tokens for token in (each, *(each.children or ()))]
    assert not [token for token in inner if token.type in ("html_block", "html_inline", "link_open", "code_inline")]
    assert sum(token.type == "heading_open" and token.tag == "h1" for token in tokens) == 1
    assert sum(token.type == "table_open" for token in tokens) > 5


def test_front_matter_is_that_of_a_model_card(int8: Measured, of_run: Measured, tmp_path: Path) -> None:
    found = yaml.safe_load(of_run.write(tmp_path / "run.md").split("---\n", 2)[1])
    assert found["datasets"] == ["split"] and found["pipeline_tag"] == "image-classification"
    text = int8.write(tmp_path / "card.md")
    found = yaml.safe_load(text.split("---\n", 2)[1])
    assert {"onnx", "fp32", "fp16", "int8"} <= set(found["tags"]) and found["datasets"] == ["mnist5k"]
    ((result,),) = [entry["results"] for entry in found["model-index"]]
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"] == {"name": "mnist5k", "type": "mnist5k", "split": "test"}
    results = Results.load(int8.results)
    assert [metric["value"] for metric in result["metrics"]] == [
        row.top1
        for artefact in results.artefacts
        for attack, eps in (("clean", "0"), ("worst-case", "0.05"), ("worst-case", "0.1"))
        for row in results.select(artefact=artefact, attack=attack, eps=eps)
    ]

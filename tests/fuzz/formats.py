"""Every format that the project reads: which file of a whole is changed, how hashes are made to fit, who reads it."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.commands import leaves
from tests.fuzz import mutators
from tests.fuzz.seeds import TRAINED

SHA = hashlib.sha256


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        copies: what of the seeds is copied for each input; paths below their folder.
        changed: patterns of the files of which one is changed, below the copy.
        mutate: how.
        reads: what reads it, a function of the folder or a command line in which ``@`` is the folder; one is drawn.
        fits: makes hashes fit after a change of the file.
        extra: raises AssertionError for what was accepted and must not be.
        ones: whether a command may end with 1, which is a rule that failed.
    """

    copies: Sequence[str]
    changed: Sequence[str]
    mutate: mutators.Mutator
    reads: Sequence[Callable[[Path], object] | str]
    fits: Callable[[Path, Path], None] = lambda folder, file: None
    extra: Callable[[Path], None] = lambda folder: None
    ones: bool = False


def manifest_fits(folder: Path, file: Path) -> None:
    """Give a bundle the hashes of its files, and the id that it must have."""
    from edgeadv_runtime.bundle.manifest import bundle_id

    path = folder / "b.edgeadv" / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        if file != path:
            _hashes(manifest, {file.name: file})
        manifest["bundle_id"] = bundle_id(manifest)
        path.write_text(json.dumps(manifest))
    except (ValueError, TypeError, AttributeError, RecursionError, KeyError):
        return  # it is no JSON any more, and so has no id


def pack_fits(folder: Path, file: Path) -> None:
    """Give a pack the hashes of its shards."""
    path = folder / "p.pack" / "pack.json"
    if file != path:
        pack = json.loads(path.read_bytes())
        _hashes(pack, {file.name: file})
        path.write_text(json.dumps(pack))


def run_fits(folder: Path, file: Path) -> None:
    """Give a run the hashes of its files."""
    path = folder / "run" / "run.json"
    if file != path:
        found = json.loads(path.read_bytes())
        _hashes(found, {file.name: file, file.stem: file})
        path.write_text(json.dumps(found))


def _hashes(value: Any, files: dict[str, Path]) -> None:
    """Write the hash of each file where a document names it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, dict) and "sha256" in inner and (inner.get("file") or key) in files:
                content = files[inner.get("file") or key].read_bytes()
                inner["sha256"] = SHA(content).hexdigest()
                if "bytes" in inner:
                    inner["bytes"] = len(content)
            _hashes(inner, files)
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, dict) and inner.get("file") in files:
                inner["sha256"] = SHA(files[inner["file"]].read_bytes()).hexdigest()
            _hashes(inner, files)


def load_results(folder: Path) -> object:
    """Read results and judge them."""
    from edgeadv_runtime.records.results import Results

    found = Results.load(folder / "r.json")
    return found.gate(min_clean=0.5)


def agree(folder: Path) -> None:
    """Results that were read do not contradict themselves, by a rule of this file's own."""
    from edgeadv_runtime.errors import EdgeAdvError
    from edgeadv_runtime.records.results import Results

    try:
        rows = Results.load(folder / "r.json").rows
    except EdgeAdvError:
        return
    worst: dict[Any, int] = {}
    for row in rows:
        assert 0 <= row.correct_top1 <= row.n and row.n > 0, "counts"
        assert row.correct_top5 is None or row.correct_top1 <= row.correct_top5 <= row.n, "top-5 counts"
        if row.attack == "worst-case":
            worst[row.backend, row.variant, row.eps] = row.correct_top1
    for row in rows:
        limit = worst.get((row.backend, row.variant, row.eps))
        assert limit is None or row.attack == "clean" or limit <= row.correct_top1, "worst case above one of its rows"


def read_weights(folder: Path) -> object:
    """Read weights of PyTorch."""
    from edgeadv.models.checkpoints import read_weights as read

    return read(folder / "weights.pth")


def read_bundle_weights(folder: Path) -> object:
    """Read the weights of a bundle."""
    from edgeadv.models.checkpoints import read_weights as read

    return read(folder / "b.edgeadv" / "weights.safetensors")


def read_for_a_card(folder: Path) -> object:
    """What a card reads of a bundle."""
    from edgeadv.reporting import card_bundle as of
    from edgeadv_runtime.bundle.bundle import Bundle

    bundle = Bundle.open(folder / "b.edgeadv")
    source = of.manifest_of(bundle)
    return of.model(bundle, source), of.training(bundle, source), of.signed(bundle, source, None)


def read_bench(folder: Path) -> object:
    """Read a measurement."""
    from edgeadv_runtime.records.bench import Bench

    return Bench.load(folder / "bench.json")


def read_study(folder: Path) -> object:
    """Read a study."""
    from edgeadv_runtime.records.study import Study

    return Study.load(folder / "study" / "study.json")


def read_card(folder: Path) -> object:
    """Read a card."""
    from edgeadv_runtime.records.card import Card

    return Card.load(folder / "card.json")


def read_pack(folder: Path) -> object:
    """Read a pack whole."""
    from edgeadv_runtime.attacks.pack import AttackPack
    from edgeadv_runtime.bundle.bundle import Bundle

    return list(AttackPack.open(folder / "p.pack", bundle=Bundle.open(folder / "b.edgeadv")).batches([]))


def read_outcomes(folder: Path) -> object:
    """Read the outcomes of batches."""
    from edgeadv_runtime.evaluation.outcomes import BatchOutcome

    return [BatchOutcome.load(file, n_classes=2) for file in (folder / "r.json.partial").glob("batch-*.npz")]


def read_records(folder: Path) -> object:
    """Read the records of engines, and ask the cache for what they tell."""
    from edgeadv_runtime.engine.records import read_record

    return [read_record(file) for file in (folder / "cache").glob("*.json")]


def read_picture(folder: Path) -> object:
    """Classify pictures."""
    from edgeadv_runtime import Classifier
    from edgeadv_runtime.bundle.pictures import load

    with Classifier.open(folder / "b.edgeadv") as classifier:
        return [classifier.classify(load(file)) for file in sorted((folder / "pictures").iterdir())]


SHOW, VERIFY = "bundle show @/b.edgeadv", "verify @/b.edgeadv --backend onnxruntime"
EVALUATE = "evaluate @/b.edgeadv --pack @/p.pack --backend onnxruntime --precision fp32 --out @/out.json"
IMPORT = "import @/theirs.onnx --preprocess resize=16,crop=16 --scale 0..1 --color rgb --check"
CARD = "card @/r.json @/bench.json --bundle @/b.edgeadv --out @/card"
BUNDLE, MEASURED = ("b.edgeadv",), ("r.json", "bench.json")
FORMATS: dict[str, Format] = {
    "manifest": Format(
        BUNDLE,
        ("b.edgeadv/manifest.json",),
        mutators.as_json,
        (
            SHOW,
            SHOW,
            VERIFY,
            read_for_a_card,
            "doctor @/b.edgeadv",
            "bundle slim @/b.edgeadv --variant fp16 --out @/out",
        ),
        manifest_fits,
    ),
    "golden": Format(BUNDLE, ("b.edgeadv/golden.npz",), mutators.npz, (VERIFY, SHOW), manifest_fits),
    "training images": Format(
        (*BUNDLE, "p.pack"), ("b.edgeadv/training-images.npy",), mutators.npy, (SHOW, EVALUATE), manifest_fits
    ),
    "onnx of a bundle": Format(
        BUNDLE,
        ("b.edgeadv/model.fp32.onnx",),
        mutators.onnx,
        (VERIFY + " --precision fp32", "engine @/b.edgeadv --explain --target sm_86 --precision fp32"),
        manifest_fits,
    ),
    "safetensors": Format(
        BUNDLE,
        ("b.edgeadv/weights.safetensors",),
        mutators.safetensors,
        (read_bundle_weights, read_for_a_card),
        manifest_fits,
    ),
    "signature": Format(
        (*BUNDLE, "key.pem", "public.pem"),
        ("key.pem", "public.pem", "b.edgeadv/manifest.json.sig"),
        mutators.text,
        (SHOW + " --public-key @/public.pem", "bundle sign @/b.edgeadv --key @/key.pem"),
    ),
    "pack": Format((*BUNDLE, "p.pack"), ("p.pack/pack.json",), mutators.as_json, (read_pack, EVALUATE)),
    "shard": Format((*BUNDLE, "p.pack"), ("p.pack/*.npz",), mutators.npz, (read_pack, read_pack, EVALUATE), pack_fits),
    "results": Format(
        ("r.json",),
        ("r.json",),
        mutators.as_json,
        (load_results, "gate @/r.json --min-clean 0.5", "report @/r.json --out @/out.html"),
        extra=agree,
        ones=True,
    ),
    "bench": Format(
        ("bench.json",), ("bench.json",), mutators.as_json, (read_bench, "report @/bench.json --out @/out")
    ),
    "card": Format(("card.json",), ("card.json",), mutators.as_json, (read_card,)),
    "what a card is of": Format(
        (*BUNDLE, *MEASURED), MEASURED, mutators.as_json, (f"{CARD}.html", f"{CARD}.md", f"{CARD}.json")
    ),
    "run": Format(("run",), ("run/run.json",), mutators.as_json, ("runs @", "export @/run --out @/out")),
    "run's weights": Format(
        ("run",), ("run/weights.safetensors",), mutators.safetensors, ("export @/run --out @/out",), run_fits
    ),
    "state": Format(
        ("data", "state"),
        ("state/state.bin",),
        mutators.training_state,
        (f"train --data @/data {TRAINED} --out @/state --resume",),
    ),
    "study": Format(("study",), ("study/study.json",), mutators.as_json, (read_study,)),
    "plan and outcomes": Format(
        (*BUNDLE, "p.pack", "r.json.partial"),
        ("r.json.partial/plan.json",),
        mutators.as_json,
        (EVALUATE.replace("--precision fp32 --out @/out.json", "--out @/r.json --resume"),),
    ),
    "outcomes": Format(("r.json.partial",), ("r.json.partial/*.npz",), mutators.npz, (read_outcomes,)),
    "perturbation": Format(
        (*BUNDLE, "p.npz", "pictures"),
        ("p.npz",),
        mutators.npz,
        ("camera @/b.edgeadv --source @/pictures --serve 127.0.0.1:0 --perturbation @/p.npz",),
    ),
    "engine record": Format(
        (*BUNDLE, "cache"),
        ("cache/*.json",),
        mutators.as_json,
        (read_records, "engine @/b.edgeadv --explain --target sm_86 --engine-cache @/cache"),
    ),
    "foreign onnx": Format(
        ("theirs.onnx", "pictures"),
        ("theirs.onnx",),
        mutators.onnx,
        (f"{IMPORT} --classes 4",),
    ),
    "weights of pytorch": Format(("weights.pth",), ("weights.pth",), mutators.torch_file, (read_weights,)),
    "classes": Format(
        ("theirs.onnx", "classes.tsv", "pictures"),
        ("classes.tsv",),
        mutators.text,
        (f"{IMPORT} --classes @/classes.tsv",),
    ),
    "pictures": Format(
        (*BUNDLE, "pictures"), ("pictures/*",), mutators.raw, (read_picture, "camera @/b.edgeadv --source @/pictures")
    ),
}

# of every kind of option, and of none
SHORT = """
-1 0 1 1.5 1e400 nan inf -inf 8/255 8/0 a a,b a,,b , fp32 fp32,fp32 %s --out 90s 9e9h 1,8,32 3,2,1
/dev/null /dev/full /dev/zero /nonexistent/x / . .. ~ http://[ [::1]:99999 127.0.0.1:99999 os:system
resize=1,crop=2 resize=999999999,crop=1 sm_86 sm_ hf-hub:a/b local-dir:/
@/b.edgeadv @/data @/pictures @/r.json @/run @/p.pack @/key.pem @/theirs.onnx @/x.py:f
"""
ODD = ["", " ", "\n", "\x00", "\x1b[31m", "\u202e", "\udcff", "9" * 5000, "1/9" + "9" * 400, "x" * 5000]
WORDS = [*SHORT.split(), *ODD]


def command_line(rng: random.Random) -> list[str]:
    """A subcommand with one or two of its options and arguments given values that are none."""
    name, command = rng.choice([(words, found) for words, found in leaves() if words != ("demo",)])
    whole = {
        "train": ["--data", "@/nowhere", "--arch", "timm/test_resnet", "--out", "@/out"],
        "bundle show": ["@/b.edgeadv"],
        "gate": ["@/r.json", "--min-clean", "0.5"],
        "report": ["@/r.json", "--out", "@/out.html"],
        "card": f"{CARD}.html".split()[1:],
        "evaluate": EVALUATE.split()[1:],
        "verify": VERIFY.split()[1:],
        "bench": ["@/b.edgeadv", "--runs", "1", "--warm-up", "0"],
        "camera": ["@/b.edgeadv", "--source", "@/pictures", "--duration", "1s"],
        "engine": ["@/b.edgeadv", "--explain"],
        "bundle slim": ["@/b.edgeadv", "--variant", "fp16", "--out", "@/out"],
        "attack": ["@/b.edgeadv", "--data", "@/nowhere", "--eps", "8/255", "--out", "@/out.pack"],
        "runs": ["@"],
    }
    given = [*name, *whole.get(" ".join(name), [])]
    for _ in range(rng.choice([1, 1, 2, 3])):
        parameter = rng.choice(command.params)
        option = next((text for text in parameter.opts if text.startswith("-")), None)
        value = rng.choice(WORDS)
        if option is None:
            given.append(value)
        elif getattr(parameter, "is_flag", False):
            given.append(option)
        else:
            given += [option, value] if rng.random() < 0.9 else [option]
    return given


def copy(seeds: Path, folder: Path, names: Sequence[str]) -> bool:
    """Fresh copies of ``names`` in an empty ``folder``; whether all are there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in names:
        source = seeds / name
        if not source.exists():
            return False
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copyfile(source, folder / name)
    return True

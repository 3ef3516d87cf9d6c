"""The public names: sorted, there, documented, and all that the documentation and the benchmarks use."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
PUBLIC = {
    "edgeadv": [
        "AttackPack",
        "AttackPlan",
        "Bench",
        "Bundle",
        "CallableAttack",
        "Card",
        "ConfidenceOptions",
        "Data",
        "DistillOptions",
        "EdgeAdvError",
        "Eps",
        "Execution",
        "ImportOptions",
        "InputError",
        "Int8Options",
        "ModelSource",
        "OnnxCheck",
        "PipelineComparison",
        "Pretrained",
        "RecipeOptions",
        "Results",
        "Run",
        "Study",
        "TensorRTPlan",
        "TrainConfig",
        "TrainJob",
        "TrainingDataOptions",
        "ZooNet",
        "__version__",
        "attack",
        "bench",
        "build_engines",
        "card",
        "check_onnx",
        "compare_pipelines",
        "configure",
        "distill",
        "evaluate",
        "export",
        "import_onnx",
        "list_runs",
        "load_data",
        "report",
        "study",
        "train",
        "verify",
        "zoo",
        "zoo_nets",
    ],
    "edgeadv_runtime": [
        "Attack",
        "AttackPack",
        "Backend",
        "BatchProfile",
        "Bench",
        "Bundle",
        "CallableAttack",
        "Classifier",
        "Crafted",
        "DataInfo",
        "EdgeAdvError",
        "EngineCache",
        "EngineOptions",
        "Eps",
        "InputError",
        "Label",
        "NoiseAttack",
        "OnnxRuntimeBackend",
        "Preprocess",
        "Results",
        "Row",
        "Smoother",
        "SquareAttack",
        "Stream",
        "TensorRTBackend",
        "__version__",
        "bench",
        "build_engine",
        "evaluate",
        "square",
        "verify",
    ],
    "edgeadv_export": [
        "TOLERANCES",
        "Asked",
        "Calibration",
        "ConfidencePlan",
        "Examined",
        "Int8Plan",
        "Origin",
        "calibration_images",
        "choose_calibration",
        "confidence_images",
        "data_frames",
        "examine",
        "export_bundle",
        "folder_frames",
        "gate_images",
        "imagenet_classes",
        "import_bundle",
        "read_classes",
    ],
    "edgeadv.attacks": [
        "L2",
        "NAMES",
        "Adversarial",
        "AutoSteps",
        "Ball",
        "GradientAttack",
        "Linf",
        "MomentumSteps",
        "Steps",
        "apgd",
        "apgd_targeted",
        "ascend",
        "ball",
        "build_attacks",
        "cross_entropy",
        "dlr",
        "fgsm",
        "input_gradient",
        "margin",
        "mi_fgsm",
        "no_direction",
        "pgd",
        "rescaled_cross_entropy",
        "targeted_dlr",
        "targeted_margin",
        "towards",
    ],
    "edgeadv.reporting": [
        "build_report",
    ],
}
SIGNATURES = {
    "edgeadv.attack": "bundle data eps out suite attacks plan provider uint8 resume progress",
    "edgeadv.bench": "bundle backends precisions batches runs warm_up rate_hz provider threads tensorrt out progress",
    "edgeadv.build_engines": (
        "bundle precisions batch targets library tf32 workspace engine_cache explain out progress built"
    ),
    "edgeadv.card": "measurements bundle out public_key",
    "edgeadv.distill": "arch data out recipe teacher eps epochs config options job progress",
    "edgeadv.evaluate": "bundle data eps suite attacks backends precisions pack plan execution out progress",
    "edgeadv.export": "source out precisions data frames classes preprocess normalize training int8 confidence "
    "keep_going overwrite progress",
    "edgeadv.check_onnx": "path frames options",
    "edgeadv.import_onnx": "path out frames options training overwrite progress",
    "edgeadv.list_runs": "folder",
    "edgeadv.compare_pipelines": "bundle other data limit variant progress",
    "edgeadv.configure": "threads wait",
    "edgeadv.load_data": "data test root download",
    "edgeadv.report": "measurements out bundles",
    "edgeadv.study": "arch data eps out n seed pretrained provider workers allow_unreadable resume progress",
    "edgeadv.train": "arch data out recipe eps epochs weights weights_map config options job progress",
    "edgeadv.verify": "bundle backends precisions provider tensorrt progress",
    "edgeadv.zoo": "name zoo_from",
    "edgeadv.zoo_nets": "",
    "edgeadv_runtime.bench": "bundle openers batches runs warm_up rate_hz progress keep",
    "edgeadv_runtime.build_engine": "bundle variant options library cache out progress",
    "edgeadv_runtime.evaluate": "bundle images backends infos data unreadable skipped examples overlap progress",
    "edgeadv_runtime.square": "predict x y eps queries seed p_init identity progress state",
    "edgeadv_runtime.verify": "bundle backends",
    "edgeadv_export.calibration_images": "spec run_data",
    "edgeadv_export.choose_calibration": "images preprocess count seed",
    "edgeadv_export.confidence_images": "spec classes run_data root limit",
    "edgeadv_export.data_frames": "data limit preprocess",
    "edgeadv_export.export_bundle": "model out classes preprocess frames variants origin int8 confidence keep_going "
    "overwrite progress",
    "edgeadv_export.examine": "path asked pixels",
    "edgeadv_export.import_bundle": (
        "path out classes preprocess frames asked provenance training_images overwrite progress"
    ),
    "edgeadv_export.folder_frames": "folder limit preprocess",
    "edgeadv_export.gate_images": "calibration classes folder run_data limit allow_training_images",
    "edgeadv_export.imagenet_classes": "",
    "edgeadv_export.read_classes": "path",
}
"""The parameters of every public function, in order."""
OURS = ("edgeadv", "edgeadv_runtime", "edgeadv_export")


@pytest.fixture(params=PUBLIC)
def module(request) -> ModuleType:
    return importlib.import_module(request.param)


def order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)


def test_all_is_what_we_promise(module):
    """Whoever changes ``__all__`` changes what applications may import: do it here too, and in the change log."""
    assert module.__all__ == PUBLIC[module.__name__]


def test_public_functions_have_the_parameters_we_promise(module):
    functions = {name: getattr(module, name) for name in module.__all__ if inspect.isfunction(getattr(module, name))}
    if module.__name__ not in OURS:
        return
    found = {
        f"{module.__name__}.{name}": " ".join(inspect.signature(each).parameters) for name, each in functions.items()
    }
    assert found == {name: text for name, text in SIGNATURES.items() if name.rpartition(".")[0] == module.__name__}
    # export takes a network of one's own too, which brings no classes and no preprocessing
    most = {"edgeadv.export": 14}
    assert all(len(text.split()) <= most.get(name, 12) for name, text in found.items())


def test_all_is_sorted_and_without_repetition(module):
    assert sorted(set(module.__all__), key=order) == list(module.__all__)


def test_every_name_exists(module):
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert missing == []


def test_every_name_is_documented(module):
    assert (module.__doc__ or "").strip()
    for name in module.__all__:
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            assert isinstance(value, (str, tuple, dict)), f"{name} is neither a class, a function nor a constant"
            continue
        own = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
        # a dataclass without a docstring is given its signature for one
        assert own and not own.startswith(f"{name}("), f"{module.__name__}.{name} has no docstring"


def test_every_public_function_shows_how_it_is_called(module):
    if module.__name__ not in OURS:
        return
    for name in module.__all__:
        if inspect.isfunction(value := getattr(module, name)):
            text = inspect.getdoc(value) or ""
            shown = re.findall(r"::\n\n((?: {4}.*\n|\n)+)", text + "\n")
            assert shown, f"{module.__name__}.{name} shows no call"
            calls = [node for node in ast.walk(ast.parse(textwrap.dedent(shown[0]))) if isinstance(node, ast.Call)]
            own = [call for call in calls if ast.unparse(call.func).rpartition(".")[2] == name]
            assert own, f"{module.__name__}.{name} is not called in its own example"
            parameters = inspect.signature(value).parameters
            for call in own:
                inspect.signature(value).bind(
                    *call.args, **{each.arg: each.value for each in call.keywords if each.arg}
                )
                assert {each.arg for each in call.keywords} <= parameters.keys()


def test_every_public_method_is_documented(module):
    for name in module.__all__:
        value = getattr(module, name)
        for attribute, member in vars(value).items() if inspect.isclass(value) else ():
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            # the wrapped function of a cached property
            function = getattr(function, "func", function)
            if not attribute.startswith("_") and inspect.isfunction(function):
                assert inspect.getdoc(function), f"{module.__name__}.{name}.{attribute} has no docstring"


def test_nothing_public_leaks(module):
    """A name without underscore in the module is in ``__all__``, or a submodule."""
    for name in module.__all__:  # some are loaded only now
        getattr(module, name)
    names = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    used_inside = {
        "edgeadv.reporting": {
            "Path",
            "Sequence",
            "InputError",
            "write_bytes",
            "load_inputs",
            "render",
            "Bundle",
            "seen",
        }
    }
    assert names - used_inside.get(module.__name__, set()) == {
        name for name in module.__all__ if not name.startswith("_")
    }


@pytest.mark.parametrize("name", ["edgeadv", "edgeadv_runtime"])
def test_what_is_loaded_when_it_is_used_is_what_type_checkers_see(name):
    module = importlib.import_module(name)
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        "." * node.level + (node.module or ""): " ".join(alias.name for alias in node.names)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    }
    assert seen == module._LAZY
    assert {*module._WHERE, "__version__"} == set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_the_runtime_loads_what_a_name_needs_when_the_name_is_used():
    code = """
import sys
import edgeadv_runtime
own = {name for name in sys.modules if name.startswith("edgeadv_runtime.")}
assert own == {"edgeadv_runtime._version"}, own
assert "Bundle" in dir(edgeadv_runtime) and "edgeadv_runtime.bundle" not in sys.modules
from edgeadv_runtime import Classifier, Eps
import pickle
assert pickle.loads(pickle.dumps(Eps.parse("8/255"))) == Eps.parse("8/255")
late = {"PIL.ImageFont", "onnxruntime", "tensorrt_rtx", "psutil", "pynvml", "packaging", "importlib.metadata"}
assert not late & sys.modules.keys(), late & sys.modules.keys()
from edgeadv_runtime import *
assert Classifier is edgeadv_runtime.Classifier and bench is edgeadv_runtime.bench
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def imported(source: str) -> list[tuple[str, str | None]]:
    """``(module, name)`` of every import of ours; the name is None for ``import module``."""
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").partition(".")[0] in OURS:
            found += [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names if alias.name.partition(".")[0] in OURS]
    return found


def problems(source: str) -> list[str]:
    """Imports of ours in ``source`` that do not exist, or that are private."""
    wrong = []
    for path, name in imported(source):
        if any(part.startswith("_") for part in path.split(".")) or (
            (name or "").startswith("_") and name != "__version__"
        ):
            wrong.append(f"{path}.{name} is private")
            continue
        try:
            module = importlib.import_module(path)
        except ImportError:
            wrong.append(f"{path} does not exist")
            continue
        if name is not None and not hasattr(module, name):
            try:
                importlib.import_module(f"{path}.{name}")
            except ImportError:
                wrong.append(f"{path} has no {name}")
    return wrong


def snippets(text: str) -> list[str]:
    """Python in a Markdown page: fenced blocks, and indented blocks that import something of ours."""
    fenced = re.findall(r"^```(?:python|py)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    indented = [
        "\n".join(line[4:] for line in block.splitlines())
        for block in re.findall(r"(?:^ {4}.*\n|^\s*\n)+", text, flags=re.MULTILINE)
        if re.search(r"^ {4}(from|import) edgeadv", block, flags=re.MULTILINE)
    ]
    return fenced + indented


def test_the_documentation_imports_only_what_exists_and_is_public():
    pages = [
        CHECKOUT / "README.md",
        *sorted((CHECKOUT / "docs").rglob("*.md")),
        *sorted((CHECKOUT / "benchmarks").rglob("*.md")),
    ]
    code = [(page, snippet) for page in pages for snippet in snippets(page.read_text(encoding="utf-8"))]
    assert any(imported(snippet) for _, snippet in code), "no page shows an import: the reader of pages is broken"
    assert [f"{page.name}: {text}" for page, snippet in code for text in problems(snippet)] == []


def test_the_benchmarks_use_only_public_names():
    scripts = sorted((CHECKOUT / "benchmarks").rglob("*.py"))
    assert [
        f"{script.name}: {text}" for script in scripts for text in problems(script.read_text(encoding="utf-8"))
    ] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from edgeadv_runtime import Bundle", 0),
        ("from edgeadv_runtime.benchmark.latency import bench", 0),
        ("from edgeadv_runtime.benchmark import latency", 0),
        ("import edgeadv_runtime.bundle.bundle", 0),
        ("from edgeadv_runtime import Bundel", 1),
        ("from edgeadv_runtime.bundles import Bundle", 1),
        ("from edgeadv_runtime._version import __version__", 1),
        ("from edgeadv_runtime.benchmark.latency import _row", 1),
        ("import edgeadv.cli._shared", 1),
        ("import numpy", 0),
    ],
)
def test_the_check_itself(source, found):
    assert len(problems(source)) == found


def test_the_reader_of_pages_itself():
    page = (
        "text\n\n```python\nimport edgeadv\n```\n\nIn Python:\n\n    from edgeadv_runtime import Bundle\n\n    "
        "Bundle.open('x')\n\nend\n"
    )
    fenced, indented = snippets(page)
    assert imported(fenced) == [("edgeadv", None)]
    assert imported(indented) == [("edgeadv_runtime", "Bundle")]

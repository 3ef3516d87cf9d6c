"""Who may import whom: a device must be able to load edgeadv_runtime and the command line without PyTorch."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
RUNTIME = CHECKOUT / "runtime" / "edgeadv_runtime"
TRAINING = CHECKOUT / "edgeadv"
EXPORT = CHECKOUT / "export" / "edgeadv_export"
NEVER_IN_RUNTIME = {"torch", "torchvision", "timm", "onnx", "edgeadv", "edgeadv_export"}
# what every device install has: the dependencies in pyproject.toml, by module
BASE = {"numpy", "PIL", "msgspec", "platformdirs", "packaging", "psutil", "pynvml"}
ONLY_INSIDE_FUNCTIONS = {
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "cv2",
    "av",
    "cryptography",
    "matplotlib",
    "jinja2",
    "safetensors",
    "mlxtend",
}
TORCH_SIDE = {"torch", "torchvision", "timm", "safetensors"}

# a module that is blocked here fails to import however it is asked for; prints what was imported
WALK = """
import importlib, json, pkgutil, sys
from importlib.abc import MetaPathFinder

roots, blocked, packages = json.loads(sys.argv[1])

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"blocked import of {name}")
        return None

sys.path[:0] = roots
assert not set(blocked) & {name.partition(".")[0] for name in sys.modules}
sys.meta_path.insert(0, Blocker())
done = []
for package in packages:
    module = importlib.import_module(package)
    done.append(package)
    for found in pkgutil.walk_packages(module.__path__, package + "."):
        if not found.name.endswith(".__main__"):
            importlib.import_module(found.name)
            done.append(found.name)
print(json.dumps({"done": done, "files": [importlib.import_module(name).__file__ for name in packages]}))
"""


def walk(packages: list[str], *, roots: Iterable[Path], blocked: set[str]) -> subprocess.CompletedProcess[str]:
    """Import every module below ``packages`` in a fresh interpreter in which ``blocked`` cannot be imported."""
    argument = json.dumps([[str(root) for root in roots], sorted(blocked), packages])
    return subprocess.run([sys.executable, "-c", WALK, argument], capture_output=True, text=True, check=False, cwd="/")


def modules(folder: Path, package: str) -> set[str]:
    """Dotted names of the modules below ``folder``."""
    names = set()
    for file in folder.rglob("*.py"):
        parts = [package, *file.relative_to(folder).with_suffix("").parts]
        names.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return {name for name in names if not name.endswith(".__main__")}


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Top-level package of every absolute import, and whether it runs when the module is loaded.

    ``importlib.import_module("x")``, ``__import__("x")`` and ``require("x")`` count; what only type checkers read does
    not.
    """

    def visit(node: ast.AST, at_load: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from visit(child, at_load)
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], at_load) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0], at_load
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__", "require") and isinstance(node.args[0].value, str):
                yield node.args[0].value.partition(".")[0], at_load
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_load and not inside)

    yield from visit(ast.parse(source), True)


def violations(files: Iterable[Path], names: set[str], *, at_load_only: bool = False) -> list[str]:
    """``file imports package`` for each import of ``names`` in ``files``."""
    return [
        f"{file.relative_to(file.anchor)} imports {name}"
        for file in files
        for name, at_load in imports(file.read_text(encoding="utf-8"))
        if name in names and (at_load or not at_load_only)
    ]


def test_every_runtime_module_loads_without_pytorch_and_without_any_engine():
    outcome = walk(["edgeadv_runtime"], roots=[RUNTIME.parent], blocked=NEVER_IN_RUNTIME | ONLY_INSIDE_FUNCTIONS)
    assert outcome.returncode == 0, outcome.stderr
    answer = json.loads(outcome.stdout)
    assert set(answer["done"]) == modules(RUNTIME, "edgeadv_runtime")
    assert len(answer["done"]) > 15
    assert answer["files"] == [str(RUNTIME / "__init__.py")]


@pytest.mark.parametrize(
    "line", ["import torch", "from edgeadv.models.builder import build", "import onnxruntime", "from torch import nn"]
)
def test_the_walk_catches_a_planted_import(tmp_path, line):
    shutil.copytree(RUNTIME, tmp_path / "edgeadv_runtime", ignore=shutil.ignore_patterns("__pycache__"))
    blocked = NEVER_IN_RUNTIME | ONLY_INSIDE_FUNCTIONS
    assert walk(["edgeadv_runtime"], roots=[tmp_path], blocked=blocked).returncode == 0
    victim = tmp_path / "edgeadv_runtime" / "records" / "statistics.py"
    head = "from __future__ import annotations\n"
    victim.write_text(victim.read_text().replace(head, f"{head}{line}\n", 1))
    assert line in victim.read_text()
    outcome = walk(["edgeadv_runtime"], roots=[tmp_path], blocked=blocked)
    assert outcome.returncode != 0
    assert "blocked import of" in outcome.stderr


def test_the_command_line_and_the_report_load_without_pytorch():
    roots = [CHECKOUT, RUNTIME.parent, EXPORT.parent]
    blocked = TORCH_SIDE | ONLY_INSIDE_FUNCTIONS | {"onnx", "onnxscript", "edgeadv_export"}
    outcome = walk(["edgeadv.cli", "edgeadv.reporting"], roots=roots, blocked=blocked)
    assert outcome.returncode == 0, outcome.stderr
    expected = modules(TRAINING / "cli", "edgeadv.cli") | modules(TRAINING / "reporting", "edgeadv.reporting")
    assert set(json.loads(outcome.stdout)["done"]) == expected


def test_the_runtime_never_imports_pytorch_not_even_inside_a_function():
    assert violations(RUNTIME.rglob("*.py"), NEVER_IN_RUNTIME) == []


def test_the_runtime_imports_engines_only_inside_functions():
    assert violations(RUNTIME.rglob("*.py"), ONLY_INSIDE_FUNCTIONS, at_load_only=True) == []
    # the scan sees what is there: ONNX Runtime is imported somewhere
    assert any("onnxruntime" in found for found in violations(RUNTIME.rglob("*.py"), ONLY_INSIDE_FUNCTIONS))


def test_the_runtime_imports_no_third_party_module_that_is_not_listed():
    found = {name for file in RUNTIME.rglob("*.py") for name, _ in imports(file.read_text())}
    assert found - set(sys.stdlib_module_names) - BASE - ONLY_INSIDE_FUNCTIONS - {"edgeadv_runtime"} == set()


def test_the_runtime_needs_only_the_standard_library_numpy_pillow_and_msgspec_to_load():
    allowed = set(sys.stdlib_module_names) | {"numpy", "PIL", "msgspec"}
    found = {name for file in RUNTIME.rglob("*.py") for name, at_load in imports(file.read_text()) if at_load}
    assert found - allowed == set()
    assert {"numpy", "PIL", "msgspec"} <= found


def test_the_entrance_of_edgeadv_the_command_line_and_the_report_import_no_pytorch_at_load():
    files = [
        TRAINING / "__init__.py",
        TRAINING / "__main__.py",
        *(TRAINING / "cli").rglob("*.py"),
        *(TRAINING / "reporting").rglob("*.py"),
    ]
    assert len(files) > 12
    assert violations(files, TORCH_SIDE | ONLY_INSIDE_FUNCTIONS, at_load_only=True) == []
    inside = {name for file in files for name in module_level_edgeadv(file)}
    assert inside <= {"edgeadv.cli", "edgeadv.reporting", "edgeadv.workflows"}


def module_level_edgeadv(file: Path) -> Iterator[str]:
    """Modules of edgeadv, beside the file's own subpackage, that loading ``file`` imports: they may have PyTorch."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").partition(".")[0] == "edgeadv":
            yield ".".join((node.module or "").split(".")[:2])
        elif isinstance(node, ast.ImportFrom) and node.level == 2:
            yield f"edgeadv.{(node.module or '').partition('.')[0]}"


def test_one_module_of_edgeadv_imports_onnx_and_only_inside_functions():
    assert violations(TRAINING.rglob("*.py"), {"onnxscript"}) == []
    others = (file for file in TRAINING.rglob("*.py") if file.name != "read_onnx.py")
    assert violations(others, {"onnx"}) == []


def test_only_functions_of_two_workflows_import_edgeadv_export():
    makers = [TRAINING / "workflows" / name for name in ("exporting.py", "importing.py")]
    assert violations([file for file in TRAINING.rglob("*.py") if file not in makers], {"edgeadv_export"}) == []
    assert violations(makers, {"edgeadv_export"}, at_load_only=True) == []
    for file in makers:
        assert violations([file], {"edgeadv_export"}), f"the scan finds none, though {file.name} must import it"


def beyond_an_export(source: str) -> list[str]:
    """Rooms that ``source`` imports and an export has no business in: it attacks nothing, and trains nothing."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module and node.level == 0 else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            package, room = [*name.split("."), ""][:2]
            if (package == "edgeadv" and room not in ("data", "models", "gradients")) or (
                package == "edgeadv_runtime" and room in ("attacks", "evaluation")
            ):
                found.append(name)
    return found


def test_an_export_makes_no_attacks_and_trains_nothing():
    found = {file.name: beyond_an_export(file.read_text(encoding="utf-8")) for file in EXPORT.rglob("*.py")}
    assert len(found) > 15 and {name: rooms for name, rooms in found.items() if rooms} == {}
    planted = (
        "from edgeadv.data.datasets import x\nimport edgeadv.attacks\ndef f():\n    from "
        "edgeadv_runtime.attacks.pack import y"
    )
    assert beyond_an_export(planted) == ["edgeadv.attacks", "edgeadv_runtime.attacks.pack"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn as nn", [("torch", True)]),
        ("from timm import data", [("timm", True)]),
        ("def f():\n    import torch", [("torch", False)]),
        ("class A:\n    import torch", [("torch", True)]),
        ("class A:\n    def f(self):\n        from torch import nn", [("torch", False)]),
        ("try:\n    import torch\nexcept ImportError:\n    pass", [("torch", True)]),
        ("if True:\n    import torch", [("torch", True)]),
        ("if TYPE_CHECKING:\n    import torch", []),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import timm", [("timm", True)]),
        ("importlib.import_module('torch.nn')", [("torch", True)]),
        ("f = lambda: __import__('torch')", [("torch", False)]),
        ("def f():\n    require('onnxruntime', extra='ort')", [("onnxruntime", False)]),
        ("from . import pytorch", []),
        ("from .torch import x", []),
    ],
)
def test_the_scan_itself(source, expected):
    assert list(imports(source)) == expected


ROOMS = {
    RUNTIME: [
        "_version",
        "errors",
        "reading",
        "decoding",
        "storage",
        "locks",
        "files",
        "arrays",
        "draws",
        "unfinished",
        "device",
        "bundle",
        "corruptions",
        "records",
        "engine",
        "backends",
        "attacks",
        "inference",
        "evaluation",
        "benchmark",
        "camera",
        "doctor",
    ],
    TRAINING: [
        "arguments",
        "data",
        "models",
        "gradients",
        "attacks",
        "training",
        "backends",
        "reporting",
        "workflows",
        "cli",
        "__main__",
    ],
}
"""A room imports only itself and rooms before it."""


def imported_files(file: Path, root: Path) -> set[Path]:
    """Files of the package at ``root`` that ``file`` imports, inside functions too, but for what only type checkers
    read."""
    found: set[Path] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom):
            folder = file.parents[node.level - 1] if node.level else root.parent
            if node.level or (node.module or "").partition(".")[0] == root.name:
                target = folder.joinpath(*(node.module or "").split(".")) if node.module else folder
                for alias in node.names:
                    for path in (
                        target / f"{alias.name}.py",
                        target / alias.name / "__init__.py",
                        target.with_suffix(".py"),
                        target / "__init__.py",
                    ):
                        if path.is_file():
                            found.add(path)
                            break
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return found - {file}


@pytest.mark.parametrize("root", ROOMS, ids=lambda root: root.name)
def test_a_room_imports_only_rooms_before_it(root):
    order = ROOMS[root]
    present = {
        path.stem if path.is_file() else path.name
        for path in root.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert present == {*order, "__init__"}
    wrong = []
    for file in sorted(root.rglob("*.py")):
        room = file.relative_to(root).parts[0].removesuffix(".py")
        for other in imported_files(file, root):
            theirs = other.relative_to(root).parts[0].removesuffix(".py")
            # the face is made of all of them
            if room not in (theirs, "__init__") and (theirs == "__init__" or order.index(theirs) > order.index(room)):
                wrong.append(f"{file.relative_to(root)} imports {other.relative_to(root)}")
    assert wrong == []
    # the scan sees what is there: the last room needs some of the first
    assert any(imported_files(file, root) - {*file.parent.glob("*")} for file in (root / order[-2]).rglob("*.py"))


@pytest.mark.parametrize("root", [RUNTIME, TRAINING, EXPORT], ids=lambda root: root.name)
def test_no_circle_of_files(root):
    leads_to = {file: imported_files(file, root) for file in root.rglob("*.py")}
    # take away, again and again, what imports nothing that is left
    while ends := [file for file, others in leads_to.items() if not others & leads_to.keys()]:
        for file in ends:
            del leads_to[file]
    assert sorted(str(file.relative_to(root)) for file in leads_to) == []

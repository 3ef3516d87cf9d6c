"""The benchmarks' own arithmetic, and that the tables say what the committed results say. Nothing is timed."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from edgeadv.attacks import cross_entropy, input_gradient
from edgeadv.gradients.graph import GraphModule
from edgeadv.gradients.read_onnx import nodes_of
from edgeadv.models.builder import Architecture, PixelModel
from edgeadv_export.to_onnx import to_onnx

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)  # as Python does for a script
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run() -> ModuleType:
    return load("run")


def test_every_call_is_in_every_round_and_ratios_are_of_pairs() -> None:
    paired = load("paired")
    seen: list[tuple[str, int]] = []
    calls = {name: lambda i, name=name: seen.append((name, i)) for name in "abc"}
    seconds = paired.in_turn(calls, rounds=5, warm_up=2)
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 5, "b": 5, "c": 5}
    assert [i for _, i in seen] == [i for i in range(-2, 5) for _ in "abc"]
    assert {tuple(sorted(name for name, j in seen if j == i)) for i in range(-2, 5)} == {("a", "b", "c")}
    # not the ratio of the medians, which is 1
    assert paired.ratio([1, 2, 8], [2, 1, 8]) == {"median": 1.0, "quartiles": [0.5, 2.0]}
    assert paired.ratio([3, 3, 3, 3], [1, 2, 3, 6])["median"] == 1.25


@pytest.mark.parametrize(
    ("new", "old", "moves"),
    [
        ((2.0, [1.9, 2.1]), (1.0, [0.9, 1.1]), True),
        ((1.05, [1.0, 1.1]), (1.0, [0.9, 1.1]), False),
        ((2.0, [0.5, 2.1]), (1.0, [0.9, 1.1]), False),  # the new ones spread over the old
        ((2.0, [1.9, 2.1]), (1.0, [0.5, 2.5]), False),
        ((1.0, [1.0, 1.0]), (1.0, [1.0, 1.0]), False),
    ],
)
def test_a_ratio_has_moved_where_each_median_is_outside_the_others_quartiles(
    run: ModuleType, new: tuple[float, list[float]], old: tuple[float, list[float]], moves: bool
) -> None:
    def content(value: tuple[float, list[float]]) -> dict[str, object]:
        entries = [{"library": "peer", "speedup": {"median": value[0], "quartiles": value[1]}}]
        return {"rows": [{"architecture": "net", "attack": "fgsm", "libraries": entries}]}

    lines = run.moved("crafting", content(new), content(old))
    assert bool(lines) == moves
    assert not lines or "net, fgsm, peer" in lines[0]
    assert run.moved("crafting", content(new), {"rows": []}) == []


def test_ratios_of_one_result_have_names_of_their_own(run: ModuleType) -> None:
    for file in (BENCHMARKS / "results").glob("*.json"):
        rows = json.loads(file.read_text()).get("rows", [])
        names = [name for name, _ in run.ratios(rows)]
        assert len(set(names)) == len(names), file.name


def test_the_page_of_networks_is_that_of_the_committed_result() -> None:
    networks = load("networks")
    result = json.loads(networks.RESULT.read_text())
    assert networks.PAGE.read_text() == networks.page(result)
    assert set(result["networks"]) <= {network.key for network in networks.NETWORKS}
    for key, row in result["networks"].items():
        known = {*row.get("variants", ()), *row.get("refused", ())}
        assert known <= set(networks.VARIANTS) and ("failed" in row) == (not known), key
        assert ("failed" in row) or all("gradients" in variant for variant in row["variants"].values()), key


@pytest.fixture(scope="module")
def page() -> ModuleType:
    return load("page")


def test_the_tables_and_the_plot_are_those_of_the_committed_results(page: ModuleType) -> None:
    found, text = page.read(), page.README.read_text()
    assert [name for _, name, _ in page.MARKED.findall(text)] == list(page.TABLES)
    assert text == page.filled(text, found)
    assert page.PLOT.read_text() == page.plot(found)


def test_a_table_follows_its_results(page: ModuleType) -> None:
    found = json.loads(json.dumps(page.read()))
    found["training_throughput-cpu"]["rows"][0]["edgeadv_speedup"]["median"] = 3.21
    changed = page.filled(page.README.read_text(), found)
    assert changed.count("3.21") == 1 and changed != page.README.read_text()
    assert ">3.21</text>" in page.plot(found)


def test_a_gpu_that_attacks_in_tf32_is_compared_in_its_own_columns(page: ModuleType) -> None:
    """edgeadv's own row is what it does by default: float32 in files of before, TF32 since."""

    def entry(library: str, median: float, key: str = "edgeadv_speedup") -> dict[str, object]:
        ratio = {"median": median, "quartiles": [median, median]}
        return {"library": library, "same_pixels_1e-4": 1.0, "edgeadv_speedup": {}, key: ratio}

    def line(own: dict[str, str], others: list[dict[str, object]]) -> str:
        libraries = [{"library": "edgeadv", "same_pixels_1e-4": 1.0}, entry("torchattacks", 1.11), *others]
        row = {"architecture": "alexnet", "attack": "fgsm", "on": "NVIDIA H200", "libraries": libraries, **own}
        return list(page.gpu({"x-cuda": {"benchmark": "crafting", "arguments": {"batch": 8}, "rows": [row]}}))[-1]

    peers = [entry("torchattacks without TF32", 1.22), entry("tf32", 1.33, "over_torchattacks")]
    assert line({}, peers) == ("|AlexNet, 8|H200|1.22 [1.22, 1.22]|1.11 [1.11, 1.11]|1.33 [1.33, 1.33]|||")
    peers = [entry("torchattacks without TF32", 1.22), entry("float32", 1.33, "over_torchattacks")]
    assert line({"default": "tf32"}, peers) == ("|AlexNet, 8|H200||1.33 [1.33, 1.33]|1.11 [1.11, 1.11]|||")


def prose(text: str, page: ModuleType) -> str:
    """A page without its tables, names in backticks and the targets of links."""
    return re.sub(r"`[^`]*`|\]\([^)]*\)", " ", page.MARKED.sub("", text))


def test_the_page_takes_two_minutes_and_its_prose_has_no_figure_of_its_own(page: ModuleType) -> None:
    text, methods = (file.read_text() for file in (page.README, page.README.with_name("methods.md")))
    assert len(text.split()) <= 1500
    # goals, and fair shares
    goals = {"2.4", "0.9", "0.75", "0.5"}
    figure = re.compile(r"\d+\.\d+|\d+(?=\s?(?:%|ms|s|MiB)\b)|\d+(?=%)")
    assert figure.findall("1.45, 86%, 12 ms and 3 channels") == ["1.45", "86", "12"]
    tables = " ".join(match[0] for match in page.MARKED.finditer(text))
    told = set(figure.findall(prose(text + methods, page)))
    assert {each for each in told - goals if each not in tables} == set()


def test_links_to_the_benchmarks_lead_somewhere(page: ModuleType) -> None:
    checkout = BENCHMARKS.parent
    pages = [checkout / "README.md", *(checkout / "docs").rglob("*.md"), *BENCHMARKS.glob("*.md")]
    followed = 0
    for each in pages:
        for link in re.findall(r"\]\(([^)#\s:]*)(#[^)\s]+)?\)", each.read_text()):
            target = (each.parent / link[0]).resolve()
            if BENCHMARKS in (each.parent, target.parent, *target.parents):
                followed += 1
                assert target.exists(), (each, link)
                if link[1] and target.suffix == ".md":
                    titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
                    anchors = {"#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
                    assert link[1] in anchors, (each, link)
    assert followed > 5


def test_a_start_counts_the_processor_of_what_it_started() -> None:
    startup = load("startup")
    cpu: list[float] = []
    start = startup.starter(["-c", "import sys; sum(range(3_000_000))"], cpu)
    start(-1)
    assert cpu == []
    start(0)
    assert len(cpu) == 1 and 0 < cpu[0] < 60
    assert set(startup.GOALS_S) <= set(startup.COMMANDS)
    with pytest.raises(subprocess.CalledProcessError):
        startup.starter(["-c", "1/0"], cpu)(0)


@pytest.fixture(scope="module")
def levers() -> ModuleType:
    return load("levers")


def linear(size: float) -> tuple[GraphModule, Tensor, Tensor]:
    """Two linear layers whose weights are up to ``size``, with images and labels."""
    torch.manual_seed(0)
    layers = nn.Linear(3 * 16 * 16, 16, bias=False), nn.Linear(16, 5, bias=False)
    for layer in layers:
        nn.init.uniform_(layer.weight, -size, size)
    network = PixelModel(nn.Sequential(nn.Flatten(), *layers), Architecture(name="own", source="timm", num_classes=5))
    graph = GraphModule(nodes_of(to_onnx(network.eval(), (3, 16, 16))), "own")
    return graph.eval(), torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("lever", ["bfloat16", "float16", "contiguous", "channels_last"])
def test_a_lever_leaves_the_network_as_it_is(levers: ModuleType, lever: str) -> None:
    network, x, y = linear(0.1)
    before = network(x)
    made = levers.pulled(lever, network, x, y)
    assert made is not network
    expected, found = (input_gradient(each, x, y, cross_entropy) for each in (network, made))
    for ours, theirs in ((found.logits, expected.logits), (found.gradient, expected.gradient)):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02 * float(theirs.abs().max()))
    assert torch.equal(network(x), before)


@pytest.mark.parametrize("lever", ["int4", "float16+int4", "graph", "tf32", "tuned", "float16+contiguous"])
def test_a_lever_that_is_not_there(levers: ModuleType, lever: str) -> None:
    network, x, y = linear(0.1)
    with pytest.raises(ValueError, match=r"choose from|an order of memory is for float32"):
        levers.pulled(lever, network, x, y)


@pytest.mark.parametrize("lever", ["edgeadv", "tf32", "tuned", "tuned+float16"])
def test_what_a_lever_sets_is_as_before_afterwards(levers: ModuleType, lever: str) -> None:
    def now() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark

    before = now()
    with pytest.raises(RuntimeError), levers.settings(lever):
        assert now() == ("tf32" in lever, "tuned" in lever)
        raise RuntimeError
    assert now() == before

"""The tables of ``README.md`` and its plot, from what is committed in ``results``.

    python benchmarks/page.py      # writes both

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; :data:`TABLES` makes it. Figures of the text are
those of a table, as ``tests/test_benchmarks.py`` holds.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
README, PLOT, RESULTS = HERE / "README.md", HERE / "ratios.svg", HERE / "results"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NETWORKS = {"regnet_y_400mf": "RegNetY-400MF", "resnet101": "ResNet-101", "alexnet": "AlexNet"}
PEERS = {"torchattacks": "torchattacks", "foolbox": "foolbox", "art": "ART"}
# what edgeadv does on a GPU, in the order of the columns
ARITHMETIC = {"float32": "float32", "tf32": "TF32", "float16": "float16", "static+float16": "float16, compiled"}

Found = Mapping[str, dict[str, Any]]
"""What is in a result file, by the file's name without ``.json``."""
Ratio = dict[str, Any]
"""Median and quartiles of paired ratios."""


def read() -> dict[str, dict[str, Any]]:
    """All that is committed."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))}


def of(found: Found, benchmark: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each row of ``benchmark``, with what was asked."""
    for content in found.values():
        if content.get("benchmark") == benchmark:
            for row in content["rows"]:
                yield content.get("arguments", {}), row


def show(ratio: Ratio | None) -> str:
    """A ratio with its quartiles; nothing where it was not measured."""
    if ratio is None:
        return ""
    low, high = ratio["quartiles"]
    return f"{ratio['median']:.2f} [{low:.2f}, {high:.2f}]"


def ranged(values: list[float]) -> str:
    """The median of a few rounds, with the least and the most; of one round that alone."""
    spread = f" [{min(values):.2f}, {max(values):.2f}]" if len(values) > 1 else ""
    return f"{statistics.median(values):.2f}{spread}"


def short(device: str) -> str:
    """A GPU's name without its maker and memory."""
    return re.sub(r"NVIDIA (\S+).*", r"\1", device)


def table(headings: str, rows: list[list[str]]) -> Iterator[str]:
    """Lines of a table; headings are separated by ``|``."""
    names = headings.split("|")
    yield f"|{'|'.join(names)}|"
    yield "|" + "---|" * len(names)
    for row in rows:
        yield f"|{'|'.join(row)}|"


def crafted(found: Found, *, gpu: bool) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Crafting: what was asked, the row, and its libraries by name; on a processor without what was only tried."""
    # what is no file of levers, and all that a GPU has
    chosen = {name: found[name] for name in found if gpu or "levers" not in name}
    for asked, row in of(chosen, "crafting"):
        if "libraries" in row and row.get("on", "").startswith("NVIDIA") == gpu:
            yield asked, row, {entry["library"]: entry for entry in row["libraries"]}


def same(entry: dict[str, Any] | None) -> bool:
    """Whether it is the same attack at all: half precision can overflow."""
    return entry is None or entry["same_pixels_1e-4"] > 0.5


def speed(entry: dict[str, Any] | None) -> Ratio | None:
    """Images per second of edgeadv over a peer's, or over torchattacks' where the entry is a way of edgeadv's."""
    return None if entry is None else entry.get("over_torchattacks", entry["edgeadv_speedup"])


def crafting(found: Found) -> Iterator[str]:
    """On a processor, against each peer."""
    rows = [
        [
            f"{NETWORKS[row['architecture']]}, {asked['batch']}",
            row["attack"],
            *(show(speed(by.get(peer))) for peer in PEERS),
            f"{by['edgeadv']['same_pixels_1e-4']:.1%}",
        ]
        for asked, row, by in crafted(found, gpu=False)
    ]
    yield from table("network, batch|attack|over torchattacks|over foolbox|over ART|same pixels", rows)


def alike(row: dict[str, Any], by: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Float32 of edgeadv beside torchattacks' without TF32; of files whose own row is not float32 that is not known."""
    return by.get("torchattacks without TF32") if row.get("default", "float32") == "float32" else None


def on_gpu(row: dict[str, Any], by: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any] | None]:
    """What edgeadv does on a GPU against torchattacks in PyTorch's default arithmetic, by way of :data:`ARITHMETIC`."""
    own = row.get("default", "float32")
    # edgeadv's own row has one arithmetic, which the peer's entry is measured against; the others are entries
    return {way: by["torchattacks"] if way == own else by.get(way) for way in ARITHMETIC}


def gpu(found: Found) -> Iterator[str]:
    """On a GPU, against torchattacks in PyTorch's default arithmetic, each way in its column."""
    rows = []
    for asked, row, by in crafted(found, gpu=True):
        texts = [show(speed(way)) if same(way) else "overflows" for way in (alike(row, by), *on_gpu(row, by).values())]
        rows.append([f"{NETWORKS[row['architecture']]}, {asked['batch']}", short(row["on"]), *texts])
    yield from table(f"network, batch|on|float32, both|{'|'.join(ARITHMETIC.values())}", rows)


def strength(found: Found) -> Iterator[str]:
    """Points of accuracy that attacks leave beside those that a peer leaves, on the same images."""
    points: dict[str, list[float]] = defaultdict(list)
    images: Counter[str] = Counter()
    for _, row in of(found, "attack_agreement"):
        peer = "AutoAttack: `standard`" if row["attack"].startswith("worst") else f"torchattacks: {row['attack']}"
        points[peer].append(row["points"])
        images[peer] += row["n"]
    for _, row in of(found, "crafting"):
        for attack in ("fgsm", "pgd-10") if "strength" in row else ():
            for key, left in row[attack].items():
                way = key.removeprefix("left_")
                if way in ("tf32", "float16") and row["n"] >= 500:
                    name = f"float32: {attack}, {way}"
                    points[name].append(100 * (left - row[attack]["left_own"]))
                    images[name] += row["n"]
    rows = [
        [
            name,
            str(len(all_)),
            str(images[name]),
            " to ".join(f"{each:+.1f}" for each in sorted({min(all_), max(all_)})),
        ]
        for name, all_ in points.items()
    ]
    yield from table("beside|models and budgets|images|points left beyond", rows)


def runtime(found: Found) -> Iterator[str]:
    """The runtime over the raw ONNX Runtime call, one image, one thread."""
    rows = []
    for asked, row in of(found, "runtime_latency"):
        if row["batch"] == 1:
            faster = next(value for key, value in row.items() if key.startswith("speedup_over_"))
            name = {"lite0.edgeadv": "EfficientNet-Lite0", "regnet-224.edgeadv": "RegNetY-400MF"}[asked["bundle"]]
            rows.append(
                [
                    f"{name} {row['variant']}",
                    f"{row['raw_ms_median']:.2f}",
                    show(row["infer_over_raw"]),
                    show(row["classify_pixels_over_raw"]),
                    show(faster),
                ]
            )
    yield from table("variant|raw call, ms|backend over raw|`Classifier` over raw|faster than fp32", rows)


def preprocessing(found: Found) -> Iterator[str]:
    """A frame to the model's input; frames are columns."""
    rows: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for _, row in of(found, "preprocessing"):
        rows[row["library"]][row["frame"]] = row
    frames = sorted({frame for each in rows.values() for frame in each})
    yield from table(
        f"by|{'|'.join(f'{frame}, ms' for frame in frames)}|grey levels apart at most",
        [
            [
                library,
                *(f"{each[frame]['ms_median']:.2f}" for frame in frames),
                str(max(row["levels_apart_max"] for row in each.values())),
            ]
            for library, each in rows.items()
        ],
    )


def pytorch(found: Found) -> Iterator[str]:
    """PyTorch's ways for one image; machines are columns."""
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    machines: list[str] = []
    for _, row in of(found, "torch_latency"):
        if row["batch"] == 1:
            machines += [row["on"]] * (row["on"] not in machines)
            if "not_measured" not in row:
                text = f"{row['ms_median']:.2f} ms, {show(row['speedup_over_eager'])}"
                rows[row["way"]][row["on"]] = text
    shown = "|".join(f"{short(machine)}, over eager" for machine in machines)
    yield from table(
        f"way|{shown}", [[way, *(each.get(machine, "") for machine in machines)] for way, each in rows.items()]
    )


def evaluation(found: Found) -> Iterator[str]:
    """How fast an evaluation is, beside the slowest of its stages."""
    rows = []
    for asked, row in of(found, "evaluation_pipeline"):
        name = f"FGSM, {row.get('n', 0)} {'photographs' if asked['data'] == 'photographs' else 'digits'}"
        if row["part"] == "stages":
            for how, key, images in (
                ("attack and scoring on a core each", "whole", row["whole_images_per_s"]),
                ("one after the other", "one_after_the_other", row["one_after_the_other_images_per_s"]),
            ):
                rows.append([f"{name}, {how}", f"{images:.1f}", show(row[key]["over_slowest"])])
        elif row["part"] == "steady":
            rows.append(
                [f"{name}, after its first batch", f"{row['command_images_per_s']:.1f}", show(row["over_attack"])]
            )
        elif row["part"] == "growth":
            last = row["sizes"][-1]
            what = f"from {row['sizes'][0]['n']:,} to {last['n']:,} digits time grows with exponent {row['exponent']}"
            rows.append([f"{what}, memory to {last['peak_mib']:.0f} MiB", f"{last['n'] / last['s']:.1f}", ""])
    yield from table("job|images/s|over its slowest stage", rows)


def worst(found: Found) -> Iterator[str]:
    """Time to a worst case, beside torchattacks' AutoAttack."""
    rows = []
    for _, row in of(found, "worst_case"):
        name = row["model"].partition(",")
        rows.append(
            [
                f"{NETWORKS.get(name[0], name[0])},{name[2]}, eps {row['eps']}",
                row["theirs"],
                f"{row['left_ours']} and {row['left_theirs']} of {row['n']}",
                f"{statistics.median(row['seconds_ours']):.0f} and {statistics.median(row['seconds_theirs']):.0f}",
                ranged([1 / ratio for ratio in row["ratio"]]),
            ]
        )
    yield from table("network|beside|left standing, ours and theirs|seconds, ours and theirs|faster by", rows)


def threads(found: Found) -> Iterator[str]:
    """Speed beside other processes, as a share of PyTorch's own with nothing beside it; a job that begins beside others
    turns less often."""
    ways = {"default": "PyTorch has it", "edgeadv": "`edgeadv`, begun alone", "300": "`edgeadv`, begun beside others"}
    rows: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for _, row in of(found, "threads"):
        if row["job"] != "export" and row["way"] in ways:
            rows[row["job"], row["way"]][row["beside"]] = show(row["of_quiet"])
    places = list(dict.fromkeys(place for each in rows.values() for place in each))
    yield from table(
        f"job|threads wait as|{'|'.join(f'beside {place}' for place in places)}",
        [
            [job, ways[way], *(each[p] for p in places)]
            for (job, way), each in sorted(rows.items(), key=lambda row: list(ways).index(row[0][1]))
        ],
    )


def paced(found: Found) -> Iterator[str]:
    """Frames at a rate: processor time and answers."""
    rows = [
        [
            row["way"],
            f"{row['cpu_ms_per_frame_median']:.1f}",
            show(row["cpu_over_one"]),
            f"{row['answer_p50_ms']:.1f} and {row['answer_p90_ms']:.1f}",
        ]
        for _, row in of(found, "paced")
    ]
    yield from table("ONNX Runtime with|CPU ms a frame|over one thread|answer p50 and p90, ms", rows)


def training(found: Found) -> Iterator[str]:
    """Training, over a plain loop."""
    rows = [
        [f"{row['recipe']}, {row.get('on', str(asked['threads']) + ' threads')}", show(row["edgeadv_speedup"])]
        for asked, row in of(found, "training_throughput")
    ]
    yield from table("recipe|images/s over a plain loop's", rows)


def begin(found: Found) -> Iterator[str]:
    """What it takes to begin, and to be there."""
    rows = [
        [f"`{row['start']}`", f"{row['s_median']:.2f} s"]
        for _, row in of(found, "startup")
        if row["start"] != "python -c pass"
    ]
    for content in found.values():
        if content.get("benchmark") == "footprint":
            rows += [
                ["installed, with ONNX Runtime", f"{content['installed_mib']:.0f} MiB"],
                ["resident with RegNetY-400MF open", f"{content['rss_mib']['opened']:.0f} MiB"],
            ]
    yield from table("what|takes", rows)


def corruptions(found: Found) -> Iterator[str]:
    """One artefact under all corruptions: the whole, and each stage by itself."""
    rows = []
    for content in found.values():
        if content.get("benchmark") != "corruptions":
            continue
        by = {row["part"]: row for row in content["rows"] if row["part"] != "corrupt"}
        kinds = sorted((row for row in content["rows"] if row["part"] == "corrupt"), key=lambda row: -row["s"])
        stages = {"decode": by["decode"]["s"], "corrupt": sum(row["s"] for row in kinds), "score": by["score"]["s"]}
        rows.append(
            [
                f"{len(kinds) * 5} on {content['arguments']['n']:,} frames, {content['arguments']['precision']}",
                f"{by['whole']['s']:.0f} s",
                f"{by['whole']['peak_mib']:,} MiB",
                ", ".join(f"{name} {seconds:.0f} s" for name, seconds in stages.items()),
                ", ".join(f"{row['kind']} {row['s']:.0f} s" for row in kinds[:2]),
            ]
        )
    yield from table("corruptions|`evaluate`|memory|by itself, one after the other|slowest kinds", rows)


def verdict(found: Found) -> Iterator[str]:
    """What the masking verdict said of figures that are true, in between, or false."""
    said: Counter[tuple[str, str, str]] = Counter()
    for row in found["verdict_calibration-networks-cpu"]["rows"]:
        said[row["is"], "honestly" if row["meant"] == "honest" else "to deceive", row["verdict"]] += 1
    words = ("PASS", "UNCHECKED", "SUSPECT", "MASKED")
    rows = [
        [name, meant, *(str(said[name, meant, word]) for word in words)]
        for name in ("honest", "between", "dishonest")
        for meant in ("honestly", "to deceive")
        if any(said[name, meant, word] for word in words)
    ]
    yield from table(f"the figure is|network made|{'|'.join(words)}", rows)


TABLES: dict[str, Callable[[Found], Iterator[str]]] = {
    each.__name__: each
    for each in (
        crafting, gpu, strength, worst, threads, runtime, paced, preprocessing, pytorch, evaluation, training, begin,
        corruptions, verdict,
    )
}  # fmt: skip


def filled(text: str, found: Found) -> str:
    """A page with its tables as the results have them."""
    return MARKED.sub(lambda match: match[1] + "\n".join(TABLES[match[2]](found)) + "\n" + match[3], text)


def bars(found: Found) -> list[tuple[str, Any]]:
    """What the plot shows: edgeadv's speed over a peer's, on a processor, then on a GPU."""
    shown: list[tuple[str, Any]] = []
    for _, row, by in crafted(found, gpu=False):
        what = f"{row['attack']}, {NETWORKS[row['architecture']]}"
        shown += [(f"{what}, over {name}", by[peer]["edgeadv_speedup"]) for peer, name in PEERS.items() if peer in by]
    for _, row in of(found, "training_throughput"):
        shown.append((f"training, {row['recipe']}, over a plain loop", row["edgeadv_speedup"]))
    for _, row, by in crafted(found, gpu=True):
        place = f"{row['attack']}, {NETWORKS[row['architecture']]}, {short(row['on'])}"
        for way, entry in on_gpu(row, by).items():
            if entry is not None and same(entry):
                shown.append((f"{place}, {ARITHMETIC[way]}, over torchattacks", speed(entry)))
    return shown


def plot(found: Found) -> str:
    """The bars as an SVG, on a logarithmic axis from a quarter to four, quartiles as lines."""
    left, width, step = 415, 360, 18
    all_ = bars(found)
    bottom = 10 + step * len(all_)

    def x(value: float) -> float:
        return left + width * (math.log2(min(max(value, 0.25), 4)) + 2) / 4

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 60}" height="{bottom + 45}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for mark in (0.25, 0.5, 1, 2, 4):
        parts.append(
            f'<path d="M{x(mark):.1f} 5V{bottom}" stroke="{"black" if mark == 1 else "#ccc"}"/>'
            f'<text x="{x(mark):.1f}" y="{bottom + 15}" text-anchor="middle">{mark:g}</text>'
        )
    for i, (name, ratio) in enumerate(all_):
        middle, (low, high) = ratio["median"], ratio["quartiles"]
        top = 10 + step * i
        begin_, end = sorted((x(1), x(middle)))
        parts.append(
            f'<text x="{left - 8}" y="{top + 11}" text-anchor="end">{name}</text>'
            f'<rect x="{begin_:.1f}" y="{top}" width="{end - begin_:.1f}" height="12" '
            f'fill="{"#4477aa" if middle >= 1 else "#cc6677"}"/>'
            f'<path d="M{x(low):.1f} {top + 6}H{x(high):.1f}" stroke="black"/>'
            f'<text x="{max(end, x(high)) + 5:.1f}" y="{top + 11}">{middle:.2f}</text>'
        )
    parts.append(
        f'<text x="{x(1):.1f}" y="{bottom + 35}" text-anchor="middle">edgeadv is faster by (median of paired ratios, '
        "quartiles)</text></svg>"
    )
    return "\n".join(parts) + "\n"


def write() -> None:
    """Bring the page and its plot to what is committed."""
    found = read()
    README.write_text(filled(README.read_text(), found))
    PLOT.write_text(plot(found))


if __name__ == "__main__":
    write()

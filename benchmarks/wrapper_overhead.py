"""``Classifier`` without its preprocessing, over the raw ONNX Runtime call on the same tensor: one paired run in random order.

Both share one session, so that nothing differs but edgeadv's own work: the tensor of the pixels, the checks of what goes in and comes
out, softmax and ranking.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path

import numpy as np

from edgeadv_runtime import Classifier
from edgeadv_runtime.device import environment
from edgeadv_runtime.files import write_json
from edgeadv_runtime.preprocess import to_tensor


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", default="fp32")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for variant in options.variants.split(","):
        with Classifier.open(options.bundle, variant=variant, threads=options.threads) as classifier:
            pixels = list(classifier.bundle.golden().pixels)
            session = classifier.backend._session  # type: ignore[attr-defined]
            tensors = [to_tensor(p[None]) for p in pixels]

            def wrapped(i: int, classifier: Classifier = classifier, pixels: list[np.ndarray] = pixels) -> object:
                return classifier.classify_pixels(pixels[i])

            def raw(i: int, session: object = session, tensors: list[np.ndarray] = tensors) -> object:
                return session.run(["logits"], {"image": tensors[i]})  # type: ignore[attr-defined]

            calls = {"edgeadv": wrapped, "onnxruntime": raw}
            taken: dict[str, list[float]] = {name: [] for name in calls}
            for i in range(-20, options.rounds):
                for name in random.Random(i).sample(list(calls), len(calls)):
                    start = time.perf_counter()
                    calls[name](i % len(pixels))
                    if i >= 0:
                        taken[name].append(time.perf_counter() - start)
        ratios = [ours / theirs for ours, theirs in zip(taken["edgeadv"], taken["onnxruntime"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append({
            "variant": variant, **{f"{name}_ms_median": round(1000 * statistics.median(t), 4) for name, t in taken.items()},
            "ratio_of_medians": round(statistics.median(taken["edgeadv"]) / statistics.median(taken["onnxruntime"]), 4),
            "paired_ratio_median": round(middle, 4), "paired_ratio_quartiles": [round(low, 4), round(high, 4)],
        })  # fmt: skip
        print(rows[-1], flush=True)
    arguments = {"rounds": options.rounds, "threads": options.threads}
    content = {"benchmark": "wrapper_overhead", "arguments": arguments, "environment": environment(), "rows": rows}
    write_json(options.out, content)


if __name__ == "__main__":
    main()

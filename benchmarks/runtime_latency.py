"""The runtime against the raw ONNX Runtime call on the same tensor, each variant, batch 1 and 8: one paired run in
random order.

``infer`` is the backend with its checks; ``classify_pixels`` (batch 1) also makes the tensor, and ranks and names the
labels: all of ``Classifier.classify`` but the resizing. Each pair shares one session, so that nothing differs but
edgeadv's own work. ``bound`` is the raw call with input and output bound once (IO binding), for what it would gain.
Variants are compared with the first one in the same rounds; with ``--data`` the clean accuracy of each stands beside
it, for speed that costs accuracy is not the same speed.

    python benchmarks/runtime_latency.py m.edgeadv --variants fp32,fp32-u8in,int8 --out
    benchmarks/results/runtime_latency-NAME-cpu.json
"""

from __future__ import annotations

import argparse
import functools
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from paired import in_turn, ratio, save

from edgeadv_runtime import Classifier
from edgeadv_runtime.bundle.confidence import first_is_right
from edgeadv_runtime.bundle.preprocess import to_tensor


def accuracy(classifier: Classifier, options: argparse.Namespace) -> dict[str, Any]:
    """Clean top-1 of a variant on labelled images; needs edgeadv's loaders."""
    from edgeadv.data.datasets import balanced_subset, batches, open_data

    images = open_data(options.data, split="test").relabel(classifier.bundle.classes)
    order = balanced_subset(images.labels, options.limit)
    right = [
        first_is_right(classifier.backend.infer_pixels(batch.pixels), batch.labels)
        for batch in batches(images, classifier.bundle.preprocess, batch_size=8, order=order)
    ]
    hits = np.concatenate(right)
    return {"top1": round(float(hits.mean()), 4), "n": len(hits)}


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", default="fp32")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--data", help="labelled images for the accuracy")
    parser.add_argument("--limit", type=int, help="so many of them")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        classifiers = {
            variant: stack.enter_context(Classifier.open(options.bundle, variant=variant, threads=options.threads))
            for variant in options.variants.split(",")
        }
        reference = next(iter(classifiers))
        scores = {name: accuracy(each, options) for name, each in classifiers.items()} if options.data else {}
        for batch in map(int, options.batches.split(",")):
            calls: dict[str, Any] = {}
            for variant, classifier in classifiers.items():
                backend, golden = classifier.backend, classifier.bundle.golden().pixels
                pixels = [golden[np.arange(i, i + batch) % len(golden)] for i in range(len(golden))]
                given = pixels if backend.takes_uint8 else [to_tensor(each) for each in pixels]
                session: Any = backend._session  # type: ignore[attr-defined]
                infer: Any = backend.infer_pixels if backend.takes_uint8 else backend.infer
                bound = session.io_binding()
                bound.bind_cpu_input("image", given[0])
                bound.bind_output("logits")
                calls[f"{variant} raw"] = lambda i, s=session, g=given: s.run(["logits"], {"image": g[i % len(g)]})
                calls[f"{variant} infer"] = lambda i, f=infer, g=given: f(g[i % len(g)])
                calls[f"{variant} bound"] = lambda i, s=session, b=bound: s.run_with_iobinding(b)
                if batch == 1:
                    calls[f"{variant} classify"] = lambda i, c=classifier, p=pixels: c.classify_pixels(p[i % len(p)][0])
            seconds = in_turn(calls, rounds=options.rounds, warm_up=20)
            for variant in classifiers:
                raw, over = seconds[f"{variant} raw"], functools.partial(ratio, below=seconds[f"{variant} raw"])
                rows.append(
                    {
                        "variant": variant,
                        "batch": batch,
                        "raw_ms_median": round(1000 * statistics.median(raw), 4),
                        "infer_over_raw": over(seconds[f"{variant} infer"]),
                        "bound_over_raw": over(seconds[f"{variant} bound"]),
                        **({"classify_pixels_over_raw": over(seconds[f"{variant} classify"])} if batch == 1 else {}),
                        f"speedup_over_{reference}": ratio(seconds[f"{reference} infer"], seconds[f"{variant} infer"]),
                        **scores.get(variant, {}),
                    }
                )
                print(rows[-1], flush=True)
            save(options.out, "runtime_latency", vars(options), rows)


if __name__ == "__main__":
    main()

"""The whole SDK on 5,000 real digits: train, distil, export, attack, judge, time and report.

    python examples/01_sdk.py             the real thing, on a CPU
    python examples/01_sdk.py --quick     one epoch and 100 images: shows the calls, and a gate that refuses

It needs ``pip install "edgeadv[demo]"``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import edgeadv as ea

ARCH = "timm/test_efficientnet"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="One epoch, 100 images, one budget, the suite fast.")
    options.add_argument("--out", type=Path, default=Path("sdk-output"), help="Where everything goes.")
    given = options.parse_args()
    out, quick = given.out, given.quick
    config = ea.TrainConfig(epochs=1, limit=1000) if quick else ea.TrainConfig(epochs=12)
    eps, suite = (["26/255"], "fast") if quick else (["13/255", "26/255"], "standard")
    plan, job = ea.AttackPlan(limit=100 if quick else 500), ea.TrainJob(resume=True)

    data = ea.load_data("mnist5k")
    teacher = ea.train(ARCH, data, recipe="trades", eps="0.1", out=out / "teacher", config=config, job=job)
    student = ea.distill(
        ARCH, data, recipe="rslad", teacher=teacher, eps="0.1", out=out / "student", config=config, job=job
    )
    bundle = ea.export(student, out / "digits.edgeadv", precisions=["fp32", "fp16"], overwrite=True)
    results = ea.evaluate(
        bundle, data.test, eps=eps, suite=suite, backends=["torch", "onnxruntime"], plan=plan, out=out / "results.json"
    )
    for variant in ("fp32", "fp16"):
        worst = results.worst_case("26/255", variant=variant, backend="onnxruntime")
        verdict = results.verdict("26/255", variant=variant, backend="onnxruntime")
        print(f"{variant}: worst case at eps 26/255 {worst.top1:.1%}, masking check {verdict}")
    try:
        outcome = results.gate(eps="26/255", min_clean=0.9, min_robust=0.5, max_drop_robust=0.01)
        print("\n".join(outcome.lines))
        outcome.raise_if_failed()
        print("gate: passed")
    except ea.EdgeAdvError as refusal:
        print(f"gate: {refusal}")
    bench = ea.bench(bundle, batches=[1, 8], rate_hz=30, runs=30 if quick else 200, out=out / "bench.json")
    page = ea.report([results, bench], out / "report.html")
    pack = ea.attack(bundle, data.test, eps="26/255", suite="fast", plan=plan, out=out / "digits.pack", resume=True)
    print(f"{page}, and {pack.path} for a device without PyTorch")


if __name__ == "__main__":
    main()

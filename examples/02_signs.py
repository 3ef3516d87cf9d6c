"""From a folder of traffic signs to a card: train, harden, export to int8, attack what ships, time it, sum it up.

    python examples/02_signs.py gtsrb             hours on a CPU; call it again to go on
    python examples/02_signs.py gtsrb --quick     two minutes: shows the calls

examples/signs/convert.py makes the folder. It needs ``pip install "edgeadv[export,report]"``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import edgeadv as ea

ARCH = "regnet_y_400mf"
TRACKS = Path(__file__).parent / "signs" / "holdout-tracks.txt"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", type=Path, help="Folder with train and test.")
    options.add_argument("--quick", action="store_true", help="One epoch of 860 images, 100 attacked, the suite fast.")
    options.add_argument("--out", type=Path, default=Path("signs-output"), help="Where everything goes.")
    given = options.parse_args()
    out, quick, job = given.out, given.quick, ea.TrainJob(resume=True)

    data = ea.load_data(given.data)
    # a mirrored sign is another sign; frames of one track are nearly alike, so whole tracks are held out
    shared = ea.TrainConfig(no_mirror=True, holdout_list=str(TRACKS), lr=0.1, batch_size=128)
    shared = replace(shared, epochs=1, limit=860) if quick else shared
    plain = shared if quick else replace(shared, epochs=30, augment="trivial", ema=0.9995)
    hard = replace(shared, holdout=43) if quick else replace(shared, epochs=20, augment="affine", holdout=500)
    undefended = ea.train(ARCH, data, out=out / "undefended", config=plain, job=job)
    begin = undefended.path / "weights.safetensors"
    robust = ea.train(ARCH, data, recipe="n-fgsm", eps="4/255", weights=begin, out=out / "robust", config=hard, job=job)

    int8 = ea.Int8Options(calibration_list=TRACKS, max_drop=10 if quick else None, gate_limit=1000)
    bundle = ea.export(robust, out / "signs.edgeadv", precisions=["fp32", "fp16", "int8"], int8=int8, overwrite=True)
    plan, suite = (ea.AttackPlan(limit=100), "fast") if quick else (ea.AttackPlan(limit=1000), "standard")
    eps, results = ["4/255", "8/255"], out / "results.json"
    ea.evaluate(bundle, data.test, eps=eps, suite=suite, backends=["onnxruntime"], plan=plan, out=results)
    ea.bench(bundle, rate_hz=15, runs=30 if quick else 200, out=out / "bench.json")
    headline = ea.card([results, out / "bench.json"], bundle, out / "card.html").headline
    print(f"verdict {headline.verdict}: {out / 'card.html'}")
    if headline.clean is not None and (worst := headline.worst_case) is not None:
        clean = f"clean {headline.clean.share:.1%}"
        print(f"{headline.artefact}: {clean}, worst case at {worst.eps} {worst.figure.share:.1%}")


if __name__ == "__main__":
    main()

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
    options.add_argument("--tracks", default=TRACKS, type=Path, help="The images to hold out.")
    options.add_argument("--out", type=Path, default=Path("signs-output"), help="Where everything goes.")
    given = options.parse_args()
    out, quick, job = given.out, given.quick, ea.TrainJob(resume=True)

    data = ea.load_data(given.data)
    # a mirrored sign is another sign; frames of one track are nearly alike, so whole tracks are held out
    shared = ea.TrainConfig(no_mirror=True, holdout_list=str(given.tracks), lr=0.1, batch_size=128)
    shared = replace(shared, epochs=1, limit=860) if quick else replace(shared, epochs=30)
    plain = replace(shared, augment="trivial", ema=0.9995)
    undefended = ea.train(ARCH, data, out=out / "undefended", config=plain, job=job)
    robust = ea.train(
        ARCH,
        data,
        recipe="n-fgsm",
        eps="4/255",
        weights=undefended.path / "weights.safetensors",
        out=out / "robust",
        config=replace(shared, augment="affine", epochs=1 if quick else 20, holdout=43 if quick else 500),
        job=job,
    )

    int8 = ea.Int8Options(calibration_list=given.tracks, max_drop=10 if quick else None, gate_limit=1000)
    bundle = ea.export(robust, out / "signs.edgeadv", precisions=["fp32", "fp16", "int8"], int8=int8, overwrite=True)
    ea.evaluate(
        bundle,
        data.test,
        eps=["4/255", "8/255"],
        suite="fast" if quick else "standard",
        backends=["onnxruntime"],
        plan=ea.AttackPlan(limit=100 if quick else 1000),
        out=out / "results.json",
    )
    ea.bench(bundle, rate_hz=15, runs=30 if quick else 200, out=out / "bench.json")
    card = ea.card([out / "results.json", out / "bench.json"], bundle, out / "card.html")
    headline = card.headline
    print(f"verdict {headline.verdict}: {out / 'card.html'}")
    if headline.clean is not None and headline.worst_case is not None:
        print(
            f"{headline.artefact}: clean {headline.clean.share:.1%}, "
            f"worst case at {headline.worst_case.eps} {headline.worst_case.figure.share:.1%}"
        )


if __name__ == "__main__":
    main()

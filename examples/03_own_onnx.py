"""Somebody else's ONNX classifier: make a bundle of it, attack its own graph, and see what is left.

    python examples/03_own_onnx.py net.onnx signs/test --size 48 --scale 0..1 --classes labels.txt

The folder holds a folder of pictures for each class, named as in the file of classes. It needs
``pip install "edgeadv[export,report]"``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import edgeadv as ea


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("onnx", type=Path, help="The file.")
    options.add_argument("photos", type=Path, help="Folder of class folders.")
    options.add_argument("--size", type=int, default=224, help="Pixels of a side.")
    options.add_argument("--scale", default="imagenet", help="What its numbers are: 0..1, 0..255, imagenet.")
    options.add_argument("--classes", default="imagenet1k", help="File of id<TAB>name, or imagenet1k.")
    options.add_argument("--out", type=Path, default=Path("own-output"), help="Where everything goes.")
    given = options.parse_args()
    given.out.mkdir(exist_ok=True)

    known = ea.ImportOptions(
        scale=given.scale, color="rgb", classes=given.classes, preprocess=f"size={given.size}x{given.size}"
    )
    check = ea.check_onnx(given.onnx, options=known)
    print("\n".join(check.notes))
    bundle = ea.import_onnx(given.onnx, given.out / "own.edgeadv", frames=given.photos, options=known, overwrite=True)
    results = ea.evaluate(
        bundle, given.photos, eps=["1/255", "4/255"], suite="fast", backends=["onnxruntime"], out=given.out / "own.json"
    )
    for row in results.rows:
        if row.attack in ("clean", "worst-case"):
            print(f"{row.attack} at eps {row.eps}: {row.top1:.1%} of {row.n}")
    # the suite fast is an upper bound: "standard" asks the artefact itself too, and can earn a PASS
    print(f"masking check: {results.overall_verdict}")
    print(ea.report([results], given.out / "report.html"))


if __name__ == "__main__":
    main()

"""Classify a bundle's golden frames as an application does, under the emulated ARM Python that scripts/arm64.sh starts.

Prints what this Python is and one line for each variant; exit status 1 if a label or a probability is another one than
the bundle's own logits give, or if this is not ARM, not the installed wheel, or has PyTorch.
"""

from __future__ import annotations

import importlib.util
import math
import platform
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import PIL

import edgeadv_runtime
from edgeadv_runtime import Classifier
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.evaluation.worst_images import softmax


def main(path: str) -> int:
    """Check the bundle at ``path``."""
    wrong = []
    print(f"machine {platform.machine()}, Python {platform.python_version()}, {platform.libc_ver()[1]} glibc")
    print(
        f"edgeadv {edgeadv_runtime.__version__}, onnxruntime {onnxruntime.__version__}, numpy {np.__version__}, "
        f"pillow {PIL.__version__}"
    )
    if platform.machine() != "aarch64":
        wrong.append(f"this is {platform.machine()}, not aarch64")
    if Path(edgeadv_runtime.__file__).is_relative_to(Path(__file__).resolve().parents[1] / "runtime"):
        wrong.append("this is the checkout's edgeadv, not the wheel's")
    bundle = Bundle.open(path)
    golden = bundle.golden()
    for variant in bundle.variants:
        expected = golden.logits[variant]
        with Classifier.open(path, variant=variant, threads=1) as classifier:
            answers = [classifier.classify(frame, color_order="rgb", top=1)[0] for frame in golden.frames]
        equal = sum(answer.index == int(row.argmax()) for answer, row in zip(answers, expected, strict=True))
        golden_probability = [softmax(row)[answer.index] for answer, row in zip(answers, expected, strict=True)]
        pairs = [(answer.probability, float(p)) for answer, p in zip(answers, golden_probability, strict=True)]
        print(
            f"{variant}: {equal} of {len(answers)} frames have the golden label, probability off by at most "
            f"{max(abs(p - q) for p, q in pairs):.2g}; the first is {answers[0].name!r} at {answers[0].probability:.4f}"
        )
        # logits that are each off by e change the logarithm of a probability by no more than 2 e
        most = 2 * bundle.tolerance(variant) * float(np.abs(expected).max())
        if equal < len(answers) or any(abs(math.log(p / q)) > most for p, q in pairs):
            wrong.append(f"{variant} answers other than when it was exported")
    torch = "torch" in sys.modules or importlib.util.find_spec("torch") is not None
    print(f"PyTorch: {'here' if torch else 'neither loaded nor installed'}")
    if torch:
        wrong.append("this Python has PyTorch, which a device has not")
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

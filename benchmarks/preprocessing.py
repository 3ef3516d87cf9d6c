"""A camera's frame, uint8 in memory, to the model's input: edgeadv, torchvision and OpenCV, paired, with how far the
pixels differ.

All begin at the same BGR array, as OpenCV gives it, and end at uint8 RGB, resized and cropped; torchvision's own way
goes through Pillow. OpenCV has no antialiasing but in INTER_AREA: its pixels are others, and a network trained on
Pillow's loses accuracy on them.

    python benchmarks/preprocessing.py --out benchmarks/results/preprocessing-cpu.json
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from paired import in_turn, ratio, save
from PIL import Image
from torchvision.transforms import v2

from edgeadv_runtime import Preprocess

Pixels = NDArray[np.uint8]


def photograph(height: int, width: int) -> Pixels:
    """A real picture of this size, BGR."""
    from sklearn.datasets import load_sample_images

    return np.ascontiguousarray(
        cv2.resize(load_sample_images().images[0], (width, height), interpolation=cv2.INTER_CUBIC)[..., ::-1]
    )


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", default="1920x1080,640x480")
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    preprocess = Preprocess(resize=options.resize, crop=options.crop)
    resize = [v2.Resize(options.resize, antialias=True), v2.CenterCrop(options.crop)]
    of_pillow, of_tensor = v2.Compose(resize), v2.Compose(resize)
    rows: list[dict[str, Any]] = []
    for size in options.frames.split(","):
        width, height = map(int, size.split("x"))
        frame = photograph(height, width)

        def torchvision_pillow(_: int, frame: Pixels = frame) -> Pixels:
            return np.asarray(of_pillow(Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))))

        def torchvision_tensor(_: int, frame: Pixels = frame) -> Pixels:
            tensor = torch.from_numpy(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)
            made: Pixels = of_tensor(tensor).permute(1, 2, 0).numpy()
            return made

        def opencv(_: int, interpolation: int, frame: Pixels = frame) -> Pixels:
            height, width = frame.shape[:2]
            factor = options.resize / min(height, width)
            small = cv2.resize(frame, (int(width * factor), int(height * factor)), interpolation=interpolation)
            top, left = (round((side - options.crop) / 2) for side in small.shape[:2])
            made: Pixels = cv2.cvtColor(small[top : top + options.crop, left : left + options.crop], cv2.COLOR_BGR2RGB)
            return made

        calls: dict[str, Callable[[int], Pixels]] = {
            "edgeadv": lambda _, frame=frame: preprocess(frame, color_order="bgr"),
            "torchvision, Pillow": torchvision_pillow,
            "torchvision, tensor": torchvision_tensor,
            "OpenCV, INTER_LINEAR": lambda i, f=opencv: f(i, cv2.INTER_LINEAR),
            "OpenCV, INTER_AREA": lambda i, f=opencv: f(i, cv2.INTER_AREA),
        }
        made = {name: call(0).astype(np.int16) for name, call in calls.items()}
        seconds = in_turn(calls, rounds=options.rounds, warm_up=5)
        for name, taken in seconds.items():
            apart = np.abs(made[name] - made["edgeadv"])
            rows.append(
                {
                    "frame": size,
                    "library": name,
                    "ms_median": round(1000 * statistics.median(taken), 3),
                    "edgeadv_speedup": ratio(taken, seconds["edgeadv"]),
                    "levels_apart_mean": round(float(apart.mean()), 3),
                    "levels_apart_max": int(apart.max()),
                }
            )
            print(rows[-1], flush=True)
    save(options.out, "preprocessing", vars(options), rows)


if __name__ == "__main__":
    main()

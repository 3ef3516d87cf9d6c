"""The folder in which the code of every page runs: drawings of four signs, networks that learned them, and what the
commands made of them. ``python -m tests.pages.world FOLDER`` makes one to try a page in by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tests.forking import run

SIZE = 48
CLASSES = ("stop", "yield", "speed", "parking")
COUNTS = {"train": 40, "test": 20}
MODULE = '''"""A classifier of one's own: four classes, pictures of 3 x 48 x 48 in [0, 1]."""

from torch import nn


def make() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=3),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    )
'''


def drawing(class_id: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One sign on a grey street, uint8 (48, 48, 3) RGB, at a place and a size of its own."""
    picture = Image.fromarray(rng.integers(60, 140, (SIZE, SIZE, 3), dtype=np.uint8))
    draw = ImageDraw.Draw(picture)
    x, y, r = (*rng.integers(20, 28, 2), int(rng.integers(14, 19)))
    if class_id == 0:
        angles = np.pi / 8 + np.arange(8) * np.pi / 4
        draw.polygon([(x + r * np.cos(a), y + r * np.sin(a)) for a in angles], fill=(190, 20, 30))
        draw.rectangle((x - r // 2, y - 2, x + r // 2, y + 2), fill="white")
    elif class_id == 1:
        draw.polygon([(x - r, y - r), (x + r, y - r), (x, y + r)], fill="white", outline=(190, 20, 30), width=4)
    elif class_id == 2:
        draw.ellipse((x - r, y - r, x + r, y + r), fill="white", outline=(190, 20, 30), width=4)
        draw.rectangle((x - 5, y - 6, x + 5, y + 6), fill="black")
    else:
        draw.rectangle((x - r, y - r, x + r, y + r), fill=(20, 60, 170))
        draw.rectangle((x - 2, y - r + 4, x + 2, y + r - 4), fill="white")
    return np.asarray(picture)


def pictures(home: Path) -> None:
    """``signs/``, ``photos/``, ``frame.png`` and ``video.avi``."""
    rng = np.random.default_rng(0)
    for part, count in COUNTS.items():
        for class_id in range(len(CLASSES)):
            folder = home / "signs" / part / str(class_id)
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(drawing(class_id, rng)).save(folder / f"{i:03d}.png")
    (home / "photos").symlink_to("signs/test")
    (home / "frame.png").symlink_to("signs/test/0/000.png")
    video = cv2.VideoWriter(str(home / "video.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 15, (SIZE, SIZE))
    for i in range(30):
        video.write(np.ascontiguousarray(drawing(i // 10, rng)[..., ::-1]))
    video.release()


def strangers(home: Path) -> None:
    """``my_net.py`` with ``weights.pth``, and the same network as ``net.onnx`` with ``labels.txt``."""
    (home / "my_net.py").write_text(MODULE)
    names: dict[str, object] = {}
    exec(MODULE, names)
    torch.manual_seed(0)
    net = names["make"]()  # type: ignore[operator]
    x = np.stack([np.asarray(Image.open(file)) for file in sorted((home / "signs/train").rglob("*.png"))])
    y = torch.arange(len(CLASSES)).repeat_interleave(COUNTS["train"])
    images = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), y).backward()
        optimizer.step()
    torch.save(net.state_dict(), home / "weights.pth")
    torch.onnx.export(net.eval(), (images[:1],), str(home / "net.onnx"), input_names=["image"], verbose=False)
    (home / "labels.txt").write_text("".join(f"{i}\t{name}\n" for i, name in enumerate(CLASSES)))


def command(home: Path, line: str) -> None:
    done = run(*line.split(), cwd=home)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def build(home: Path) -> None:
    """Fill an empty folder."""
    pictures(home)
    strangers(home)
    train = "train --data signs --arch timm/test_resnet --epochs 6 --batch-size 32 --lr 0.05 --no-mirror"
    command(home, f"{train} --out runs/undefended")
    command(home, f"{train} --recipe n-fgsm --eps 4/255 --out runs/robust")
    command(home, "export runs/undefended --data signs --out undefended.edgeadv")
    command(
        home,
        "export runs/robust --data signs --precision fp32,fp16,int8 --max-drop 10 --overwrite --out robust.edgeadv",
    )
    command(
        home,
        "evaluate robust.edgeadv --data signs --eps 4/255,8/255 --suite fast --backend onnxruntime --precision all "
        "--out results.json",
    )
    command(home, "bench robust.edgeadv --runs 20 --out bench.json")
    command(home, "attack robust.edgeadv --data signs --eps 8/255 --suite fast --out robust.pack")


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True)
    build(Path(sys.argv[1]).resolve())

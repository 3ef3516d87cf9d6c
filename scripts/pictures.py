"""The pictures of README and the site: the head of a report, and the camera page with a label that has flipped.

    python scripts/pictures.py     takes about five minutes, and Chromium

Both show what the commands make of digits and of drawings of our own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in (".", "export", "runtime")]
PICTURES = ROOT / "docs" / "pictures"
PATHS = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:3])}
LABEL = "document.getElementById('label')?.textContent"


def edgeadv(home: Path, line: str) -> None:
    """Run a command in a folder."""
    subprocess.run([sys.executable, "-m", "edgeadv", *line.split()], cwd=home, env=PATHS, check=True)


def report(home: Path) -> Path:
    """A report of the two networks of the first tutorial."""
    for name, more in (("plain", ""), ("hard", "--recipe n-fgsm --eps 0.1")):
        edgeadv(home, f"train --data mnist5k --arch timm/test_efficientnet --epochs 8 {more} --out runs/{name}")
        edgeadv(home, f"export runs/{name} --precision fp32 --out {name}.edgeadv")
        edgeadv(
            home, f"evaluate {name}.edgeadv --data mnist5k --eps 0.1 --suite standard --limit 350 --out {name}.json"
        )
    edgeadv(home, "report plain.json hard.json --out report.html")
    return home / "report.html"


def camera(home: Path, browser: object) -> None:
    """The page over drawings, a patch on them that flips the label."""
    from tests.browser import Browser
    from tests.pages.world import CLASSES, pictures

    assert isinstance(browser, Browser)
    pictures(home)
    for part in ("train", "test"):
        (home / "named" / part).mkdir(parents=True)
        for class_id, name in enumerate(CLASSES):
            (home / "named" / part / name).symlink_to(home / "signs" / part / str(class_id))
    edgeadv(
        home, "train --data named --arch timm/test_resnet --epochs 6 --batch-size 32 --lr 0.05 --no-mirror --out run"
    )
    edgeadv(home, "export run --data named --precision fp32 --out signs.edgeadv")
    edgeadv(home, "patch signs.edgeadv --data named --area 25% --target parking --out p.png")
    command = [sys.executable, "-m", "edgeadv", "camera", "signs.edgeadv", "--source", "one", "--loop"]
    command += ["--fps", "4", "--serve", "127.0.0.1:0", "--patch", "p.png"]
    (home / "one").mkdir()
    for file in sorted((home / "signs/test/0").glob("*.png")):
        shutil.copy(file, home / "one" / "sign.png")
        program = subprocess.Popen(command, cwd=home, env=PATHS, stderr=subprocess.PIPE, text=True)
        try:
            assert program.stderr is not None
            browser.call("Page.navigate", url=program.stderr.readline().strip())
            browser.wait(LABEL, lambda label: label == "stop")
            browser.value("document.getElementById('patch-on').click()")
            time.sleep(2.0)
            browser.picture(PICTURES / "camera.png", 1000, 560)
            if browser.value(LABEL) != "stop":
                return
        finally:
            program.kill()
    raise SystemExit("the patch turned no label")


def main() -> None:
    """Write both."""
    from tests.browser import Browser

    PICTURES.mkdir(exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        browser = Browser(chromium, home / "profile")
        try:
            (home / "digits").mkdir()
            browser.call("Page.navigate", url=report(home / "digits").as_uri())
            browser.picture(PICTURES / "report.png", 1000, 620)
            (home / "drawings").mkdir()
            camera(home / "drawings", browser)
        finally:
            browser.close()
    for file in PICTURES.glob("*.png"):
        Image.open(file).convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(file, optimize=True)
        print(f"{file.relative_to(ROOT)}: {file.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()

"""What the runtime costs on a device: installed size, import time, memory with a network open; and that PyTorch is not
loaded.

Installs this checkout with the extra ``ort``, and nothing else, into an empty environment.

    python benchmarks/footprint.py regnet_y_400mf.edgeadv --out benchmarks/results/footprint-cpu.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from edgeadv_runtime.device.facts import environment
from edgeadv_runtime.files import write_json

IMPORT = "import time; t = time.perf_counter(); import edgeadv_runtime; print(time.perf_counter() - t)"
HELP = (
    "import subprocess, sys, time; t = time.perf_counter(); subprocess.run([sys.argv[1], '--help'], check=True, "
    "capture_output=True); print(time.perf_counter() - t)"
)
OPEN = """
import json, sys
import numpy as np
def rss(): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmRSS')) / 1024
begin = rss()
from edgeadv_runtime import Classifier
imported = rss()
with Classifier.open(sys.argv[1], threads=1) as classifier:
    opened = rss()
    frame = np.zeros((480, 640, 3), np.uint8)
    for _ in range(20): classifier.classify(frame, color_order='bgr')
    used = rss()
loaded = {name.partition('.')[0] for name in sys.modules}
heavy = sorted(loaded & {'torch', 'torchvision', 'timm', 'onnx', 'cv2', 'tensorrt'})
print(json.dumps({'python': begin, 'imported': imported, 'opened': opened, 'used': used, 'heavy': heavy}))
"""


def installed(folder: Path) -> dict[str, float]:
    """MiB of each distribution in the environment at ``folder``, pip and its tools left out, and of all together."""
    packages = next(folder.glob("lib/python*/site-packages"))
    sizes: dict[str, float] = {}
    for entry in packages.iterdir():
        if entry.name.partition("-")[0] in ("pip", "setuptools", "wheel", "_distutils_hack"):
            continue
        files = entry.rglob("*") if entry.is_dir() else [entry]
        sizes[entry.name] = sum(file.stat().st_size for file in files if file.is_file()) / 2**20
    return sizes


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    checkout = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "venv"
        venv.create(home, with_pip=True)
        python = str(home / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-compile", f"{checkout}[ort]"], check=True)
        sizes = installed(home)

        def run(*arguments: str) -> str:
            return subprocess.run([python, "-I", *arguments], check=True, capture_output=True, text=True).stdout

        run("-c", IMPORT)  # compiles
        times = [float(run("-c", IMPORT)) for _ in range(options.rounds)]
        command = str(home / "bin" / "edgeadv")
        helps = [float(run("-c", HELP, command)) for _ in range(options.rounds + 1)][1:]
        memory: dict[str, Any] = json.loads(run("-c", OPEN, str(options.bundle.resolve())))
    assert memory["heavy"] == [], memory
    rows = {
        "installed_mib": round(sum(sizes.values()), 1),
        "largest_mib": {name: round(mib, 1) for name, mib in sorted(sizes.items(), key=lambda item: -item[1])[:8]},
        "import_s_median": round(statistics.median(times), 4),
        "import_s_quartiles": [round(q, 4) for q in statistics.quantiles(times, n=4)],
        "help_s_median": round(statistics.median(helps), 4),
        "rss_mib": {key: round(value, 1) for key, value in memory.items() if key != "heavy"},
        "heavy_modules_loaded": memory["heavy"],
    }
    print(json.dumps(rows, indent=2))
    write_json(
        options.out, {"benchmark": "footprint", "python": sys.version.split()[0], "environment": environment(), **rows}
    )


if __name__ == "__main__":
    main()

"""A folder to work in, for tests of what a command does with things that are broken."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Desk:
    """A folder to work in, and copies of real things to break."""

    home: Path
    tiny_bundle: Path
    tiny_photos: Path
    tiny_pack: Path
    tiny_run: Path
    tiny_split: Path

    def bundle(self) -> Path:
        return self._copy(self.tiny_bundle, "model.edgeadv")

    def photos(self) -> Path:
        return self._copy(self.tiny_photos, "photos")

    def pack(self) -> Path:
        return self._copy(self.tiny_pack, "photos.pack")

    def run(self) -> Path:
        return self._copy(self.tiny_run, "run")

    def split(self) -> Path:
        return self._copy(self.tiny_split, "split")

    def file(self, name: str, content: str | bytes = "I was here first") -> Path:
        path = self.home / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def bench(self) -> Path:
        """A bench file, measured now: it is short."""
        from edgeadv.cli import main

        out = self.home / "bench.json"
        options = ["--precision", "fp16", "--runs", "1", "--warm-up", "0", "--out", str(out)]
        assert main(["bench", str(self.bundle()), *options]) == 0
        return out

    def _copy(self, source: Path, name: str) -> Path:
        return shutil.copytree(source, self.home / name) if not (self.home / name).exists() else self.home / name

    def contents(self) -> dict[str, str | None]:
        """Hash of every file, None for folders: what must not change."""
        return {
            str(path.relative_to(self.home)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
            for path in sorted(self.home.rglob("*"))
        }

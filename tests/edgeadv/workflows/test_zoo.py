"""The zoo: networks by name come from a folder or an address, and only as the package knows them."""

from __future__ import annotations

import http.server
import importlib.util
import shutil
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import edgeadv as ea
from edgeadv.models.builder import PixelModel
from edgeadv.training.runs import Run
from edgeadv.workflows import zoo as zoo_module
from edgeadv_runtime.errors import DataError, InputError, IntegrityError
from edgeadv_runtime.files import sha256_file
from tests.edgeadv.conftest import Cli

ROOT = Path(__file__).parents[3]
MODELS = ROOT / "examples" / "models"


def script() -> Any:
    spec = importlib.util.spec_from_file_location("zoo_script", ROOT / "scripts" / "zoo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def models(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of one network, ``tiny``; nothing of it is in the checkout or the cache."""
    folder, listing = tmp_path / "models", tmp_path / "zoo.json"
    script().add(Run.open(run), "tiny", folder, listing)
    monkeypatch.setattr(zoo_module, "LIST", listing)
    monkeypatch.setattr(zoo_module, "_CHECKOUT", tmp_path / "no-checkout")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def address(models: Path) -> Iterator[str]:
    handler = partial(Quiet, directory=str(models))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def weights(run: Run) -> dict[str, torch.Tensor]:
    model: PixelModel = run.load_model()
    return model.state_dict()


def test_a_network_is_its_run_with_weights_in_half_precision(models: Path, run: Path) -> None:
    found, made = ea.zoo("tiny", zoo_from=models), Run.open(run)
    assert found.title == made.title and found.classes == made.classes and found.preprocess == made.preprocess
    assert found.training_images is not None and made.training_images is not None
    assert len(found.training_images) == len(made.training_images) == 64
    # where it was trained says nothing about it
    assert found.data == "split"
    assert found.info.rounded_from == made.info.weights_sha256 == found.provenance["rounded_from"]
    for name, tensor in weights(made).items():
        close = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(weights(found)[name], close)
    listed = ea.zoo_nets()["tiny"]
    assert listed.parameters == sum(p.numel() for p in made.load_model().parameters())
    assert {file.name for file in (models / "tiny").iterdir()} == set(listed.files)


def test_it_is_fetched_once_and_then_needs_no_address(models: Path, address: str) -> None:
    first = ea.zoo("tiny", zoo_from=address + "/")
    assert first.path != models / "tiny"
    shutil.rmtree(models)
    assert ea.zoo("tiny").path == ea.zoo("tiny", zoo_from=address).path == first.path


def test_what_lies_in_the_cache_is_looked_at_again(models: Path, address: str) -> None:
    first = ea.zoo("tiny", zoo_from=address)
    with (first.path / "weights.safetensors").open("r+b") as stream:
        stream.seek(2000)
        stream.write(b"\0\1\2\3")
    with pytest.raises(IntegrityError, match=r"weights\.safetensors is not the zoo's tiny of this edgeadv"):
        ea.zoo("tiny")
    # and fetched again where it can be
    ea.zoo("tiny", zoo_from=address)
    assert ea.zoo("tiny").path == first.path


@pytest.mark.parametrize("file", ["run.json", "weights.safetensors", "training-images.npy"])
@pytest.mark.parametrize("change", ["longer", "other", "gone"])
def test_a_file_that_is_not_the_projects(models: Path, address: str, tmp_path: Path, file: str, change: str) -> None:
    path = models / "tiny" / file
    content = path.read_bytes()
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(content + b" " if change == "longer" else content[:-1] + b"\x7f")
    with pytest.raises(DataError if change == "gone" else IntegrityError) as raised:
        ea.zoo("tiny", zoo_from=address)
    assert f"{address}/tiny/{file}" in str(raised.value) and "`zoo_from`" in str(raised.value)
    assert not [*(tmp_path / "cache").rglob("*.*")]


def test_an_address_that_nobody_answers(models: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DataError, match=r"cannot be fetched \(.*efused.*\): check the address in `zoo_from`"):
        ea.zoo("tiny", zoo_from=f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("name", "place", "said"),
    [
        ("tyni", None, "`zoo` has no 'tyni': choose from tiny"),
        ("tiny", None, "`zoo_from` is needed, for tiny is not on this machine"),
        ("tiny", "nowhere", "`zoo_from` nowhere holds no tiny/run.json"),
        ("tiny", "ftp://host/models", "is neither a folder nor an address of http or https"),
        ("tiny", "file:///models", "is neither a folder nor an address of http or https"),
    ],
)
def test_what_cannot_be_had(models: Path, name: str, place: str | None, said: str) -> None:
    with pytest.raises(InputError) as raised:
        ea.zoo(name, zoo_from=place)
    assert said in str(raised.value)


def test_the_command_exports_it(models: Path, split: Path, cli: Cli) -> None:
    outcome = cli("export", "--zoo", "tiny", "--zoo-from", models, "--data", split, "--precision", "fp32", "--out", "b")
    assert outcome.status == 0, outcome.err
    assert ea.Bundle.open("b").manifest.provenance["data"]["spec"] == "split"
    assert cli("verify", "b").status == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["run", "--zoo", "tiny"], "--zoo cannot be given beside a run"),
        (["--zoo-from", "models"], "--zoo-from belongs to --zoo"),
        (["--zoo", "tiny", "--arch", "resnet18"], "--arch cannot be given beside a run, which brings its own: tiny"),
        (["--zoo", "none", "--data", "split"], "--zoo has no 'none': choose from tiny"),
        (["--zoo", "tiny"], "--data is needed"),
    ],
)
def test_the_commands_bad_input(models: Path, cli: Cli, options: list[str], said: str) -> None:
    where = ["--zoo-from", str(models)] if options[0] == "--zoo" else []
    outcome = cli("export", *options, *where, "--out", "b")
    assert outcome.status == 2 and len(outcome.err.strip().splitlines()) == 1
    assert said in outcome.err and not Path("b").exists()


def test_what_is_committed_is_what_the_package_knows() -> None:
    nets = ea.zoo_nets()
    assert {folder.name for folder in MODELS.glob("*/")} == set(nets)
    for name, net in nets.items():
        found, file = ea.zoo(name, zoo_from=MODELS), MODELS / name / "weights.safetensors"
        assert sum(p.numel() for p in found.load_model().parameters()) == net.parameters
        assert file.stat().st_size <= 9_000_000 and found.info.weights_sha256 == sha256_file(file)
        assert "/" not in found.data and "\\" not in found.data
    assert sum(file.stat().st_size for file in MODELS.rglob("*") if file.is_file()) <= 40_000_000

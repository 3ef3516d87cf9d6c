"""``edgeadv bundle sign``, and what the other commands on bundles say of signatures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.files import sha256_file


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A private key; its public one lies beside it."""
    key = Ed25519PrivateKey.generate()
    path = tmp_path / "private.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public)
    return path


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy.edgeadv"))


def test_sign_show_and_verify(cli: Any, copy: Path, private: Path) -> None:
    assert "signature          none" in cli("bundle", "show", copy).out
    signed = cli("bundle", "sign", copy, "--key", private)
    assert (signed.status, signed.err) == (0, "")
    assert f"written            {copy / 'manifest.json.sig'}" in signed.out
    assert sha256_file(copy / "manifest.json") in signed.out
    assert "signature          there is one; whose it is, --public-key tells" in cli("bundle", "show", copy).out
    shown = cli("bundle", "show", copy, "--public-key", "public.pem")
    assert shown.status == 0 and "signature          fits public.pem" in shown.out
    assert cli("verify", copy, "--public-key", "public.pem", "--precision", "fp32").status == 0


def test_a_changed_manifest_is_refused_in_one_line(cli: Any, copy: Path, private: Path) -> None:
    assert cli("bundle", "sign", copy, "--key", private).status == 0
    with (copy / "manifest.json").open("a") as stream:
        stream.write("\n")
    assert cli("bundle", "show", copy).status == 0
    for command in (("bundle", "show"), ("verify",)):
        refused = cli(*command, copy, "--public-key", "public.pem")
        assert (refused.status, refused.out) == (2, "")
        (line,) = refused.err.splitlines()
        assert "is not what the owner of public.pem signed" in line


def test_a_damaged_bundle_is_not_signed(cli: Any, copy: Path, private: Path) -> None:
    with (copy / "model.fp16.onnx").open("r+b") as stream:
        stream.write(b"\xff")
    refused = cli("bundle", "sign", copy, "--key", private)
    assert refused.status == 2 and "model.fp16.onnx is damaged" in refused.err
    assert not (copy / "manifest.json.sig").exists()


def test_a_slim_copy_says_that_it_is_not_signed(cli: Any, copy: Path, private: Path) -> None:
    options = ("--variant", "fp16", "--out", "my slim.edgeadv")
    assert "not signed" not in cli("bundle", "slim", copy, *options).out
    assert cli("bundle", "sign", copy, "--key", private).status == 0
    slim = cli("bundle", "slim", copy, *options, "--overwrite")
    assert slim.status == 0
    assert "not signed: the copy has a manifest of its own; edgeadv bundle sign 'my slim.edgeadv' --key" in slim.out
    assert not Bundle.open("my slim.edgeadv").signed


def test_a_slim_copy_in_the_place_of_its_bundle_says_so_too(cli: Any, copy: Path, private: Path) -> None:
    assert cli("bundle", "sign", copy, "--key", private).status == 0
    slim = cli("bundle", "slim", copy, "--variant", "fp16", "--out", copy, "--overwrite")
    assert slim.status == 0 and "not signed" in slim.out
    assert not (copy / "manifest.json.sig").exists()

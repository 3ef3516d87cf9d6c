"""Signatures: written as openssl writes them, checked before anything is parsed, each refusal one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from edgeadv_runtime import errors
from edgeadv_runtime.bundle import signature
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.manifest import bundle_id
from edgeadv_runtime.errors import BundleError, InputError, IntegrityError, MissingDependencyError
from edgeadv_runtime.files import sha256_file

OPENSSL = shutil.which("openssl")


def private_pem(key: Any, *, password: bytes | None = None) -> bytes:
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))


def public_pem(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


class Keys(NamedTuple):
    private: Path
    public: Path


def write_keys(folder: Path, name: str, key: Any) -> Keys:
    keys = Keys(folder / f"{name}-private.pem", folder / f"{name}-public.pem")
    keys.private.write_bytes(private_pem(key))
    keys.public.write_bytes(public_pem(key))
    return keys


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return write_keys(tmp_path, "own", ed25519.Ed25519PrivateKey.generate())


@pytest.fixture
def signed(tiny_bundle: Bundle, tmp_path: Path, keys: Keys) -> Path:
    """A signed bundle that a test may damage."""
    copy = Path(shutil.copytree(tiny_bundle.path, tmp_path / "signed.edgeadv"))
    Bundle.open(copy).sign(keys.private)
    return copy


def test_a_signed_bundle_opens_with_its_key_and_without(signed: Path, keys: Keys) -> None:
    assert (signed / "manifest.json.sig").stat().st_size == 64
    assert Bundle.open(signed, public_key=keys.public).signed
    assert Bundle.open(signed, public_key=str(keys.public)).id == Bundle.open(signed).id
    digest = sha256_file(signed / "manifest.json")
    assert Bundle.open(signed, public_key=keys.public, expected_sha256=digest).signed


def test_the_signature_is_over_the_bytes_of_the_manifest(signed: Path, keys: Keys) -> None:
    key = load_pem_private_key(keys.private.read_bytes(), password=None)
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    data, found = (signed / "manifest.json").read_bytes(), (signed / "manifest.json.sig").read_bytes()
    key.public_key().verify(found, data)
    assert found == key.sign(data)


def openssl(*arguments: object) -> subprocess.CompletedProcess[str]:
    assert OPENSSL is not None
    return subprocess.run([OPENSSL, *map(str, arguments)], capture_output=True, text=True, check=False)


if OPENSSL is not None:

    def test_openssl_accepts_our_signature_and_we_accept_its_keys_and_signatures(signed: Path, tmp_path: Path) -> None:
        keys = Keys(tmp_path / "private.pem", tmp_path / "public.pem")
        assert openssl("genpkey", "-algorithm", "ed25519", "-out", keys.private).returncode == 0
        assert openssl("pkey", "-in", keys.private, "-pubout", "-out", keys.public).returncode == 0
        ours = Bundle.open(signed).sign(keys.private)
        manifest, theirs = signed / "manifest.json", tmp_path / "theirs.sig"
        verify = ("pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", keys.public, "-in", manifest, "-sigfile")
        assert openssl(*verify, ours).returncode == 0, openssl(*verify, ours).stderr
        sign = openssl("pkeyutl", "-sign", "-rawin", "-inkey", keys.private, "-in", manifest, "-out", theirs)
        assert sign.returncode == 0, sign.stderr
        assert theirs.read_bytes() == ours.read_bytes()
        ours.write_bytes(theirs.read_bytes())
        assert Bundle.open(signed, public_key=keys.public).signed


def test_a_manifest_that_a_careful_attacker_changed(signed: Path, keys: Keys) -> None:
    manifest = json.loads((signed / "manifest.json").read_bytes())
    manifest["title"] = "another"
    manifest["bundle_id"] = bundle_id(manifest)
    (signed / "manifest.json").write_text(json.dumps(manifest))
    assert Bundle.open(signed).manifest.title == "another"
    with pytest.raises(IntegrityError, match=r"is not what the owner of .* signed: it was changed"):
        Bundle.open(signed, public_key=keys.public)


def test_the_signature_is_checked_before_the_manifest_is_parsed(signed: Path, keys: Keys) -> None:
    (signed / "manifest.json").write_bytes(b"{ not even JSON")
    with pytest.raises(IntegrityError, match="is not what the owner"):
        Bundle.open(signed, public_key=keys.public, expected_sha256="0" * 64)
    with pytest.raises(BundleError, match="not a readable bundle manifest"):
        Bundle.open(signed)


def test_a_file_that_the_signed_manifest_names_is_covered(signed: Path, keys: Keys) -> None:
    with (signed / "model.fp32.onnx").open("r+b") as stream:
        stream.write(b"\xff")
    with pytest.raises(IntegrityError, match=r"model\.fp32\.onnx is damaged"):
        Bundle.open(signed, public_key=keys.public)


def test_no_signature(tiny_bundle: Bundle, keys: Keys) -> None:
    assert not tiny_bundle.signed
    with pytest.raises(IntegrityError, match="is not signed"):
        Bundle.open(tiny_bundle.path, public_key=keys.public)


def test_another_key(signed: Path, tmp_path: Path) -> None:
    other = write_keys(tmp_path, "other", ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(IntegrityError, match="signed with another key"):
        Bundle.open(signed, public_key=other.public)


@pytest.mark.parametrize("data", [b"", b"\0" * 63, b"\0" * 65])
def test_a_signature_of_another_length(signed: Path, keys: Keys, data: bytes) -> None:
    (signed / "manifest.json.sig").write_bytes(data)
    with pytest.raises(IntegrityError, match=f"no Ed25519 signature: it has {len(data)} bytes"):
        Bundle.open(signed, public_key=keys.public)


def test_a_flipped_bit_of_the_signature(signed: Path, keys: Keys) -> None:
    path = signed / "manifest.json.sig"
    data = bytearray(path.read_bytes())
    for index in (0, 31, 32, 63):
        path.write_bytes(bytes(byte ^ (i == index) for i, byte in enumerate(data)))
        with pytest.raises(IntegrityError, match="is not what the owner"):
            Bundle.open(signed, public_key=keys.public)


def test_a_folder_in_the_place_of_the_signature(signed: Path, keys: Keys) -> None:
    (signed / "manifest.json.sig").unlink()
    (signed / "manifest.json.sig").mkdir()
    assert not Bundle.open(signed).signed
    with pytest.raises(IntegrityError, match="is not a readable signature: it is a folder"):
        Bundle.open(signed, public_key=keys.public)


OTHERS: dict[str, Callable[[], Any]] = {
    "RSA": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "X25519": x25519.X25519PrivateKey.generate,
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS.keys())
def test_keys_of_another_kind(signed: Path, tmp_path: Path, make: Callable[[], Any]) -> None:
    before = (signed / "manifest.json.sig").read_bytes()
    keys = write_keys(tmp_path, "other", make())
    with pytest.raises(InputError, match=r"is a key of another kind \(.*\), not an Ed25519 public key"):
        Bundle.open(signed, public_key=keys.public)
    with pytest.raises(InputError, match=r"is a key of another kind \(.*\), not an Ed25519 private key"):
        Bundle.open(signed).sign(keys.private)
    assert (signed / "manifest.json.sig").read_bytes() == before


NO_PEM = [
    b"",
    b"text",
    b"\x00\xff" * 40,
    b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
]


@pytest.mark.parametrize("data", NO_PEM)
def test_files_that_are_no_keys(signed: Path, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "no.pem").write_bytes(data)
    with pytest.raises(InputError, match="not a PEM file with a public key"):
        Bundle.open(signed, public_key=tmp_path / "no.pem")
    with pytest.raises(InputError, match=r"not a PEM file with a private key .*; make one: openssl genpkey"):
        Bundle.open(signed).sign(tmp_path / "no.pem")


def test_keys_that_are_mixed_up(signed: Path, keys: Keys) -> None:
    with pytest.raises(InputError, match="holds a private key"):
        Bundle.open(signed, public_key=keys.private)
    with pytest.raises(InputError, match="not a PEM file with a private key"):
        Bundle.open(signed).sign(keys.public)


@pytest.mark.parametrize("name", ["missing.pem", "."])
def test_keys_that_cannot_be_read(signed: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"public key"):
        Bundle.open(signed, public_key=tmp_path / name)
    with pytest.raises(InputError, match=r"private key"):
        Bundle.open(signed).sign(tmp_path / name)


def test_an_encrypted_key(signed: Path, tmp_path: Path) -> None:
    path = tmp_path / "encrypted.pem"
    path.write_bytes(private_pem(ed25519.Ed25519PrivateKey.generate(), password=b"secret"))
    with pytest.raises(InputError, match=r"encrypted\.pem is encrypted: .* openssl pkey -in"):
        Bundle.open(signed).sign(path)


def test_keys_do_not_live_in_the_bundle(signed: Path, keys: Keys) -> None:
    bundle = Bundle.open(signed)
    public = Path(shutil.copy(keys.public, signed))
    with pytest.raises(InputError, match="lies in the bundle that it is to check"):
        Bundle.open(signed, public_key=public)
    private = Path(shutil.copy(keys.private, signed))
    with pytest.raises(InputError, match="would travel with it"):
        bundle.sign(private)
    with pytest.raises(IntegrityError, match=r"own-p.*\.pem is not named by the manifest"):
        Bundle.open(signed)


def test_a_new_signature_takes_the_place_of_the_old_one(signed: Path, keys: Keys, tmp_path: Path) -> None:
    other = write_keys(tmp_path, "other", ed25519.Ed25519PrivateKey.generate())
    assert Bundle.open(signed, public_key=keys.public).sign(other.private) == signed / "manifest.json.sig"
    assert Bundle.open(signed, public_key=other.public).signed
    with pytest.raises(IntegrityError, match="another key"):
        Bundle.open(signed, public_key=keys.public)


def test_a_slim_copy_is_not_signed_until_it_is(signed: Path, keys: Keys, tmp_path: Path) -> None:
    slim = Bundle.open(signed).slim(tmp_path / "slim.edgeadv", variants=["fp16"], weights=False)
    assert not slim.signed
    shutil.copy(signed / "manifest.json.sig", slim.path)
    with pytest.raises(IntegrityError, match="is not what the owner"):
        Bundle.open(slim.path, public_key=keys.public)
    slim.sign(keys.private)
    assert Bundle.open(slim.path, public_key=keys.public).variants == ("fp16",)


def test_without_cryptography_the_extra_is_named(signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module.partition(".")[0])

    assert Bundle.open(signed).signed
    monkeypatch.setattr(errors.importlib, "import_module", absent)
    for attempt in (
        lambda: Bundle.open(signed, public_key=keys.public),
        lambda: Bundle.open(signed).sign(keys.private),
    ):
        with pytest.raises(
            MissingDependencyError, match=r'cryptography is not installed: pip install "edgeadv\[sign\]"'
        ):
            attempt()


def test_the_path_of_a_signature() -> None:
    assert signature.signature_path(Path("a/manifest.json")) == Path("a/manifest.json.sig")

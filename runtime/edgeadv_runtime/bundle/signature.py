"""Detached Ed25519 signatures over the bytes of a manifest: the one thing in a bundle that stops tampering by itself.

``manifest.json.sig`` is 64 raw bytes beside ``manifest.json``, as ``openssl pkeyutl -sign -rawin`` writes them. The
manifest names the hash of every other file, so the signature covers those too. It is worth what the way of the public
key is worth: one that lies in the bundle, or came with it, proves nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError, IntegrityError, require
from ..files import write_bytes
from ..reading import MOST_RECORD_BYTES, decoded, read_bytes

SUFFIX = ".sig"
_LENGTH = 64
_ED25519 = "cryptography.hazmat.primitives.asymmetric.ed25519"
_MAKE = "openssl genpkey -algorithm ed25519 -out private.pem"
_EXTRACT = "openssl pkey -in private.pem -pubout -out public.pem"


def signature_path(manifest: Path) -> Path:
    """Where the signature of ``manifest`` lies."""
    return manifest.with_name(manifest.name + SUFFIX)


def sign(data: bytes, manifest: Path, private_key: Path) -> Path:
    """Sign ``data``, the bytes of ``manifest``, and write the signature beside it, over one that is there.

    Args:
        data: what was read from ``manifest``, and checked.
        manifest: the file to sign.
        private_key: an unencrypted PEM file with an Ed25519 private key.

    Returns:
        Path of the signature.

    Raises:
        InputError: the key is not such a key, or lies beside the manifest.
        StorageError: the signature cannot be written.
        MissingDependencyError: cryptography is not installed.
    """
    if _inside(private_key, manifest):
        raise InputError(f"{private_key} lies in the bundle, and would travel with it: keep the private key elsewhere")
    signature: bytes = _key(private_key, "private").sign(data)
    path = signature_path(manifest)
    write_bytes(path, signature)
    return path


def check(data: bytes, manifest: Path, public_key: Path) -> None:
    """Refuse ``data``, the bytes of ``manifest``, unless the owner of ``public_key`` has signed exactly them.

    Args:
        data: what was read from ``manifest``.
        manifest: the file; its signature lies beside it.
        public_key: a PEM file with an Ed25519 public key, which came by another way than the bundle.

    Raises:
        IntegrityError: there is no signature, or it is not one of this key over these bytes.
        InputError: the key is not such a key, or lies in the bundle.
        MissingDependencyError: cryptography is not installed.
    """
    if _inside(public_key, manifest):
        raise InputError(
            f"{public_key} lies in the bundle that it is to check, which proves nothing: take it from elsewhere"
        )
    key = _key(public_key, "public")
    path = signature_path(manifest)
    if not path.exists():
        raise IntegrityError(
            f"{manifest} is not signed: there is no {path.name}; have it signed with `edgeadv bundle sign`, or open it "
            "without a public key"
        )
    signature = read_bytes(path, what="signature", limit=MOST_RECORD_BYTES, error=IntegrityError)
    if len(signature) != _LENGTH:
        raise IntegrityError(
            f"{path} is no Ed25519 signature: it has {len(signature)} bytes, not {_LENGTH}; copy it again"
        )
    invalid = require("cryptography.exceptions", extra="sign").InvalidSignature
    try:
        key.verify(signature, data)
    except invalid as error:
        raise IntegrityError(
            f"{manifest} is not what the owner of {public_key} signed: it was changed, or signed with another key; "
            "do not use "
            "this bundle"
        ) from error


def _inside(key: Path, manifest: Path) -> bool:
    # not Path.resolve(), which raises an error of its own of links in a circle
    return Path(os.path.realpath(key)).is_relative_to(os.path.realpath(manifest.parent))


def _key(path: Path, kind: Literal["private", "public"]) -> Any:
    """The Ed25519 key of this kind in a PEM file."""
    mend = f"make one: {_MAKE}" if kind == "private" else f"make it from the private one: {_EXTRACT}"
    serialization = require("cryptography.hazmat.primitives.serialization", extra="sign")
    wanted = getattr(require(_ED25519, extra="sign"), f"Ed25519{kind.title()}Key")
    data = read_bytes(path, what=f"{kind} key", limit=MOST_RECORD_BYTES, links=True, error=InputError)
    if kind == "public" and b"PRIVATE KEY-----" in data:
        raise InputError(
            f"{path} holds a private key, which stays where bundles are signed; make its public key: {_EXTRACT}"
        )
    with decoded(path, what=f"not a PEM file with a {kind} key", mend=mend, error=InputError):
        try:
            if kind == "private":
                loaded = serialization.load_pem_private_key(data, password=None)
            else:
                loaded = serialization.load_pem_public_key(data)
        except TypeError as error:
            raise InputError(
                f"{path} is encrypted: write it without a pass phrase to a place only you can read, openssl pkey -in "
                f"{path.name} -out plain.pem, and sign with that"
            ) from error
    if not isinstance(loaded, wanted):
        other = type(loaded).__name__.lstrip("_")
        raise InputError(f"{path} is a key of another kind ({other}), not an Ed25519 {kind} key; {mend}")
    return loaded

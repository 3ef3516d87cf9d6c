"""Version numbers, compared as PEP 440 has it."""

from __future__ import annotations


def older(version: str, than: str) -> bool:
    """Whether a version is of a release before ``than``; so is one that is no version by PEP 440.

    Pre-releases, builds and local labels count as their release: ``2.9.0rc1`` and ``2.9.0+cu130`` are not older than
    2.9.
    """
    from packaging.version import InvalidVersion, Version

    try:
        return Version(Version(version).base_version) < Version(than)
    except InvalidVersion:
        return True

"""A package file whose every link to the archive's signature was checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from undercroft.reference.model import Provenance


@dataclass(frozen=True, slots=True)
class VerifiedPackage:
    """A package on disk at ``path``; ``sha256`` (hexadecimal) is what the signed index says.

    ``provenance`` has grade PACKAGE and names the archive, the Release file and who signed it.
    """

    name: str
    version: str
    architecture: str
    path: Path
    sha256: str
    provenance: Provenance

"""Runs the programs that a disk is made with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from undercroft.base import EnvironmentFault

TIMEOUT_S = 1800.0

_PACKAGE_OF = {
    "mmdebstrap": "mmdebstrap",
    "dpkg-deb": "dpkg",
    "fakeroot": "fakeroot",
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "mkfs.fat": "dosfstools",
    "mcopy": "mtools",
    "tar": "tar",
    "cp": "coreutils",
}


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    folder: Path | None = None,
) -> bytes:
    """Run a program and return what it printed.

    Raises EnvironmentFault with the end of what it complained of, or with what installs it.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            list(command), capture_output=True, input=stdin, cwd=folder, check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8", "PATH": path, **(environment or {})},
            timeout=TIMEOUT_S,
        )  # fmt: skip
    except FileNotFoundError as error:
        package = _PACKAGE_OF.get(command[0], command[0])
        raise EnvironmentFault(
            f"{command[0]} is not installed", remedy=f"apt-get install {package}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFault(f"{command[0]} did not end") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").splitlines()
        raise EnvironmentFault(
            f"{command[0]} failed",
            where=" ".join(command)[:300],
            got="\n".join(said[-30:]) or f"exit status {done.returncode}",
        )
    return done.stdout

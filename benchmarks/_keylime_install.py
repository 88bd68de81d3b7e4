"""Keylime in a virtual environment of its own, for ``_keylime.py``."""

from __future__ import annotations

import ctypes.util
import subprocess
import sys
import venv
from pathlib import Path

KEYLIME = "keylime==7.14.3"
NEEDS = [
    "cryptography",
    "tornado",
    "pyyaml",
    "sqlalchemy",
    "jsonschema",
    "pyasn1",
    "pyasn1-modules",
    "packaging",
    "lark",
    "requests",
    "jinja2",
    "alembic",
    "psutil",
    "typing-extensions",
]
"""Keylime's wheel names no dependencies."""
LOGGING = """[loggers]
keys=root
[handlers]
keys=none
[formatters]
keys=
[logger_root]
level=CRITICAL
handlers=none
[handler_none]
class=NullHandler
args=()
"""
FAILURES = (RuntimeError, OSError, subprocess.CalledProcessError)
"""What :func:`install` raises when it cannot be done."""


def say(text: str) -> None:
    """Tell the person who waits, outside the figures."""
    print(f"evidence: {text}", file=sys.stderr)


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    """Run ``command``; raise RuntimeError with the end of what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=cwd)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(str(error)) from error
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or done.stdout.strip())[-300:])


def install(folder: Path) -> dict[str, str]:
    """Install Keylime into ``folder`` unless it is there; return the environment it wants."""
    python, stamp = folder / "bin" / "python", folder / "installed"
    if not stamp.exists() or stamp.read_text() != KEYLIME:
        venv.create(folder, with_pip=True, clear=True)
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        _run(*pip, KEYLIME, *NEEDS)
        stamp.write_text(KEYLIME)
    (folder / "logging.conf").write_text(LOGGING)
    return {
        "KEYLIME_LOGGING_CONFIG": str(folder / "logging.conf"),
        "KEYLIME_DIR": str(folder),
        "LD_LIBRARY_PATH": _libefivar(folder),
    }


def _libefivar(folder: Path) -> str:
    """Return where libefivar is, which Keylime needs for event logs: unpacked, not installed."""
    if ctypes.util.find_library("efivar"):
        return ""
    found = sorted(folder.glob("efivar/**/libefivar.so.1"))
    if not found:
        (folder / "efivar").mkdir(exist_ok=True)
        try:
            _run("apt-get", "download", "libefivar1", cwd=folder / "efivar")
            _run("dpkg", "-x", *folder.glob("efivar/*.deb"), folder / "efivar")
        except RuntimeError as error:
            say(f"libefivar1 is missing, for Keylime's event logs: {error}")
        found = sorted(folder.glob("efivar/**/libefivar.so.1"))
    return str(found[0].parent) if found else ""

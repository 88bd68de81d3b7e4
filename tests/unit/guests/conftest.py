"""Programs in place of QEMU and swtpm, for tests that start a guest without one."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from undercroft.guests.manifest import BuiltFile, GuestBuild, GuestFile
from undercroft.reference.model import Grade, Provenance

FakePrograms = Callable[..., Path]

_SOCKET = """\
import socket, sys, time
arguments = " ".join(sys.argv[1:])
path = arguments.split("type=unixio,path=")[1].split()[0]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
time.sleep(60)
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePrograms:
    """A function that puts shell scripts in place of programs; names with _ for -."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def write(**bodies: str) -> Path:
        for name, body in bodies.items():
            path = folder / name
            path.write_text(f"#!/bin/sh\n{body}\n")
            path.chmod(0o755)
        return folder

    return write


@pytest.fixture
def machine(programs: FakePrograms, monkeypatch: pytest.MonkeyPatch) -> FakePrograms:
    """A QEMU that does nothing, and a vTPM that only listens."""
    listen = programs() / "listen.py"
    listen.write_text(_SOCKET)
    programs(
        swtpm=f'exec {sys.executable} {listen} "$@"',
        swtpm_setup='while [ "$1" != --tpmstate ]; do shift; done; echo tpm > "$2/tpm2-00.permall"',
        swtpm_localca="true",
    )
    (programs() / "qemu-system-x86_64").write_text("#!/bin/sh\nexec sleep 60\n")
    (programs() / "qemu-system-x86_64").chmod(0o755)
    return programs


@pytest.fixture
def build(tmp_path: Path) -> GuestBuild:
    """A build whose files hold nothing of use."""
    folder = tmp_path / "build"
    folder.mkdir()

    def built(name: str) -> BuiltFile:
        path = folder / name
        path.write_bytes(name.encode())
        digest = hashlib.sha256(name.encode()).hexdigest()
        return BuiltFile(path, digest, Provenance(Grade.PACKAGE, package=name, version="1"))

    return GuestBuild(
        name="micro",
        inputs="00",
        kernel_release="6.1.0-test",
        kernel=built("vmlinuz"),
        initrd=built("initrd"),
        firmware_code=built("CODE.fd"),
        firmware_vars=built("VARS.fd"),
        command_line="quiet",
        files={"/init": GuestFile("ab" * 32, Provenance(Grade.BUILT, note="ours"))},
        packages=(),
    )

"""The proof of a running guest's kernel, made again from dumps of it and the package alone."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from undercroft import wiring
from undercroft.guests.manifest import load_build
from undercroft.guests.run import Guest
from undercroft.securekernel.arch.x86_64.paging import AddressSpace
from undercroft.securekernel.hypervisor.dump import DumpGuest
from undercroft.securekernel.hypervisor.qmp import QmpClient
from undercroft.securekernel.inspect import SecureKernel
from undercroft.securekernel.linux import manifest

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module", autouse=True)
def _home(guest_home: Path) -> Iterator[None]:
    """Look for guests where the tests start them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring, "home", lambda: guest_home)
        yield


def prove(kernel: SecureKernel) -> manifest.Manifest:
    document = manifest.manifest(kernel.proof, kernel.sweep())
    assert document is not None
    return document


def test_a_dump_of_any_kind_gives_the_same_proof(
    running_guest: Guest, guest_home: Path, tmp_path: Path
) -> None:
    target = wiring.open_target(f"qemu:{running_guest.info.name}")
    kernel, library = target.image, target.kernel.library
    elf, raw, lime = (tmp_path / name for name in ("elf", "raw", "lime"))
    with target.guest.paused():
        live = prove(SecureKernel(target.guest, kernel, library))
        with QmpClient(running_guest.info.run_qmp, timeout=120) as monitor:
            monitor.execute("dump-guest-memory", {"paging": False, "protocol": f"file:{elf}"})
        memory = running_guest.info.ram.read_bytes()
    raw.write_bytes(memory)
    header = struct.pack("<IIQQ8x", 0x4C694D45, 1, 0, len(memory) - 1)
    lime.write_bytes(header + memory)
    assert manifest.totals(live).unexplained == 0
    for path in (elf, raw, lime):
        again = prove(SecureKernel(DumpGuest(path), kernel, library))
        assert manifest.differences(again, live) == []
        assert manifest.digest(again) == manifest.digest(live)

    saved = tmp_path / "before.json"
    saved.write_text(json.dumps({"proof": live}))
    package = next(
        package
        for package in load_build(running_guest.info.build.parent).packages
        if package.name.startswith("linux-image-")
    )
    arguments = ["--kernel", str(package.path)]
    done = run(guest_home, "inspect", f"dump:{elf}", *arguments, "--against", str(saved))
    assert done.returncode == 4, done.stderr  # the registers of a dump are not all there
    assert "the same proof as in" in done.stdout
    assert f"proof sha256:{manifest.digest(live)}" in done.stdout.replace("\n", "")

    done = run(guest_home, "verify", str(saved), *arguments, "--dump", str(raw), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "proof_sha256": manifest.digest(live),
        "unexplained": 0,
        "differences": [],
    }

    located = SecureKernel(DumpGuest(raw), kernel, library).proof.kernel
    assert located is not None
    space = AddressSpace(DumpGuest(raw).memory, located.cr3, located.la57)
    flipped = bytearray(memory)
    at = space.translate(located.base + kernel.offset("do_sys_openat2"))
    flipped[at + 1] ^= 1
    raw.write_bytes(flipped)
    done = run(guest_home, "verify", str(saved), *arguments, "--dump", str(raw))
    assert done.returncode == 3, done.stdout
    assert "not the proof in" in done.stdout


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "undercroft.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "UNDERCROFT_HOME": str(home)},
    )

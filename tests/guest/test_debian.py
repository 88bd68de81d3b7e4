"""The Debian guest: a disk that boots under Secure Boot, predicted before it does.

Minutes: the disk is built by mmdebstrap and boots under emulation.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest
from typer.testing import CliRunner

from undercroft.appraise.prediction import compare_prediction
from undercroft.base import HashAlgorithm, Outcome
from undercroft.cli.main import app
from undercroft.formats.eventlog import parse_eventlog
from undercroft.guests.accel import Accel
from undercroft.guests.chain import Chain
from undercroft.guests.debian import recipe
from undercroft.guests.debian.build import build_debian
from undercroft.guests.debian.disk import PARTITIONS
from undercroft.guests.debian.gpt import SECTOR
from undercroft.guests.debian.tools import run as run_tool
from undercroft.guests.manifest import GuestBuild
from undercroft.guests.references import unpredicted_pcrs
from undercroft.guests.run import Guest, RunOptions, start
from undercroft.packages import Archive
from undercroft.packages.apt import PrivateApt
from undercroft.reference.boot import boot_aggregate, predicted_pcrs
from undercroft.securekernel.vtpm.client import VtpmClient
from undercroft.service.machine import machine_facts
from undercroft.service.ownguest import planned_events

pytestmark = [
    pytest.mark.guest,
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="mmdebstrap is not installed"),
    pytest.mark.skipif(not shutil.which("mcopy"), reason="mtools is not installed"),
]

OPTIONS = RunOptions(accel=Accel.TCG, cpus=2, memory_mb=1024)
READY_S = 900.0
BANKS = (HashAlgorithm.SHA1, HashAlgorithm.SHA256)


class Build(Protocol):
    """Builds the Debian guest for a chain, under the usual home or another."""

    def __call__(self, chain: Chain, home: Path | None = None) -> GuestBuild: ...


@pytest.fixture(scope="module")
def build(guest_home: Path) -> Build:
    def make(chain: Chain, home: Path | None = None) -> GuestBuild:
        now = dt.datetime.now(dt.UTC)
        apt = PrivateApt(guest_home / "apt")
        archive = Archive(guest_home / "apt", now=now, apt=apt)
        _ = archive.indexes
        return build_debian(
            archive, home or guest_home, codename=apt.codename, sources=apt.sources(), chain=chain
        )

    return make


@contextmanager
def running(built: GuestBuild, home: Path, name: str) -> Iterator[Guest]:
    guest = start(built, home, name, OPTIONS, now=dt.datetime.now(dt.UTC))
    try:
        guest.wait_ready(READY_S)
        yield guest
    finally:
        guest.stop()
        guest.remove()


def eventlog(guest: Guest) -> bytes:
    return guest.read_file("/sys/kernel/security/tpm0/binary_bios_measurements", timeout_s=120)


@pytest.mark.parametrize("chain", [Chain.GRUB, Chain.UKI, Chain.LEGACY])
def test_what_is_predicted_is_what_the_tpm_holds(
    build: Build, guest_home: Path, chain: Chain
) -> None:
    built = build(chain)
    events = planned_events(built, OPTIONS, Accel.TCG, guest_home)  # before it boots
    with running(built, guest_home, f"test-{chain}") as guest:
        assert guest.info.vtpm_control is not None
        with VtpmClient(guest.info.vtpm_control) as client:
            for bank in BANKS:
                predicted = predicted_pcrs(events, bank, unpredicted_pcrs(chain))
                (quoted,) = client.pcr_read({bank: tuple(predicted.values)})
                assert dict(quoted.values) == dict(predicted.values)
            assert {f.outcome for f in machine_facts(guest.info, client)} == {Outcome.PASS}
        log = parse_eventlog(eventlog(guest))
        unforeseen = set(unpredicted_pcrs(chain))
        found = compare_prediction([e for e in events if e.pcr not in unforeseen], log)
        assert [one.words for one in found.deviations] == []
        if not unforeseen:
            first = guest.console(
                "head -1 /sys/kernel/security/ima/ascii_runtime_measurements", timeout_s=60
            )
            aggregate = boot_aggregate(predicted_pcrs(events, HashAlgorithm.SHA256))
            assert f"sha256:{aggregate.hex()} boot_aggregate" in first


def test_the_guest_is_affirmed(
    build: Build, guest_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boot, kernel and every file, by the shipped policy, with Secure Boot required."""
    monkeypatch.setenv("UNDERCROFT_HOME", str(guest_home))
    with running(build(Chain.GRUB), guest_home, "test-affirmed"):
        arguments = ["evidence", "collect", "qemu:test-affirmed", "-o", str(tmp_path / "case")]
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def test_two_builds_are_the_same(build: Build, guest_home: Path, tmp_path: Path) -> None:
    one, two = build(Chain.GRUB), build(Chain.GRUB, tmp_path)
    assert one.disk is not None
    assert two.disk is not None
    assert one.disk.path != two.disk.path
    assert (one.disk.sha256, one.initrd.sha256) == (two.disk.sha256, two.initrd.sha256)
    assert one.files == two.files


def test_changes_planted_on_the_disk_are_named(build: Build, guest_home: Path) -> None:
    """grub.cfg and with it the command line, and the initrd, changed behind the build's back."""
    built = build(Chain.GRUB)
    events = planned_events(built, OPTIONS, Accel.TCG, guest_home)
    name = "test-planted"
    folder = guest_home / "guests" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    assert built.disk is not None
    run_tool(["cp", "--sparse=always", str(built.disk.path), str(folder / "disk.raw")])
    _plant(built, folder)
    with running(built, guest_home, name) as guest:
        found = compare_prediction(events, parse_eventlog(eventlog(guest)))
    words = "\n".join(one.words for one in found.deviations)
    details = {line for one in found.deviations for line in one.details}
    assert {one.pcr for one in found.deviations} == {8, 9}
    assert "added: undercroft.planted=1" in details
    assert "GRUB passed the command line" in words
    assert "other content: file read by GRUB: (hd0,gpt2)/boot/grub/grub.cfg" in words
    assert f"other content: file read by GRUB: /boot/initrd.img-{built.kernel_release}" in words


def _plant(built: GuestBuild, folder: Path) -> None:
    """Change the root file system of the disk in ``folder``, as somebody with the host could."""
    (root,) = (p for p in PARTITIONS if p.guid == recipe.ROOT_GUID)
    image, disk = folder / "root.ext4", folder / "disk.raw"
    size = (root.last - root.first + 1) * SECTOR
    run_tool(
        ["dd", f"if={disk}", f"of={image}", f"skip={root.first * SECTOR}", f"count={size}",
         "iflag=skip_bytes,count_bytes", "bs=1M", "conv=sparse", "status=none"]
    )  # fmt: skip
    config = built.boot_files["grub.cfg"].path.read_text()
    (folder / "grub.cfg").write_text(config.replace(" quiet", " quiet undercroft.planted=1"))
    # Something behind the archive's end, which the kernel does not mind.
    (folder / "initrd").write_bytes(built.initrd.path.read_bytes() + bytes(512))
    target = f"/boot/initrd.img-{built.kernel_release}"
    run_tool(
        ["debugfs", "-w", "-f", "-", str(image)],
        stdin=(
            f"rm /boot/grub/grub.cfg\nwrite {folder}/grub.cfg /boot/grub/grub.cfg\n"
            f"rm {target}\nwrite {folder}/initrd {target}\n"
        ).encode(),
    )
    run_tool(
        ["dd", f"if={image}", f"of={disk}", f"seek={root.first * SECTOR}", "oflag=seek_bytes",
         "bs=1M", "conv=notrunc", "status=none"]
    )  # fmt: skip
    image.unlink()

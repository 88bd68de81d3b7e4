"""The kernel-text matrix: four kernels, many processors and settings, and what guests do.

In every cell no byte may be unexplained, and one flipped byte must be found at its address.
Results are kept under UNDERCROFT_HOME: a cell that passed with this code is not run again, and
docs/support-matrix.md is written from them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from undercroft.base import Finding, Outcome
from undercroft.reference.kernel.insn import decode
from undercroft.securekernel.linux import features, realmode
from undercroft.securekernel.linux.facts import Observer
from undercroft.securekernel.linux.live import LiveKernel
from undercroft.securekernel.linux.text import KernelTextProof
from undercroft.testing.kernelmatrix import (
    FLAVOURS,
    SETTINGS,
    Flavour,
    MatrixGuest,
    MatrixKernel,
    Setting,
    booted,
    prepare,
)

pytestmark = [pytest.mark.guest, pytest.mark.matrix]

REPOSITORY = Path(__file__).parents[2]
TRACING = "/sys/kernel/tracing"
SOURCES = ("formats/kernel", "reference/kernel", "securekernel/linux")

Activity = Callable[[MatrixGuest, KernelTextProof], None]


@dataclass(frozen=True, slots=True)
class Result:
    """What a cell gave.  ``code`` is the digest of the code that gave it."""

    flavour: str
    setting: str
    package: str
    code: str
    text_bytes: int
    modules: int
    module_bytes: int
    constant_bytes: int
    unexplained: int
    flips_found: int
    notable: list[str]
    seconds: float
    date: str


@functools.cache
def code_digest() -> str:
    """The code as it was when the run began."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((REPOSITORY / "src" / "undercroft" / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session")
def results_folder(guest_home: Path) -> Iterator[Path]:
    folder = guest_home / "matrix" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    code_digest()
    yield folder
    write_page(folder)


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    target = tmp_path_factory.mktemp("programs") / "bpf_attach"
    source = Path(__file__).parent / "programs" / "bpf_attach.c"
    subprocess.run(["gcc", "-O1", "-static", "-o", target, source], check=True)
    return (target,)


def cell_path(folder: Path, flavour: str, setting: str) -> Path:
    name = "".join(c if c.isalnum() or c in ".-" else "-" for c in f"{flavour}-{setting}")
    return folder / f"{name}.json"


def is_done(path: Path, package: str) -> bool:
    if not path.is_file():
        return False
    kept = json.loads(path.read_text())
    return bool(kept["code"] == code_digest() and kept["package"] == package)


def by_id(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.id: finding for finding in findings}


def assert_explained(proof: KernelTextProof) -> dict[str, Finding]:
    findings = by_id(proof.sweep())
    wrong = {
        name: (finding.summary, finding.details.get("mismatches"), finding.details.get("problems"))
        for name, finding in findings.items()
        if finding.outcome is not Outcome.PASS
    }
    assert not wrong
    return findings


def assert_flips_are_found(guest: MatrixGuest, proof: KernelTextProof, seed: str) -> int:
    """Flip a byte of kernel text, of a module's code and constants, and of constant data.

    Each is found at its place.
    """
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
    assert proof.kernel is not None
    size = proof.image.text_size
    found = 0
    ranges = [("kernel.text", proof.kernel.base, proof.kernel.base + size)]
    assert proof.modules is not None
    start, stop, _ = proof.modules.ranges()[0]
    ranges.append(("kernel.modules.text", start, stop))
    start, stop, _ = proof.modules.constant_ranges()[0]
    ranges.append(("kernel.modules.text", start, stop))
    start, stop = proof.rodata_addresses()[0]
    ranges.append(("kernel.rodata", start, stop))
    for finding_id, start, stop in ranges:
        address = start + number % (stop - start)
        with guest.flipped(proof.translate(address)):
            finding = by_id(proof.sweep())[finding_id]
        assert finding.outcome is Outcome.FAIL, finding_id
        assert finding.details["unexplained"] == 1
        assert f"'address': '{address:#x}'" in str(finding.details["mismatches"])
        found += 1
        assert_explained(proof)
    return found


def assert_processor_is_the_machines(guest: MatrixGuest, proof: KernelTextProof) -> None:
    """The features that the code shows are those of the CPUID that QEMU shows the guest."""
    kernel = proof.kernel
    assert kernel is not None
    live = LiveKernel(
        guest.qemu.memory, proof.image, slide=kernel.slide, cr3=kernel.cr3, la57=kernel.la57
    )
    for finding in (
        features.collect(live, proof.replay, guest.qemu.cpuid),
        realmode.collect(live, proof.image, Observer(guest.qemu.paused)),
    ):
        assert finding.outcome is Outcome.PASS, (finding.summary, finding.details)


class Machines:
    """At most one guest of one kernel: kept while the setting stays the same and all is well."""

    def __init__(self, kernel: MatrixKernel, folder: Path) -> None:
        self.kernel = kernel
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._kept: tuple[Setting, MatrixGuest] | None = None

    @contextlib.contextmanager
    def guest(self, setting: Setting) -> Iterator[MatrixGuest]:
        """Give a guest with its modules loaded and no tracer or probe; a failure ends it."""
        if self._kept is None or self._kept[0] != setting:
            self.close()
            guest = self._stack.enter_context(booted(self.kernel, setting, self._folder))
            guest.load_modules()
            self._kept = (setting, guest)
        try:
            for command in QUIET:
                self._kept[1].console(command, timeout_s=300)
            yield self._kept[1]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the guest."""
        self._kept = None
        self._stack.close()


QUIET = (
    f"echo nop > {TRACING}/current_tracer",
    f"echo > {TRACING}/set_ftrace_filter",
    f"[ ! -e {TRACING}/events/kprobes ] || echo 0 > {TRACING}/events/kprobes/enable",
    f"echo > {TRACING}/kprobe_events",
)


def run_cell(
    machines: Machines,
    setting: Setting,
    name: str,
    folder: Path,
    activity: Activity | None = None,
) -> None:
    kernel = machines.kernel
    path = cell_path(folder, kernel.flavour.name, name)
    if is_done(path, kernel.package):
        return
    started = time.monotonic()
    with machines.guest(setting) as guest:
        proof = guest.attach()
        assert_explained(proof)
        assert_processor_is_the_machines(guest, proof)
        if activity is not None:
            activity(guest, proof)
        findings = assert_explained(proof)
        flips = assert_flips_are_found(guest, proof, str(path))
        modules = findings["kernel.modules.text"].details
        result = Result(
            flavour=kernel.flavour.name,
            setting=name,
            package=kernel.package,
            code=code_digest(),
            text_bytes=proof.image.executable_size,
            modules=len(modules["modules"]),  # type: ignore[arg-type]
            module_bytes=int(modules["bytes"]),  # type: ignore[arg-type]
            constant_bytes=int(modules["constant_bytes"]),  # type: ignore[arg-type]
            unexplained=0,
            flips_found=flips,
            notable=[each.text for each in proof.notable()],
            seconds=round(time.monotonic() - started, 1),
            date=dt.date.today().isoformat(),
        )
    path.write_text(json.dumps(asdict(result), indent=1) + "\n")


@pytest.fixture(scope="module", params=FLAVOURS, ids=lambda flavour: flavour.name.replace(" ", "-"))
def machines(
    request: pytest.FixtureRequest, guest_home: Path, programs: tuple[Path, ...]
) -> Iterator[Machines]:
    flavour: Flavour = request.param
    folder = guest_home / "matrix" / f"run-{os.getpid()}"
    kept = Machines(prepare(guest_home, flavour, programs), folder)
    yield kept
    kept.close()


def traces(guest: MatrixGuest, proof: KernelTextProof) -> None:
    """The function tracer on all functions, then on one, then off and on again."""
    guest.console(f"echo function > {TRACING}/current_tracer", timeout_s=300)
    assert_explained(proof)
    assert any(each.kind == "ftrace" for each in proof.notable())
    guest.console(f"echo nop > {TRACING}/current_tracer", timeout_s=300)
    assert_explained(proof)
    guest.console(f"echo vfs_read > {TRACING}/set_ftrace_filter")
    guest.console(f"echo function > {TRACING}/current_tracer", timeout_s=300)


def probes(guest: MatrixGuest, proof: KernelTextProof) -> None:
    """Kprobes at a function's entry, in the middle (which is optimised), and a kretprobe."""
    events = f"{TRACING}/kprobe_events"
    guest.console(f"echo 'p:entry do_sys_openat2' > {events}")
    guest.console(f"echo 'r:back vfs_read' >> {events}")
    middle = _second_instruction(proof, "__x64_sys_getpgid")
    guest.console(f"echo 'p:middle __x64_sys_getpgid+{middle}' >> {events}")
    guest.console(f"echo 1 > {TRACING}/events/kprobes/enable")
    assert_explained(proof)
    time.sleep(3)  # the optimiser runs a little later
    assert_explained(proof)
    assert {"ftrace", "kprobe"} <= {each.kind for each in proof.notable()}


def _second_instruction(proof: KernelTextProof, function: str) -> int:
    """Return the offset of an instruction in the middle of a function."""
    assert proof.replay is not None
    at = start = proof.image.offset(function)
    while at < start + 12:
        insn = decode(proof.replay.canvas.get(at, 15))
        assert insn is not None
        at += insn.length
    return at - start


def bpf(guest: MatrixGuest, proof: KernelTextProof) -> None:
    """BPF programs on a raw tracepoint and, through a trampoline, at a function's entry."""
    assert "attached" in guest.console("bpf_attach vfs_statx")
    assert_explained(proof)
    assert any(each.kind == "ftrace" for each in proof.notable())


def module_churn(guest: MatrixGuest, proof: KernelTextProof) -> None:
    """Modules go and come back, elsewhere in memory."""
    for _ in range(3):
        guest.console("rmmod sch_fq tcp_bbr loop; true")
        assert_explained(proof)
        for name in ("sch_fq", "tcp_bbr", "loop"):
            guest.console(f"insmod /modules/{name}.ko || true")
        assert_explained(proof)


def cpu_hotplug(guest: MatrixGuest, proof: KernelTextProof) -> None:
    """A CPU goes and comes back."""
    for state in (0, 1, 0, 1):
        guest.console(f"echo {state} > /sys/devices/system/cpu/cpu1/online")
        assert_explained(proof)


ACTIVITIES: dict[str, Activity] = {
    "function tracer": traces,
    "kprobes": probes,
    "BPF programs and trampolines": bpf,
    "modules come and go": module_churn,
    "CPU unplugged and plugged": cpu_hotplug,
}


@pytest.mark.parametrize("name", ACTIVITIES, ids=lambda name: name.replace(" ", "-"))
def test_activity(machines: Machines, name: str, results_folder: Path) -> None:
    run_cell(machines, SETTINGS[0], name, results_folder, ACTIVITIES[name])


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name.replace(" ", "-"))
def test_setting(machines: Machines, setting: Setting, results_folder: Path) -> None:
    run_cell(machines, setting, setting.name, results_folder)


def _shown(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    text = f"{cell['unexplained']} of {cell['text_bytes']:,}; {cell['modules']} modules"
    return text if "constant_bytes" in cell else f"{text} ¹"


def write_page(folder: Path) -> None:
    """Write docs/support-matrix.md from the results that are there."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not found:
        return
    cells = {(row["flavour"], row["setting"]): row for row in found}
    names = [setting.name for setting in SETTINGS] + list(ACTIVITIES)
    lines = [
        "# Kernels and settings that are proved",
        "",
        "Written by `./dev test --matrix`; do not edit.  In every cell the kernel's code, its",
        "constant data, and the code and constants of every loaded module were compared byte for",
        "byte with what the packages say: **0 bytes unexplained**, and a flipped byte in each of",
        "the four was found at its exact address.  The processor features that the code shows",
        "were those of the CPUID that QEMU shows the guest.  The signatures of the kernels lead to",
        "the distribution's Secure Boot CA (from its package of shim), those of the modules to",
        "keys inside the kernel.  Guests run under QEMU's TCG.  An empty cell has no result.",
        "",
        "| setting | " + " | ".join(flavour.name for flavour in FLAVOURS) + " |",
        "|---|" + "---|" * len(FLAVOURS),
    ]
    for name in names:
        row = [cells.get((flavour.name, name)) for flavour in FLAVOURS]
        texts = [_shown(cell) for cell in row]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    lines += [
        "",
        "| kernel | package | bytes of modules, code | constants | cells run |",
        "|---|---|---|---|---|",
    ]
    for flavour in FLAVOURS:
        mine = [row for row in found if row["flavour"] == flavour.name]
        if mine:
            sizes = ("module_bytes", "constant_bytes")
            most = [max(row.get(key, 0) for row in mine) for key in sizes]
            dates = sorted({row["date"] for row in mine})
            when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
            cells_of = f"{len(mine)} of {len(names)}, {when}"
            lines.append(
                f"| {flavour.name} | {mine[-1]['package']} | {most[0]:,} | {most[1]:,} "
                f"| {cells_of} |"
            )
    if any("constant_bytes" not in row for row in found):
        lines += [
            "",
            "¹ Run before the constants of modules, the slack behind `_etext` and CPUID were",
            "compared: code and constant data of the kernel, and code of the modules.",
        ]
    (REPOSITORY / "docs" / "support-matrix.md").write_text("\n".join(lines) + "\n")

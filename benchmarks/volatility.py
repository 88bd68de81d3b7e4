"""volatility3 and `undercroft inspect` on the same guest, honest and with every test adversary.

``volatility_s``
    volatility3's nearest Linux plugins (``PLUGINS``) on a dump of an honest guest of 512 MB, in one
    process, from its start; the symbol file comes from `undercroft reference kernel --isf`;
``inspect_s``
    every fact of ours about the same dump, in one process, from its start;
``volatility_seen``, ``inspect_seen``
    how many of the test adversaries each reports, by what its own output marks as wrong.

Writes docs/volatility.md.  volatility3 is installed into a virtual environment of its own; it has
no five-level paging, so the guest has four.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._guest import bench_guest
from benchmarks.figures import Against, Figure, from_samples
from undercroft import wiring
from undercroft.base import Finding, Outcome
from undercroft.cli.isf import write_symbol_file
from undercroft.guests.run import RunOptions
from undercroft.securekernel.hypervisor.qmp import QmpClient
from undercroft.securekernel.inspect import SecureKernel
from undercroft.testing.adversaries import CASES, Case, Scene, failed, staged

VOLATILITY = "volatility3==2.28.2"
NEEDS = ("pefile", "capstone", "yara-python")
DOCUMENT = Path(__file__).parents[1] / "docs" / "volatility.md"
MALWARE, TRACING = "linux.malware.", "linux.tracing."
SCAN = "linux.psscan.PsScan"
PLUGINS = (
    "linux.pslist.PsList",
    "linux.pidhashtable.PIDHashTable",
    f"{MALWARE}check_modules.Check_modules",
    f"{MALWARE}hidden_modules.Hidden_modules",
    f"{MALWARE}modxview.Modxview",
    f"{MALWARE}check_syscall.Check_syscall",
    f"{MALWARE}check_idt.Check_idt",
    f"{MALWARE}check_afinfo.Check_afinfo",
    f"{MALWARE}tty_check.Tty_Check",
    f"{MALWARE}check_creds.Check_creds",
    f"{MALWARE}malfind.Malfind",
    f"{MALWARE}keyboard_notifiers.Keyboard_notifiers",
    f"{MALWARE}netfilter.Netfilter",
    f"{MALWARE}process_spoofing.ProcessSpoofing",
    f"{TRACING}ftrace.CheckFtrace",
    f"{TRACING}tracepoints.CheckTracepoints",
    f"{TRACING}perf_events.PerfEvents",
    "linux.ebpf.EBPF",
    "linux.kthreads.Kthreads",
    "linux.sockstat.Sockstat",
    "linux.envars.Envars",
)
_LISTS = {
    "linux.envars.Envars": ("KEY", "LD_PRELOAD"),
    "linux.sockstat.Sockstat": ("Family", "AF_PACKET"),
    f"{MALWARE}process_spoofing.ProcessSpoofing": ("Exe_Deleted", "True"),
}
"""Plugins that list everything: the column and value that would make a person stop."""
_TASKS = frozenset(("linux.pslist.PsList", "linux.pidhashtable.PIDHashTable", SCAN))
_ALIVE = "TASK_RUNNING"
_WATCHED = frozenset(("linux.kthreads.Kthreads",))
"""Run for their time only: a list of what there is, with no mark and no second view."""

Said = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """What both said of one adversary."""

    case: Case
    ours: tuple[str, ...]
    theirs: tuple[str, ...]


def run() -> list[Figure]:
    """Return the figures and write the document."""
    peer = _Peer.install(wiring.home() / "bench-volatility")
    options = RunOptions(memory_mb=512, cpu="max,la57=off")
    with bench_guest("bench-volatility", options) as bench:
        target = wiring.open_target(f"qemu:{bench.guest.info.name}")
        write_symbol_file(bench.build.kernel.path, peer.symbols / "linux" / "kernel.json")
        with staged(bench.guest, SecureKernel(target.guest, target.image)) as scene:
            if wrong := failed(scene.facts()):
                raise RuntimeError(f"the honest guest did not pass: {sorted(wrong)}")
            with peer.dumped(scene) as dump:
                begun = time.perf_counter()
                honest = peer.ask(dump, *PLUGINS)
                theirs = time.perf_counter() - begun
                scan = peer.ask(dump, PLUGINS[0], SCAN)["plugins"][SCAN]
                ours = _inspect(dump, bench.build.kernel.path)
            honest["plugins"][SCAN] = scan
            rows = [_compare(case, scene, peer, honest) for case in CASES]
    DOCUMENT.write_text(_document(rows, honest, theirs, ours, bench.build.kernel_release))
    seen = sum(bool(row.theirs) for row in rows)
    return [
        from_samples("volatility_s", "s", [theirs]),
        from_samples("inspect_s", "s", [ours], against=Against("volatility_s", theirs)),
        from_samples("volatility_seen", "adversaries", [seen]),
        from_samples("inspect_seen", "adversaries", [sum(bool(row.ours) for row in rows)]),
    ]


def _inspect(dump: Path, kernel: Path) -> float:
    """Return how long `undercroft inspect` takes for the dump, from the start of its process."""
    command = [sys.executable, "-m", "undercroft.cli", "inspect", f"dump:{dump}"]
    begun = time.perf_counter()
    done = subprocess.run(
        [*command, "--kernel", str(kernel), "--json"], capture_output=True, check=False
    )
    seconds = time.perf_counter() - begun
    facts = json.loads(done.stdout)["facts"]
    if any(fact["outcome"] == Outcome.FAIL.value for fact in facts):
        raise RuntimeError("the honest guest's dump did not pass")
    return seconds


@dataclass(frozen=True, slots=True)
class _Peer:
    """volatility3 in a virtual environment of its own."""

    folder: Path

    @property
    def symbols(self) -> Path:
        return self.folder / "symbols"

    @classmethod
    def install(cls, folder: Path) -> _Peer:
        """Install it unless it is there."""
        stamp = folder / "venv" / "installed"
        if not stamp.exists() or stamp.read_text() != VOLATILITY:
            venv.create(folder / "venv", with_pip=True, clear=True)
            pip = (folder / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet")
            subprocess.run([*pip, VOLATILITY, *NEEDS], check=True)
            stamp.write_text(VOLATILITY)
        (folder / "symbols" / "linux").mkdir(parents=True, exist_ok=True)
        return cls(folder)

    @contextmanager
    def dumped(self, scene: Scene) -> Iterator[Path]:
        """Dump the guest's memory as an ELF core; it is gone when the block ends."""
        path = self.folder / "dump.elf"
        path.unlink(missing_ok=True)
        with QmpClient(scene.guest.info.qmp, timeout=300.0) as session:
            session.execute("dump-guest-memory", {"paging": False, "protocol": f"file:{path}"})
        try:
            yield path
        finally:
            path.unlink()

    def ask(self, dump: Path, *names: str) -> Said:
        """Run plugins on a dump."""
        worker = Path(__file__).with_name("_volatility_worker.py")
        python = self.folder / "venv" / "bin" / "python"
        done = subprocess.run(
            [python, "-P", worker, self.symbols, dump, *names],
            capture_output=True,
            check=True,
            env={**os.environ, "XDG_CACHE_HOME": str(self.folder / "cache"), "PYTHONPATH": ""},
        )
        said: Said = json.loads(done.stdout)
        return said


def _compare(case: Case, scene: Scene, peer: _Peer, honest: Said) -> Row:
    """Switch an adversary on and look with both."""
    with case.attack(scene) as switch:
        idle = failed(scene.facts())
        switch(True)
        active = failed(scene.facts())
        names = [*PLUGINS, *([SCAN] if "process" in case.technique else [])]
        with peer.dumped(scene) as dump:
            said = peer.ask(dump, *names)
        switch(False)
    ours = tuple(sorted(name for name in active if _is_new(name, case, idle, active)))
    theirs = tuple(_reported(said["plugins"], honest["plugins"]))
    print(
        f"{case.technique}: {', '.join(ours) or '-'} | {', '.join(theirs) or '-'}", file=sys.stderr
    )
    return Row(case, ours, theirs)


def _is_new(
    name: str, case: Case, idle: Mapping[str, Finding], active: Mapping[str, Finding]
) -> bool:
    if name not in idle:
        return True
    return name in case.facts and case.names in json.dumps(active[name].as_json())


def _reported(said: Said, honest: Said) -> Iterator[str]:
    """Yield the plugins whose output marks something that the honest guest's did not."""
    listed, before = _living(said[PLUGINS[0]]), _living(honest[PLUGINS[0]])
    for name in sorted(_TASKS & set(said) - {PLUGINS[0]}):
        if (_living(said[name]) ^ listed) - (_living(honest[name]) ^ before):
            yield f"{_short(PLUGINS[0])} against {_short(name)}"
    for name, result in said.items():
        if name in _TASKS or name in _WATCHED:
            continue
        known = {_key(row) for row in honest[name]["rows"]}
        new = [row for row in result["rows"] if _key(row) not in known]
        if any(_is_marked(name, row) for row in new):
            yield _short(name)


def _living(result: Said) -> set[str]:
    """Return the pids of a list of processes; scanning finds the dead as well."""
    return {row["PID"] for row in result["rows"] if row.get("EXIT_STATE", _ALIVE) == _ALIVE}


def _is_marked(name: str, row: Mapping[str, str]) -> bool:
    """Whether a row that the honest guest's output lacks is one that says something is wrong."""
    if name in _LISTS:
        column, value = _LISTS[name]
        return value in row.get(column, "")
    if name.endswith("Modxview"):
        return "False" in (row.get("In procfs", ""), row.get("In sysfs", ""))
    return True


def _key(row: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(row.items()))


def _short(name: str) -> str:
    return name.removeprefix("linux.").rpartition(".")[0]


def _document(rows: list[Row], honest: Said, theirs: float, ours: float, release: str) -> str:
    """Return the page."""
    lines = [
        "# Beside volatility3",
        "",
        "Written by `./dev bench volatility`; do not edit.  Each test adversary",
        "([adversaries.md](adversaries.md)) on one guest (512 MB, 2 CPUs,",
        f"Linux {release}); {VOLATILITY.replace('==', ' ')} works on a dump, ours on the guest",
        "while it runs. Symbols: `undercroft reference kernel PACKAGE --isf FILE`.",
        "What counts for it is a row that the honest guest's dump does not give and that its own",
        "columns mark, or that two of its lists of processes differ.  It is made for an analyst",
        "who knows what to look for, and does far more than this table asks of it; it compares no",
        "code.",
        "",
        f"Measured {dt.date.today().isoformat()} under emulation: all facts of a dump in "
        f"**{ours:.1f} s**; these {len(PLUGINS)} plugins in one process in **{theirs:.1f} s**.",
        "",
        "| technique | ours | volatility3 |",
        "|---|---|---|",
    ]
    for row in rows:
        cells = (
            ", ".join(f"`{name}`" for name in names) or "–" for names in (row.ours, row.theirs)
        )
        lines.append(f"| {row.case.technique} | {' | '.join(cells)} |")
    lines += [
        "",
        f"{sum(bool(row.ours) for row in rows)} of {len(rows)} are seen by ours, "
        f"{sum(bool(row.theirs) for row in rows)} by volatility3's plugins.",
        "",
        "| plugin | rows, honest guest | seconds | |",
        "|---|---|---|---|",
    ]
    for name, result in honest["plugins"].items():
        error = result["error"].replace("|", " ")
        seconds = f"{result['seconds']:.1f}"
        lines.append(f"| `{_short(name)}` | {len(result['rows'])} | {seconds} | {error} |")
    return "\n".join(lines) + "\n"

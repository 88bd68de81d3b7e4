"""The main job on a real guest, through the command line: affirm, detect, reproduce, refuse."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from undercroft.base import JsonValue
from undercroft.guests.attacks import PATCHED_FUNCTION, hide_task, inline_patch, pid_of
from undercroft.guests.run import Guest
from undercroft.packages import Archive
from undercroft.service.casefile import EVIDENCE

pytestmark = pytest.mark.guest

OTHER_KERNEL = "linux-image-6.1.0-53-cloud-amd64"


def undercroft(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "undercroft.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "UNDERCROFT_HOME": str(home), "COLUMNS": "200"},
    )


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, list[dict[str, JsonValue]]]:
    """Return the findings of a command's JSON document, by id."""
    by_id: dict[str, list[dict[str, JsonValue]]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        by_id.setdefault(finding["id"], []).append(finding)
    return by_id


def address_of(guest: Guest, symbol: str) -> int:
    return int(guest.console(f"grep ' {symbol}$' /proc/kallsyms | cut -d' ' -f1"), 16)


def test_the_honest_guest_is_affirmed_and_reproduced(
    running_guest: Guest, guest_home: Path, tmp_path: Path
) -> None:
    target = f"qemu:{running_guest.info.name}"
    done = undercroft(guest_home, "evidence", "collect", target, "-o", tmp_path, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = findings(done)
    for index in (*range(10), 14):
        assert found[f"boot.pcr.{index}"][0]["outcome"] == "pass"
    for fact in ("kernel.text", "kernel.rodata", "kernel.tasks.crossview", "ima.files"):
        assert found[fact][0]["outcome"] == "pass"
    again = undercroft(guest_home, "verify", tmp_path, "--json")
    assert again.returncode == 0
    assert {**json.loads(again.stdout), "folder": str(tmp_path)} == json.loads(done.stdout)


def test_one_flipped_byte_is_refused(
    running_guest: Guest, guest_home: Path, tmp_path: Path
) -> None:
    target = f"qemu:{running_guest.info.name}"
    assert undercroft(guest_home, "evidence", "collect", target, "-o", tmp_path).returncode == 0
    data = bytearray((tmp_path / EVIDENCE).read_bytes())
    for offset in (len(data) // 3, len(data) // 2, len(data) - 100):
        changed = bytearray(data)
        changed[offset] ^= 0x10
        (tmp_path / EVIDENCE).write_bytes(changed)
        done = undercroft(guest_home, "verify", tmp_path)
        assert done.returncode == 5
        assert "Traceback" not in done.stderr


def test_inspect_reports_every_fact(running_guest: Guest, guest_home: Path) -> None:
    done = undercroft(guest_home, "inspect", f"qemu:{running_guest.info.name}", "--json")
    assert done.returncode == 0, done.stdout
    document = json.loads(done.stdout)
    assert document["kernel"]["release"] == running_guest.info.kernel_release
    text = next(fact for fact in document["facts"] if fact["id"] == "kernel.text")
    assert text["details"]["unexplained"] == 0
    assert text["details"]["bytes"] > 10_000_000


def test_a_kernel_that_does_not_run_there_is_a_finding(
    running_guest: Guest, guest_home: Path
) -> None:
    package = Archive(guest_home / "apt", now=_now()).fetch(OTHER_KERNEL)
    target = f"qemu:{running_guest.info.name}"
    done = undercroft(guest_home, "inspect", target, "--kernel", package.path)
    assert done.returncode == 3, done.stderr
    assert "kernel.located" in done.stdout
    assert done.stderr == ""


def test_a_patched_function_is_named_and_contraindicates(
    start_guest: Callable[..., Guest], guest_home: Path, tmp_path: Path
) -> None:
    guest = start_guest()
    target = f"qemu:{guest.info.name}"
    with inline_patch(guest, address_of(guest, PATCHED_FUNCTION)) as adversary:
        adversary.switch(True)
        done = undercroft(guest_home, "evidence", "collect", target, "-o", tmp_path, "--json")
    assert done.returncode == 3, done.stderr
    (text,) = findings(done)["kernel.text"]
    details = text["details"]
    assert isinstance(details, dict)
    (place,) = details["mismatches"]
    assert place["symbol"] == f"{PATCHED_FUNCTION}+0x0"
    assert place["found"].startswith("f30f1efa48c7c0daffffffc3cc")
    assert any("endbr64" in line for line in place["found_code"])
    assert undercroft(guest_home, "verify", tmp_path).returncode == 3
    # Loading the module was measured too.
    assert any("inline_patch.ko" in str(f["summary"]) for f in findings(done)["ima.file"])


def test_a_hidden_process_is_named_and_contraindicates(
    start_guest: Callable[..., Guest], guest_home: Path, tmp_path: Path
) -> None:
    guest = start_guest()
    pid = pid_of(guest, "worker")
    with hide_task(guest, pid) as adversary:
        adversary.switch(True)
        target = f"qemu:{guest.info.name}"
        done = undercroft(guest_home, "evidence", "collect", target, "-o", tmp_path, "--json")
        adversary.switch(False)
    assert done.returncode == 3, done.stderr
    (tasks,) = findings(done)["kernel.tasks.crossview"]
    details = tasks["details"]
    assert isinstance(details, dict)
    assert [(a["pid"], a["comm"]) for a in details["anomalies"]] == [(pid, "worker")]


def test_a_guest_that_dies_while_it_is_watched_ends_the_watch(
    start_guest: Callable[..., Guest], guest_home: Path, tmp_path: Path
) -> None:
    guest = start_guest()
    target = f"qemu:{guest.info.name}"
    watching = subprocess.Popen(
        [sys.executable, "-m", "undercroft.cli", "attach", target, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "UNDERCROFT_HOME": str(guest_home)},
    )
    assert watching.stdout
    assert json.loads(watching.stdout.readline())["outcome"] == "pass"
    os.kill(guest.info.qemu.pid, 9)
    _, errors = watching.communicate(timeout=30)
    assert watching.returncode == 1
    assert "Traceback" not in errors
    assert "undercroft: " in errors
    collected = undercroft(guest_home, "evidence", "collect", target, "-o", tmp_path / "case")
    assert collected.returncode == 1
    assert "remedy" in collected.stderr
    assert not (tmp_path / "case").exists()


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)

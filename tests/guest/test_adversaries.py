"""The adversaries do in a guest what they say, and undo it.

Whether the secure kernel sees them is tested with the secure kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from undercroft.guests.console import CommandError
from undercroft.guests.run import Guest

pytestmark = pytest.mark.guest

PATCH = "/sys/module/inline_patch/parameters"
HIDE = "/sys/module/hide_task/parameters"


@pytest.fixture(scope="module")
def guest(start_guest: Callable[..., Guest]) -> Guest:
    """A guest to spoil."""
    return start_guest()


def _byte_at(guest: Guest, symbol: str) -> str:
    """Return the first 13 bytes of a kernel function, through the kernel's own core file."""
    address = int(guest.console(f"grep ' {symbol}$' /proc/kallsyms | cut -d' ' -f1"), 16)
    # /proc/kcore is an ELF file: find the segment of the kernel text in its program headers.
    headers = bytes.fromhex(guest.console("head -c 4096 /proc/kcore | xxd -p | tr -d '\\n'"))
    count = int.from_bytes(headers[56:58], "little")
    for index in range(count):
        entry = headers[64 + 56 * index :][:56]
        offset, start = (int.from_bytes(entry[at : at + 8], "little") for at in (8, 16))
        size = int.from_bytes(entry[32:40], "little")
        if start <= address < start + size:
            at = offset + address - start
            # dd counts its position in blocks, so that blocks of one byte are exact.
            return guest.console(f"dd if=/proc/kcore bs=1 skip={at} count=13 2>/dev/null | xxd -p")
    raise AssertionError("the kernel text is not in /proc/kcore")


def test_inline_patch_changes_the_function_and_puts_it_back(guest: Guest) -> None:
    before = _byte_at(guest, "__x64_sys_getpgid")
    guest.console(
        "insmod /adversaries/inline_patch.ko "
        "target=0x$(grep ' __x64_sys_getpgid$' /proc/kallsyms | cut -d' ' -f1)"
    )
    assert _byte_at(guest, "__x64_sys_getpgid") == before
    guest.console(f"echo 1 > {PATCH}/active")
    assert _byte_at(guest, "__x64_sys_getpgid") == "f30f1efa48c7c0daffffffc3cc"
    assert int(guest.console(f"cat {PATCH}/changed_ns")) > 0
    guest.console(f"echo 0 > {PATCH}/active")
    assert _byte_at(guest, "__x64_sys_getpgid") == before
    guest.console(f"echo 1 > {PATCH}/active; rmmod inline_patch")
    assert _byte_at(guest, "__x64_sys_getpgid") == before


def test_inline_patch_wants_an_address(guest: Guest) -> None:
    with pytest.raises(CommandError, match="inline_patch"):
        guest.console("insmod /adversaries/inline_patch.ko")


def test_hide_task_hides_a_process_that_keeps_running(guest: Guest) -> None:
    pid = guest.console("pidof worker")
    guest.console(f"insmod /adversaries/hide_task.ko pid={pid} from_ps=1")
    guest.console(f"echo 1 > {HIDE}/active")
    assert pid not in guest.console("ps | awk '{print $1}'").split()
    with pytest.raises(CommandError):
        guest.console(f"kill -0 {pid}")
    guest.console(f"echo 0 > {HIDE}/active")
    assert pid in guest.console("ps | awk '{print $1}'").split()
    guest.console(f"kill -0 {pid}; rmmod hide_task")


def test_hide_task_by_the_list_alone_leaves_it_in_ps(guest: Guest) -> None:
    pid = guest.console("sleep 1000 >/dev/null 2>&1 & echo $!")
    guest.console(f"insmod /adversaries/hide_task.ko pid={pid}; echo 1 > {HIDE}/active")
    assert pid in guest.console("ps | awk '{print $1}'").split()
    # It ends while it is hidden, and the kernel stays whole.
    guest.console(f"kill {pid}; sleep 1; rmmod hide_task")
    assert "Oops" not in guest.console("dmesg")
    assert "list_del corruption" not in guest.console("dmesg")


def test_hide_task_wants_a_process_that_is_there(guest: Guest) -> None:
    with pytest.raises(CommandError, match="hide_task"):
        guest.console("insmod /adversaries/hide_task.ko pid=31999")

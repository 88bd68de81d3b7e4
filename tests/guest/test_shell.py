"""drgn on a real guest, through the command line: no debug symbols, nothing in the guest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from undercroft.guests.run import Guest

pytestmark = pytest.mark.guest

CODE = """
for task in for_each_task(prog):
    print(task.pid.value_(), task.comm.string_().decode())
print(prog.symbol("vfs_read").name, prog["PIDTYPE_PID"].value_())
print(per_cpu(prog["runqueues"], 0).nr_running.type_.type_name())
try:
    prog.write_u8(prog.symbol("jiffies").address, 0)
except Exception as error:
    print(type(error).__name__)
"""


def test_drgn_sees_what_the_guest_sees(running_guest: Guest, guest_home: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "undercroft.cli", "shell"),
            *(f"qemu:{running_guest.info.name}", "-c", CODE),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "UNDERCROFT_HOME": str(guest_home)},
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    assert "2 kthreadd" in shown
    assert any(line.endswith(" worker") for line in shown)
    assert shown[-3:] == ["vfs_read 0", "unsigned int", "AttributeError"]

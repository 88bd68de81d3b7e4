"""What a confined process can no longer do, and what it still can: tried in one."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from undercroft.securekernel.confine import FORBIDDEN, filter_program

TRY = """
import ctypes, os, socket, subprocess, sys, threading
from undercroft.securekernel.confine import confine, is_confined
threading.Thread(target=lambda: None).start()
assert not is_confined()
confine()
assert is_confined()
def works(action):
    try:
        action()
    except (OSError, RuntimeError) as error:
        print(type(error).__name__, getattr(error, "errno", ""))
    else:
        print("works")
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
ACTION
"""


def tried(action: str) -> str:
    code = textwrap.dedent(TRY).replace("ACTION", f"works(lambda: {action})")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "action",
    [
        "os.execv('/bin/true', ['true'])",
        "os.fork()",
        "subprocess.run(['/bin/true'])",
        "socket.socket(socket.AF_INET)",
        "socket.socket(socket.AF_INET6)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "call(101, 0, 0, 0, 0)",
        "call(272, 0)",
        "call(321, 0, 0, 0)",
    ],
)
def test_what_is_given_up_is_refused(action: str) -> None:
    assert tried(action) == "PermissionError 1"


@pytest.mark.parametrize(
    "action",
    [
        "socket.socket(socket.AF_UNIX).close()",
        "threading.Thread(target=print).start()",
        "open('/proc/self/maps').read()",
        "os.close(os.pidfd_open(os.getppid()))",
    ],
)
def test_what_is_needed_still_works(action: str) -> None:
    assert "works" in tried(action)


def test_the_filter_is_whole() -> None:
    program = filter_program()
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096  # BPF_MAXINSNS
    assert len(set(FORBIDDEN.values())) == len(FORBIDDEN)

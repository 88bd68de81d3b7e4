"""Give up what a secure kernel does not need once it is set up.

* no new privileges, no core dumps, not traceable by processes of the same user;
* a seccomp filter: no new programs, no new processes, no ptrace, no network (sockets other than
  unix ones), no modules, mounts, namespaces, BPF, keys, clocks or reboots.

Landlock is not used here (but see ``landlock``): a process in a Landlock domain may not look at
processes outside it (security/landlock/ptrace.c), and finding new ways around the traps needs
exactly that.

Sources: prctl(2), seccomp(2), include/uapi/linux/{seccomp,bpf_common,audit}.h,
arch/x86/entry/syscalls/syscall_64.tbl.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from pathlib import Path

from undercroft.base import EnvironmentFault

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_SYS_SECCOMP, _SET_MODE_FILTER, _FLAG_TSYNC = 317, 1, 1

_LD_ABS, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
_NUMBER, _ARCH, _ARGUMENT0 = 0, 4, 16
_AUDIT_ARCH_X86_64 = 0xC000_003E
_X32 = 0x4000_0000
_AF_UNIX = 1
_CLONE_THREAD = 0x10000

FORBIDDEN = {
    "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "ptrace": 101,
    "process_vm_writev": 311, "process_madvise": 440, "init_module": 175, "finit_module": 313,
    "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320, "mount": 165, "umount2": 166,
    "pivot_root": 155, "chroot": 161, "move_mount": 429, "fsopen": 430, "open_tree": 428,
    "unshare": 272, "setns": 308, "bpf": 321, "perf_event_open": 298, "add_key": 248,
    "request_key": 249, "keyctl": 250, "settimeofday": 164, "clock_settime": 227, "adjtimex": 159,
    "clock_adjtime": 305, "reboot": 169, "swapon": 167, "swapoff": 168, "acct": 163, "iopl": 172,
    "ioperm": 173, "io_uring_setup": 425, "userfaultfd": 323, "sethostname": 170, "quotactl": 179,
    "setuid": 105, "setgid": 106, "setresuid": 117, "setresgid": 119, "setgroups": 116,
}  # fmt: skip
"""System calls that give EPERM from now on, by number."""
_SOCKET, _CLONE, _CLONE3 = 41, 56, 435

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def confine(*, traceable: bool = False) -> None:
    """Confine this process and all its threads, for good.

    Attach first: what is given up is needed for it.  ``traceable`` leaves processes of the same
    user the right to look at this one, which looking for ways around the traps needs.

    Raises EnvironmentFault if the kernel refuses (or is not x86-64); then nothing may be assumed
    to be given up.
    """
    if platform.machine() != "x86_64":
        raise EnvironmentFault("the filter is for x86-64", got=platform.machine())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not traceable:
        _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    code = filter_program()
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    if _libc.syscall(_SYS_SECCOMP, _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.byref(program)) != 0:
        raise EnvironmentFault(f"no seccomp filter: {os.strerror(ctypes.get_errno())}")


def is_confined() -> bool:
    """Tell whether this process runs under a seccomp filter and gets no new privileges."""
    rows = dict(
        row.split(":\t", 1) for row in Path("/proc/self/status").read_text().splitlines()
        if ":\t" in row
    )  # fmt: skip
    return rows.get("Seccomp") == "2" and rows.get("NoNewPrivs") == "1"


def filter_program() -> bytes:
    """Return the filter as struct sock_filter instructions of 8 bytes."""
    refuse = _instruction(_RET, _ERRNO | errno.EPERM)
    program = [
        _instruction(_LD_ABS, _ARCH),
        _instruction(_JEQ, _AUDIT_ARCH_X86_64, 1, 0),
        _instruction(_RET, _KILL),
        _instruction(_LD_ABS, _NUMBER),
        _instruction(_JGE, _X32, 0, 1),
        _instruction(_RET, _KILL),
        # clone3 hides its flags in memory: libc takes ENOSYS for an old kernel and uses clone.
        _instruction(_JEQ, _CLONE3, 0, 1),
        _instruction(_RET, _ERRNO | errno.ENOSYS),
    ]
    for number in sorted(FORBIDDEN.values()):
        program += [_instruction(_JEQ, number, 0, 1), refuse]
    program += [
        _instruction(_JEQ, _SOCKET, 0, 4),
        _instruction(_LD_ABS, _ARGUMENT0),
        _instruction(_JEQ, _AF_UNIX, 1, 0),
        refuse,
        _instruction(_RET, _ALLOW),
        _instruction(_JEQ, _CLONE, 0, 3),
        _instruction(_LD_ABS, _ARGUMENT0),
        _instruction(_JSET, _CLONE_THREAD, 1, 0),
        refuse,
        _instruction(_RET, _ALLOW),
    ]
    return b"".join(program)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise EnvironmentFault(f"prctl {option}: {os.strerror(ctypes.get_errno())}")

"""Make another process run one system call, and leave it as it was.

A userfaultfd watches the address space that created it, so the hypervisor itself has to make the
call.  One of its threads is stopped with ptrace, its registers are pointed at a ``syscall``
instruction that is already mapped in it (the vDSO's), single-stepped over that instruction, and
put back.  No memory of the process is written, and an interrupted system call of its own is
restarted by the kernel as after any signal (arch/x86/kernel/signal.c,
arch_do_signal_or_restart).

Sources: ptrace(2); struct user_regs_struct in arch/x86/include/asm/user_64.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.securekernel.guest import GuestGone

_PTRACE_SINGLESTEP = 9
_PTRACE_GETREGS = 12
_PTRACE_SETREGS = 13
_PTRACE_DETACH = 17
_PTRACE_SEIZE = 0x4206
_PTRACE_INTERRUPT = 0x4207
_WALL = 0x40000000

_SYSCALL = b"\x0f\x05"
_MAX_ERRNO = 4095
_MAX_STEPS = 64
"""Stops that are not ours (a signal for the thread) that we pass on before giving up."""


class Registers(ctypes.Structure):
    """struct user_regs_struct of x86-64, in its order."""

    _fields_ = [
        *((name, ctypes.c_ulonglong) for name in ("r15", "r14", "r13", "r12", "rbp", "rbx")),
        *((name, ctypes.c_ulonglong) for name in ("r11", "r10", "r9", "r8", "rax", "rcx", "rdx")),
        *((name, ctypes.c_ulonglong) for name in ("rsi", "rdi", "orig_rax", "rip", "cs")),
        *((name, ctypes.c_ulonglong) for name in ("eflags", "rsp", "ss", "fs_base", "gs_base")),
        *((name, ctypes.c_ulonglong) for name in ("ds", "es", "fs", "gs")),
    ]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, data: object = None) -> None:
    if _libc.ptrace(request, pid, None, data) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.ESRCH:
        raise GuestGone("the hypervisor process ended", where=f"process {pid}")
    raise EnvironmentFault(
        f"may not trace the hypervisor: {os.strerror(number)}",
        where=f"process {pid}",
        remedy="run as root or with CAP_SYS_PTRACE; a debugger on the same process has to go",
    )


def syscall_instruction(pid: int) -> int:
    """Return the address of a ``syscall`` instruction in the process's vDSO.

    Raises GuestGone if the process ended and EnvironmentFault if it has no such instruction.
    """
    try:
        rows = Path(f"/proc/{pid}/maps").read_text().splitlines()
        row = next((row for row in rows if row.endswith("[vdso]")), None)
        if row is None:
            raise EnvironmentFault("the process has no vDSO", where=f"process {pid}")
        start, end = (int(part, 16) for part in row.split()[0].split("-"))
        descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            code = os.pread(descriptor, end - start, start)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise GuestGone("the hypervisor process ended", where=f"process {pid}") from error
    except PermissionError as error:
        raise EnvironmentFault(
            "may not read the hypervisor's memory",
            where=f"process {pid}",
            remedy="run as root or with CAP_SYS_PTRACE",
        ) from error
    at = code.find(_SYSCALL)
    if at < 0:
        raise EnvironmentFault("the vDSO has no syscall instruction", where=f"process {pid}")
    return start + at


def remote_syscall(pid: int, number: int, *arguments: int) -> int:
    """Make the process run system call ``number`` (up to six arguments) and return its result.

    Raises OSError with the call's errno if the call failed there, EnvironmentFault if the process
    may not be traced, GuestGone if it ended.
    """
    entry = syscall_instruction(pid)
    with _stopped(pid) as thread:
        saved = Registers()
        _ptrace(_PTRACE_GETREGS, thread, ctypes.byref(saved))
        call = Registers.from_buffer_copy(saved)
        call.rip, call.rax = entry, number
        call.orig_rax = ctypes.c_ulonglong(-1).value  # no restart of the call it was in
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False):
            setattr(call, name, value)
        try:
            _ptrace(_PTRACE_SETREGS, thread, ctypes.byref(call))
            _step_over(thread, entry)
            _ptrace(_PTRACE_GETREGS, thread, ctypes.byref(call))
        finally:
            _ptrace(_PTRACE_SETREGS, thread, ctypes.byref(saved))
    result = ctypes.c_longlong(call.rax).value
    if -_MAX_ERRNO <= result < 0:
        raise OSError(-result, os.strerror(-result), f"system call {number} in process {pid}")
    return result


@contextmanager
def _stopped(pid: int) -> Iterator[int]:
    """Seize and stop the process's first thread; let it go again at the end."""
    _ptrace(_PTRACE_SEIZE, pid)
    passed_on: list[int] = []
    try:
        _ptrace(_PTRACE_INTERRUPT, pid)
        status = _wait(pid)
        while status >> 16 == 0:  # a signal came first: not the stop that we asked for
            passed_on.append(os.WSTOPSIG(status))
            status = _wait(pid)
        yield pid
    finally:
        try:
            _ptrace(_PTRACE_DETACH, pid)
        finally:
            for number in passed_on:
                os.kill(pid, number)


def _step_over(thread: int, entry: int) -> None:
    """Run the one instruction at ``entry``; signals that arrive meanwhile are delivered later."""
    pending: list[int] = []
    registers = Registers()
    for _ in range(_MAX_STEPS):
        _ptrace(_PTRACE_SINGLESTEP, thread)
        stopped_by = os.WSTOPSIG(_wait(thread))
        _ptrace(_PTRACE_GETREGS, thread, ctypes.byref(registers))
        if registers.rip == entry + len(_SYSCALL):
            break
        if stopped_by != signal.SIGTRAP:
            pending.append(stopped_by)
    else:
        raise EnvironmentFault("the hypervisor's thread never ran the call", where=f"{thread}")
    for number in pending:
        os.kill(thread, number)


def _wait(thread: int) -> int:
    """Wait until the thread stops and return its wait status."""
    _, status = os.waitpid(thread, _WALL)
    if not os.WIFSTOPPED(status):
        raise GuestGone("the hypervisor process ended", where=f"process {thread}")
    return status

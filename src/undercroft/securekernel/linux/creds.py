"""Credentials: whose power each process has, and whether it can lawfully have it.

What the kernel itself keeps true (kernel/cred.c, security/commoncap.c): processes do not share
credentials with each other or with the kernel, a cred is an object of its own slab, nobody's
effective capabilities exceed the permitted ones, and without exec nobody gains what none of its
own ids allows.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from undercroft.base import Finding, JsonValue
from undercroft.securekernel.linux.facts import Anomaly, FactSpec, Look, Observer
from undercroft.securekernel.linux.live import LiveKernel
from undercroft.securekernel.linux.slab import slab_objects
from undercroft.securekernel.linux.tasks import pid_idr, task_list, thread_group

_CAP_SETUID = 1 << 7
_PF_KTHREAD = 0x00200000

SPEC = FactSpec(
    "kernel.creds",
    "every process has credentials that it can lawfully have",
    "a process has credentials that it cannot lawfully have",
    (
        "power gained before the first look, or between two looks and together with an exec, "
        "is not told from lawful power",
    ),
)


@dataclass(frozen=True, slots=True)
class Cred:
    """The ids and capabilities of one ``struct cred``."""

    address: int
    usage: int
    uid: int
    suid: int
    euid: int
    fsuid: int
    permitted: int
    effective: int
    user_ns: int

    @property
    def any_root(self) -> bool:
        """Whether any of the ids is root's, so that the process may become root."""
        return 0 in (self.uid, self.suid, self.euid, self.fsuid)


@dataclass(frozen=True, slots=True)
class _Holder:
    """A task, as far as its credentials are concerned."""

    task: int
    pid: int
    tgid: int
    comm: str
    kernel_thread: bool
    generation: tuple[int, int, int]
    cred: Cred


class Credentials:
    """Looks at the credentials of all tasks, and remembers them for the next look."""

    def __init__(self) -> None:
        self._before: Mapping[tuple[int, int, int], Cred] = {}
        self._now: dict[tuple[int, int, int], Cred] = {}

    def collect(self, kernel: LiveKernel, observer: Observer) -> Finding:
        """Return ``kernel.creds``.

        What was wrong stays the baseline's fault: power that was gained unlawfully is reported
        for as long as the process has it.
        """
        finding = observer.settle(SPEC, kernel, self.look)
        self._before = {**self._now, **{k: v for k, v in self._before.items() if k in self._now}}
        return finding

    def look(self, kernel: LiveKernel) -> Look:
        """Look once."""
        holders = _holders(kernel)
        lawful = set(slab_objects(kernel, kernel.u64(kernel.symbol("cred_jar"))))
        init_cred = kernel.symbol("init_cred")
        owners: dict[int, int] = {}
        anomalies: dict[Hashable, Anomaly] = {}
        self._now = {}
        for holder in holders:
            cred = holder.cred
            first = owners.setdefault(cred.address, holder.tgid)
            rules = [_own_rule(cred)]
            if not holder.kernel_thread:
                self._now[holder.generation] = cred
                rules.append(self._rise(holder))
                if cred.address == init_cred:
                    rules.append("a process has the kernel's own credentials")
                elif first != holder.tgid:
                    rules.append(f"it shares its credentials with process {first}")
            if cred.address != init_cred and cred.address not in lawful:
                rules.append("its credentials are no object of the kernel's cred_jar")
            for rule in filter(None, rules):
                anomalies[holder.task, rule] = _anomaly(holder, rule)
        return Look(anomalies, {"tasks": len(holders), "credentials": len(owners)})

    def _rise(self, holder: _Holder) -> str:
        """Return what this process gained since the first look without an exec, or ""."""
        before, now = self._before.get(holder.generation), holder.cred
        if before is None or before.user_ns != now.user_ns or before.any_root:
            return ""
        if now.any_root and not before.permitted & _CAP_SETUID:
            return f"it became root without an exec (uid {before.uid} to {now.uid})"
        gained = now.permitted & ~before.permitted
        return f"it gained capabilities without an exec ({gained:#x})" if gained else ""


def _own_rule(cred: Cred) -> str:
    if cred.usage <= 0:
        return "its credentials have no users"
    if cred.effective & ~cred.permitted:
        return "its effective capabilities exceed the permitted ones"
    return ""


def _anomaly(holder: _Holder, rule: str) -> Anomaly:
    details: dict[str, JsonValue] = {
        "pid": holder.pid,
        "comm": holder.comm,
        "uid": holder.cred.uid,
        "euid": holder.cred.euid,
        "permitted": f"{holder.cred.permitted:#x}",
        "cred": f"{holder.cred.address:#x}",
        "rule": rule,
    }
    return Anomaly(details)


def _holders(kernel: LiveKernel) -> list[_Holder]:
    tasks = dict.fromkeys((*task_list(kernel), *pid_idr(kernel)))
    signal_at = kernel.offset("task_struct", "signal")
    for signal in {kernel.u64(task + signal_at) for task in tasks}:
        tasks |= dict.fromkeys(thread_group(kernel, signal))
    creds: dict[int, Cred] = {}
    return [_holder(kernel, task, creds) for task in tasks]


def _holder(kernel: LiveKernel, task: int, creds: dict[int, Cred]) -> _Holder:
    address = kernel.member_u64(task, "task_struct", "real_cred")
    if address not in creds:
        creds[address] = read_cred(kernel, address)
    pid = kernel.member_u32(task, "task_struct", "pid")
    return _Holder(
        task=task,
        pid=pid,
        tgid=kernel.member_u32(task, "task_struct", "tgid"),
        comm=kernel.text(task + kernel.offset("task_struct", "comm"), 16),
        kernel_thread=bool(kernel.member_u32(task, "task_struct", "flags") & _PF_KTHREAD),
        generation=(
            pid,
            kernel.member_u64(task, "task_struct", "start_boottime"),
            kernel.member_u32(task, "task_struct", "self_exec_id"),
        ),
        cred=creds[address],
    )


def read_cred(kernel: LiveKernel, address: int) -> Cred:
    """Read the ``struct cred`` at ``address``."""
    data = kernel.read(address, kernel.size_of("cred"))

    def u32(name: str) -> int:
        return int(struct.unpack_from("<I", data, kernel.offset("cred", name))[0])

    def u64(name: str) -> int:
        return int(struct.unpack_from("<Q", data, kernel.offset("cred", name))[0])

    (usage,) = struct.unpack_from("<i", data, kernel.offset("cred", "usage"))
    return Cred(
        address=address,
        usage=usage,
        uid=u32("uid"),
        suid=u32("suid"),
        euid=u32("euid"),
        fsuid=u32("fsuid"),
        permitted=u64("cap_permitted"),
        effective=u64("cap_effective"),
        user_ns=u64("user_ns"),
    )

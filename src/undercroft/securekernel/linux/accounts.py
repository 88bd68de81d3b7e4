"""Whose account each process is charged to, which its user id must agree with.

``cred->user`` is the account of the real user id: the kernel changes the two together (set_user()
in kernel/sys.c; nothing else changes ``uid``).  Code that overwrites the ids where they stand,
or in a copy that it installs with commit_creds(), leaves the account behind.  So this is seen
without having looked at the process before.
"""

from __future__ import annotations

from collections.abc import Hashable

from undercroft.base import Finding
from undercroft.securekernel.linux.facts import Anomaly, FactSpec, Look, Observer
from undercroft.securekernel.linux.live import LiveKernel
from undercroft.securekernel.linux.tasks import pid_idr, task_list, thread_group

_CREDS = ("real_cred", "cred")

SPEC = FactSpec(
    "kernel.creds.accounts",
    "every process's user id is that of the account it is charged to",
    "a process has a user id that is not its account's",
    (
        "ids that were overwritten together with the account are not seen here",
        "capabilities alone are not seen here",
    ),
)


def look(kernel: LiveKernel) -> Look:
    """Look at the credentials of every task once."""
    tasks = dict.fromkeys((*task_list(kernel), *pid_idr(kernel)))
    for signal in {kernel.member_u64(task, "task_struct", "signal") for task in tasks}:
        tasks |= dict.fromkeys(thread_group(kernel, signal))
    anomalies: dict[Hashable, Anomaly] = {}
    judged: dict[int, tuple[int, int]] = {}
    for task in tasks:
        for member in _CREDS:
            cred = kernel.member_u64(task, "task_struct", member)
            if cred not in judged:
                user = kernel.member_u64(cred, "cred", "user")
                account = kernel.member_u32(user, "user_struct", "uid")
                judged[cred] = (kernel.member_u32(cred, "cred", "uid"), account)
            uid, account = judged[cred]
            if uid != account:
                anomalies[task, member] = Anomaly(
                    {
                        "pid": kernel.member_u32(task, "task_struct", "pid"),
                        "comm": kernel.text(task + kernel.offset("task_struct", "comm"), 16),
                        "uid": uid,
                        "account": account,
                        "cred": f"{cred:#x}",
                    }
                )
    return Look(anomalies, {"tasks": len(tasks), "credentials": len(judged)})


def collect(kernel: LiveKernel, observer: Observer) -> Finding:
    """Return ``kernel.creds.accounts``."""
    return observer.settle(SPEC, kernel, look)

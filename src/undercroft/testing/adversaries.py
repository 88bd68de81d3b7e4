"""Every test adversary, each with the facts that must see it: for tests that try them all.

The modules and programs are in tests/adversaries; here is how each is switched on in a guest of
ours that will be thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import cast

from undercroft.base import Finding, Outcome
from undercroft.guests.attacks import (
    PATCHED_FUNCTION,
    Adversary,
    hide_module,
    hide_task,
    inline_patch,
    load,
    pid_of,
    running,
    transient,
)
from undercroft.guests.run import Guest
from undercroft.securekernel.inspect import SecureKernel
from undercroft.securekernel.linux import mounts
from undercroft.securekernel.linux.containers import xarray_entries
from undercroft.securekernel.linux.live import LiveKernel
from undercroft.securekernel.linux.tasks import task_list
from undercroft.securekernel.linux.usercode import FrameMap
from undercroft.securekernel.linux.vdso import read_images

USER = "user:x:1000:1000::/:/bin/sh"

Switch = Callable[[bool], None]


@dataclass
class Scene:
    """The guest, and what looks at it."""

    guest: Guest
    kernel: SecureKernel
    sleeper: int
    """A process of an ordinary user."""

    def address(self, symbol: str) -> int:
        """Return where a symbol of the kernel is in this guest."""
        return self.kernel.image.symbols.address(symbol) + self.slide

    @property
    def function(self) -> int:
        """The function that the patching adversaries patch."""
        return self.address(PATCHED_FUNCTION)

    def vdso_code(self) -> int:
        """Return an address in the vDSO's getcpu(), which nothing in the guest calls."""
        image = read_images(self.kernel.image)[0]
        return image.data + int(image.alternatives.instr.max()) + self.slide

    def dispatch_jump(self) -> int:
        """Return where x64_sys_call() jumps to the function of getpgid."""
        image = self.kernel.image
        start, wanted = image.offset("x64_sys_call"), image.offset(PATCHED_FUNCTION)
        code = image.read(start, 16 << 10)
        at = next(
            at
            for at in range(len(code) - 5)
            if code[at] == 0xE9
            and start + at + 5 + int.from_bytes(code[at + 1 : at + 5], "little", signed=True)
            == wanted
        )
        return image.link_base + start + at + self.slide

    @property
    def slide(self) -> int:
        """How far the kernel was moved."""
        located = self.kernel.proof.kernel
        assert located is not None
        return located.slide

    def security_hook(self, name: str) -> int:
        """Return the head of a security hook's list."""
        offset = self.kernel.image.btf.offset_of("security_hook_heads", name)
        return self.address("security_hook_heads") + offset

    def facts(self) -> dict[str, Finding]:
        """Return every fact by its id."""
        found: dict[str, Finding] = {}
        for finding in self.kernel.facts():
            assert finding.id not in found, f"two findings {finding.id}"
            found[finding.id] = finding
        return found


Attack = Callable[[Scene], AbstractContextManager[Switch]]


@dataclass(frozen=True)
class Case:
    """A technique: what is done, the facts that must see it, and what they must name.

    The first of ``facts`` must hold ``names``.  ``facts`` is empty for what no fact sees; ``note``
    then says why, for the document.
    """

    technique: str
    seen_in: str
    attack: Attack
    facts: tuple[str, ...]
    names: str = ""
    note: str = ""


Parameters = Callable[[Scene], Mapping[str, int | str]]


def module(name: str, parameters: Parameters = lambda _: {}) -> Attack:
    """The adversary that is a module with a parameter ``active``."""

    @contextmanager
    def attack(scene: Scene) -> Iterator[Switch]:
        with load(scene.guest, name, parameters(scene)) as adversary:
            yield adversary.switch

    return attack


def loaded(load_it: Callable[[Scene], AbstractContextManager[Adversary]]) -> Attack:
    """The adversary that has a function of its own in ``attacks``."""

    @contextmanager
    def attack(scene: Scene) -> Iterator[Switch]:
        with load_it(scene) as adversary:
            yield adversary.switch

    return attack


def program(command: str, *, before: str = "true", after: str = "true") -> Attack:
    """The adversary that is a process: on while it runs."""

    @contextmanager
    def attack(scene: Scene) -> Iterator[Switch]:
        started: list[AbstractContextManager[int]] = []

        def switch(on: bool) -> None:
            if on:
                scene.guest.console(before)
                process = running(scene.guest, command)
                process.__enter__()
                started.append(process)
                scene.guest.console(f"usleep 500000; {after}")
            else:
                started.pop().__exit__(None, None, None)

        yield switch
        if started:
            switch(False)

    return attack


@contextmanager
def injected(scene: Scene) -> Iterator[Switch]:
    """Code is put into a process; it is gone when the process is."""
    with running(scene.guest, "sleep 5001") as victim:
        scene.guest.console("usleep 300000")

        def switch(on: bool) -> None:
            if on:
                scene.guest.console(f"/adversaries/exec_inject {victim}")
            else:
                scene.guest.console(f"kill {victim}; usleep 300000")

        yield switch


@contextmanager
def hidden_bpf(scene: Scene) -> Iterator[Switch]:
    """A BPF program runs, and then no longer stands where bpftool would look."""
    with running(scene.guest, "/adversaries/bpf_tracer"):
        scene.guest.console("usleep 500000")
        (found,) = cast(
            "list[dict[str, int]]", scene.facts()["kernel.bpf.watchers"].details["anomalies"]
        )
        table = scene.address("prog_idr")
        with load(scene.guest, "hide_bpf", {"table": table, "id": found["id"]}) as adversary:
            yield adversary.switch


def live_kernel(scene: Scene) -> LiveKernel:
    """Return the guest's structures, to find what an adversary is to change."""
    located = scene.kernel.proof.kernel
    assert located is not None
    return LiveKernel(
        scene.kernel.guest.memory,
        scene.kernel.image,
        slide=located.slide,
        cr3=located.cr3,
        la57=located.la57,
    )


def cached_page(scene: Scene) -> int:
    """Return where the kernel sees the last cached page of the program that the sleeper runs.

    It holds what is behind the program's code, so that nothing in the guest goes wrong.
    """
    kernel = live_kernel(scene)
    pid_at = kernel.offset("task_struct", "pid")
    task = next(one for one in task_list(kernel) if kernel.u32(one + pid_at) == scene.sleeper)
    memory = kernel.member_u64(task, "task_struct", "mm")
    file = kernel.member_u64(memory, "mm_struct", "exe_file")
    inode = kernel.member_u64(file, "file", "f_inode")
    mapping = kernel.member_u64(inode, "inode", "i_mapping")
    pages = xarray_entries(kernel, mapping + kernel.offset("address_space", "i_pages"))
    _, page = max(pages)
    return kernel.u64(kernel.symbol("page_offset_base")) + next(FrameMap(kernel).frames(page))


@contextmanager
def hidden_mount(scene: Scene) -> Iterator[Switch]:
    """A file system is mounted, and then is not shown."""
    scene.guest.console("mount -t tmpfs hidden /srv")
    kernel = live_kernel(scene)
    entry = next(
        mount + kernel.offset("mount", "mnt_list")
        for mount in mounts.by_file_system(kernel)
        if mounts.path_of_mount(kernel, mount) == "/srv"
    )
    try:
        with load(scene.guest, "hide_mount", {"entry": entry}) as adversary:
            yield adversary.switch
    finally:
        scene.guest.console("umount /srv")


@contextmanager
def flickering(scene: Scene) -> Iterator[Switch]:
    """A byte of text is changed for a microsecond: over before anybody looks."""
    with transient(scene.guest, scene.function) as adversary:
        yield lambda on: adversary.run(1) if on else None


CASES = (
    Case(
        "inline patch of a function",
        "Suterusu, Reptile",
        loaded(lambda scene: inline_patch(scene.guest, scene.function)),
        ("kernel.text",),
        f"{PATCHED_FUNCTION}+0x0",
    ),
    Case(
        "system-call dispatch patched",
        "the way round a table that is no longer used",
        module("dispatch_hook", lambda scene: {"target": scene.dispatch_jump()}),
        ("kernel.text",),
        "x64_sys_call+",
    ),
    Case(
        "inline jump to a page of its own",
        "Suterusu, Reptile's KHOOK",
        module("jump_stub", lambda scene: {"target": scene.function}),
        ("kernel.text", "kernel.closure.owned"),
        f"{PATCHED_FUNCTION}+0x0",
    ),
    Case(
        "entry of sys_call_table replaced",
        "knark, Adore, Diamorphine",
        module("syscall_table", lambda scene: {"table": scene.address("sys_call_table")}),
        ("kernel.rodata",),
        "sys_call_table+0x3c8",
    ),
    Case(
        "ftrace hook",
        "KoviD, Singularity",
        module("ftrace_hook", lambda scene: {"target": scene.function}),
        ("kernel.hooks.ftrace",),
        "ftrace_hook",
    ),
    Case(
        "kprobe",
        "Diamorphine, KoviD",
        module("kprobe_hook", lambda scene: {"target": scene.function + 0x14}),
        ("kernel.hooks.kprobes",),
        PATCHED_FUNCTION,
    ),
    Case(
        "kretprobe that changes a result",
        "rootkits without a hook of their own",
        module("kprobe_hook", lambda scene: {"target": scene.function, "on_return": 1}),
        ("kernel.hooks.kprobes",),
        PATCHED_FUNCTION,
    ),
    Case(
        "tracepoint probe (a static call)",
        "tracepoint rootkits",
        module("tracepoint_hook"),
        ("kernel.hooks.tracepoints",),
        "sched_process_exit",
    ),
    Case(
        "BPF program at a tracepoint",
        "TripleCross, Boopkit",
        program("/adversaries/bpf_tracer"),
        ("kernel.bpf.watchers",),
        "raw_tracepoint",
    ),
    Case(
        "BPF program out of the kernel's table",
        "what follows TripleCross",
        hidden_bpf,
        ("kernel.bpf.crossview",),
        '"seen_in": ["bpf_kallsyms", "tracepoint"]',
    ),
    Case(
        "static call led elsewhere",
        "a hook that no list holds",
        module(
            "static_call_hook",
            lambda scene: {
                "key": scene.address("__SCK__tp_func_sched_process_hang"),
                "trampoline": scene.address("__SCT__tp_func_sched_process_hang"),
            },
        ),
        ("kernel.pointers.data",),
        "__SCK__tp_func_sched_process_hang",
    ),
    Case(
        "operations of a directory swapped",
        "Adore-ng, Suterusu",
        module("ops_hook"),
        ("kernel.ops.files",),
        "ops_hook",
    ),
    Case(
        "operations of a directory that nobody has open",
        "Adore-ng",
        module("ops_hook", lambda _: {"path": "/srv"}),
        ("kernel.ops.inodes",),
        "ops_hook",
    ),
    Case(
        "netfilter hook",
        "KoviD, Drovorub, Syslogk",
        module("netfilter_hook"),
        ("kernel.hooks.netfilter",),
        "netfilter_hook",
    ),
    Case(
        "keyboard notifier",
        "keyloggers",
        module("keyboard_notifier"),
        ("kernel.hooks.notifiers",),
        "keyboard_notifier",
    ),
    Case(
        "a timer and delayed work",
        "rootkits that wait",
        module("deferred_hook"),
        ("kernel.hooks.timers",),
        "delayed work of CPU",
    ),
    Case(
        "mount out of the list of mounts",
        "what hides below a folder",
        hidden_mount,
        ("kernel.mounts.crossview",),
        '"mount": "/srv"',
    ),
    Case(
        "process out of the task list",
        "FU, KoviD",
        loaded(lambda scene: load(scene.guest, "hide_task", {"pid": scene.sleeper})),
        ("kernel.tasks.crossview",),
        '"missing_from": ["tasks list"]',
    ),
    Case(
        "process out of task list and pid table",
        "FU, KoviD",
        loaded(lambda scene: hide_task(scene.guest, pid_of(scene.guest, "worker"))),
        ("kernel.tasks.crossview",),
        '"comm": "worker"',
    ),
    Case(
        "module out of lsmod and /sys",
        "Diamorphine, Reptile, Singularity",
        loaded(lambda scene: hide_module(scene.guest)),
        ("kernel.modules.crossview",),
        "hide_module",
    ),
    Case(
        "module out of every list",
        "Singularity and after",
        loaded(lambda scene: hide_module(scene.guest, scene.address("mod_tree"))),
        ("kernel.closure.owned",),
        "address",
    ),
    Case(
        "credentials overwritten in place",
        "Diamorphine, Reptile, exploits",
        module("cred_overwrite", lambda scene: {"pid": scene.sleeper}),
        ("kernel.creds", "kernel.creds.accounts"),
        '"comm": "sleep"',
    ),
    Case(
        "credentials of the first task shared",
        "exploits",
        module("cred_overwrite", lambda scene: {"pid": scene.sleeper, "share": 1}),
        ("kernel.creds",),
        '"comm": "sleep"',
    ),
    Case(
        "security hook removed",
        "Singularity, exploits",
        module("lsm_unhook", lambda s: {"head": s.security_hook("ptrace_access_check")}),
        ("kernel.security.hooks",),
        "ptrace_access_check",
    ),
    Case(
        "a defence switched off (IMA's policy)",
        "Singularity, exploits",
        module("lower_defence", lambda scene: {"target": scene.address("ima_policy_flag")}),
        ("kernel.security.switches",),
        "ima_policy_flag",
    ),
    Case(
        "interrupt gate led elsewhere",
        "Phrack 59-4",
        module("idt_gate", lambda scene: {"table": scene.address("idt_table")}),
        ("cpu.idt",),
        '"vector": 5',
    ),
    Case(
        "LSTAR led to a detour",
        "MSR hooks",
        module("lstar"),
        ("cpu.syscall",),
        "LSTAR",
    ),
    Case(
        "hardware breakpoint as a hook",
        "Phrack 65",
        module("debug_register", lambda scene: {"target": scene.function}),
        ("cpu.debug",),
        PATCHED_FUNCTION,
    ),
    Case(
        "SMEP switched off",
        "exploits",
        module("control_bits"),
        ("cpu.control",),
        "SMEP",
    ),
    Case(
        "text page led to a changed copy",
        "Shadow Walker",
        module("text_remap", lambda scene: {"target": scene.function}),
        ("kernel.text", "kernel.closure.alias"),
        f"{PATCHED_FUNCTION}+0x0",
    ),
    Case(
        "writable second mapping of text",
        "every inline hook, a moment before",
        module("text_alias", lambda scene: {"target": scene.function}),
        ("kernel.closure.alias",),
        "address",
    ),
    Case(
        "data page made executable",
        "exploits that can write a page table",
        module("nx_clear"),
        ("kernel.closure.owned", "kernel.closure.wx"),
        "address",
    ),
    Case(
        "vDSO patched",
        "Dirty COW exploits",
        loaded(lambda scene: inline_patch(scene.guest, scene.vdso_code())),
        ("kernel.vdso",),
        "vdso_image_64",
    ),
    Case(
        "program changed in the page cache",
        "Dirty COW, Dirty Pipe",
        loaded(lambda scene: inline_patch(scene.guest, cached_page(scene))),
        ("user.code",),
        '"file": "/bin/busybox"',
    ),
    Case(
        "packet socket with a filter",
        "BPFDoor",
        program("/adversaries/packet_listener"),
        ("kernel.sockets.packet",),
        "packet_listener",
    ),
    Case(
        "code injected by ptrace",
        "linux-inject, TripleCross",
        injected,
        ("user.exec.anonymous",),
        '"comm": "sleep"',
    ),
    Case(
        "program without a file",
        "fileless malware",
        program("/root/sleep 5002", before="cp /bin/busybox /root/sleep", after="rm /root/sleep"),
        ("user.exec.files",),
        "deleted",
    ),
    Case(
        "LD_PRELOAD",
        "Jynx, Azazel",
        program("env LD_PRELOAD=/tmp/hook.so sleep 5003"),
        ("user.preload",),
        "LD_PRELOAD=/tmp/hook.so",
    ),
    Case(
        "text changed for a microsecond",
        "Vigilare's transient attack",
        flickering,
        (),
        note="not by looking now and then; the write traps see it",
    ),
)


@contextmanager
def staged(guest: Guest, kernel: SecureKernel) -> Iterator[Scene]:
    """Prepare a guest for the adversaries: an ordinary user with a process."""
    guest.console(f"grep -q ^user: /etc/passwd || echo {USER} >> /etc/passwd")
    with running(guest, "su -s /bin/sh user -c 'exec sleep 5000'") as sleeper:
        guest.console("usleep 500000")
        yield Scene(guest, kernel, sleeper)


def failed(facts: Mapping[str, Finding]) -> dict[str, Finding]:
    """Return the facts that do not pass."""
    return {name: fact for name, fact in facts.items() if fact.outcome is not Outcome.PASS}

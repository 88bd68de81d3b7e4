"""A fake kernel with code in it: functions, modules, and everything else that owns code."""

from __future__ import annotations

from collections.abc import Mapping

from undercroft.testing.fakekernel import DIRECT_MAP, LINK_BASE, FakeKernel, Layouts

TEXT = LINK_BASE + 0x100000
TEXT_PAGES = 3
FUNCTION_STEP = 0x40
GOOD_MODULE, BAD_MODULE = 0xFFFFFFFFC0000000, 0xFFFFFFFFC0100000
STRAY = 0xFFFFFFFFC0200000
"""Executable memory that nobody owns; mapped by :meth:`FakeCode.stray`."""
OOT_AND_UNSIGNED = 1 << 12 | 1 << 13

MODULE_LAYOUTS: Layouts = {
    "module": (
        512,
        {
            "state": 0,
            "list": 8,
            "name": 24,
            "core_layout.base": 80,
            "core_layout.text_size": 88,
            "init_layout.base": 200,
            "init_layout.text_size": 208,
            "taints": 300,
            "sect_attrs": 312,
        },
    ),
    "mod_tree_root": (32, {"root.tree": 8}),
    "mod_tree_node": (56, {"mod": 0, "node": 8}),
    "rb_node": (24, {"__rb_parent_color": 0, "rb_right": 8, "rb_left": 16}),
    "rb_root": (8, {"rb_node": 0}),
    "kobject": (64, {"entry": 8}),
    "module_kobject": (96, {"kobj": 0, "mod": 64}),
    "kset": (96, {"list": 0}),
}
"""What the three views of modules are made of, as before Linux 6.4 (module_memory)."""

CODE_LAYOUTS: Layouts = {
    **MODULE_LAYOUTS,
    "real_mode_header": (44, {"text_start": 0, "ro_end": 4, "trampoline_pgd": 24}),
    "bpf_ksym": (200, {"start": 0, "end": 8, "name": 16, "lnode": 144}),
    "ftrace_ops": (
        184,
        {"func": 0, "next": 8, "trampoline": 144, "trampoline_size": 152, "list": 160},
    ),
}


class CodeOwners(FakeKernel):
    """A kernel in which modules, BPF images and trampolines are listed; none at first."""

    def start_owners(self) -> None:
        """Make the empty lists."""
        self.modules: list[int] = []
        self.kset = self.make("kset")
        self.guest.put_u64(self.symbol("module_kset"), self.kset)
        self.link_list(self.kset, [])
        self.symbol("mod_tree", 32)
        for name in ("bpf_kallsyms", "ftrace_ops_trampoline_list"):
            self.link_list(self.symbol(name, 16), [])
        end = self.symbol("ftrace_list_end", 184)
        self.guest.put_u64(self.symbol("ftrace_ops_list"), end)

    def module(self, name: str, base: int, size: int = 0x1000, **fields: int) -> int:
        """Load a module with ``size`` bytes of text at ``base``; return its ``struct module``."""
        at = self.make("module", core_layout__base=base, **fields)
        self.put(at, "module", "core_layout.text_size", size, size=4)
        self.guest.write(at + 24, name.encode())
        self.modules.append(at)
        self.link_list(self.symbol("modules", 16), [one + 8 for one in self.modules])
        self.guest.map(base, size, executable=True, writable=False)
        return at


class FakeCode(CodeOwners):
    """A kernel with functions ``f0``, ``f1``, ... and two modules: ``good``, and ``bad``.

    The second is out of tree and not signed.
    """

    def __init__(self, layouts: Mapping[str, tuple[int, Mapping[str, int]]]) -> None:
        super().__init__({**CODE_LAYOUTS, **layouts}, slide=0x2000000)
        names = self.image.symbols.names
        self.guest.map(TEXT + self.slide, TEXT_PAGES << 12, executable=True, writable=False)
        names |= dict.fromkeys(("_text", "_stext"), TEXT)
        names |= {f"f{number}": TEXT + FUNCTION_STEP * number for number in range(64)}
        names |= {"_etext": TEXT + 0x2100, "_end": LINK_BASE + 0x1000000}
        names["__end_rodata"] = self.symbol("__start_rodata", 256) - self.slide + 256
        self.guest.put_u64(self.symbol("page_offset_base"), DIRECT_MAP)
        header = self.make("real_mode_header")
        self.put(header, "real_mode_header", "text_start", 0x9A000, size=4)
        self.put(header, "real_mode_header", "ro_end", 0x9A800, size=4)
        self.guest.put_u64(self.symbol("real_mode_header"), header)
        self.start_owners()
        self.module("good", GOOD_MODULE, sect_attrs=1)
        self.module("bad", BAD_MODULE, sect_attrs=1, taints=OOT_AND_UNSIGNED)

    def function(self, number: int) -> int:
        """Return the runtime address of function ``f<number>``."""
        return TEXT + FUNCTION_STEP * number + self.slide

    def stray(self) -> int:
        """Map an executable page that nobody owns; return its address."""
        self.guest.map(STRAY, executable=True, writable=False)
        return STRAY

    def bpf_image(self, start: int, size: int = 0x100) -> int:
        """Make a JIT image that bpf_kallsyms knows; return its address."""
        ksym = self.make("bpf_ksym", start=start, end=start + size)
        self.guest.write(ksym + 16, b"bpf_prog_1")
        self.link_list(self.symbol("bpf_kallsyms"), [ksym + 144])
        self.guest.map(start & ~0xFFF, executable=True, writable=False)
        return start

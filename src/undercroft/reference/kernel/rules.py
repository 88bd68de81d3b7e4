"""The ways in which Linux changes its own code, each with a name and where to read about it."""

from __future__ import annotations

import enum


class Rule(enum.Enum):
    """One mechanism.  The value is its stable id; ``what`` and ``source`` are for people.

    The kernel applies the boot-time ones in the order in which they stand here
    (alternative_instructions() in arch/x86/kernel/alternative.c); those from JUMP_LABEL on keep
    changing while the kernel runs.
    """

    RELOCATION = (
        "relocation",
        "moved by KASLR",
        "arch/x86/boot/compressed/misc.c: handle_relocations",
    )
    PARAVIRT = ("paravirt", "a pv_ops call made direct", "alternative.c: apply_paravirt")
    RETPOLINE = ("retpoline", "an indirect branch thunk", "alternative.c: apply_retpolines")
    RETURN = ("return", "a function's return", "alternative.c: apply_returns")
    ALTERNATIVE = ("alternative", "code for this CPU", "alternative.c: apply_alternatives")
    CALL_THUNK = ("call-thunk", "call depth accounting", "callthunks.c: patch_call")
    ENDBR_SEAL = ("endbr-seal", "an ENDBR nobody needs", "alternative.c: apply_seal_endbr")
    RUNTIME_CONST = (
        "runtime-const",
        "a boot-time value as an immediate",
        "asm/runtime-const.h: runtime_const_fixup",
    )
    SMP_LOCK = ("smp-lock", "a LOCK prefix", "alternative.c: alternatives_smp_unlock")
    JUMP_LABEL = ("jump-label", "a static key's branch", "jump_label.c: __jump_label_patch")
    STATIC_CALL = ("static-call", "a static call", "static_call.c: __static_call_transform")
    FTRACE = ("ftrace", "a function's tracing hook", "ftrace.c: ftrace_modify_code_direct")
    KPROBE = ("kprobe", "a probe", "kprobes/core.c: arch_arm_kprobe")
    TEXT_POKE = ("text-poke", "a patch in progress", "alternative.c: text_poke_bp_batch")

    def __init__(self, label: str, what: str, source: str) -> None:
        self.label = label
        self.what = what
        self.source = source

    def __str__(self) -> str:
        return self.label

"""Types of the kernel's variables, which BTF does not tell (except for per-CPU ones).

Only those that tools ask for by name.  A wrong row shows nonsense to a person and proves nothing:
no fact rests on this table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "__cpu_online_mask": "struct cpumask",
        "__cpu_possible_mask": "struct cpumask",
        "__cpu_present_mask": "struct cpumask",
        "__per_cpu_offset": "unsigned long [8192]",
        "arp_seq_ops": "struct seq_operations",
        "block_class": "struct class",
        "btf_idr": "struct idr",
        "cap_last_cap": "int",
        "cgroup_roots": "struct list_head",
        "efi": "struct efi",
        "file_systems": "struct file_system_type *",
        "ftrace_list_end": "struct ftrace_ops",
        "ftrace_ops_list": "struct ftrace_ops *",
        "high_memory": "void *",
        "idt_table": "struct gate_struct [256]",
        "ima_measurements": "struct list_head",
        "init_cred": "struct cred",
        "init_files": "struct files_struct",
        "init_mm": "struct mm_struct",
        "init_net": "struct net",
        "init_pid_ns": "struct pid_namespace",
        "init_task": "struct task_struct",
        "init_user_ns": "struct user_namespace",
        "init_uts_ns": "struct uts_namespace",
        "iomem_resource": "struct resource",
        "jiffies": "unsigned long",
        "keyboard_notifier_list": "struct atomic_notifier_head",
        "link_idr": "struct idr",
        "map_idr": "struct idr",
        "max_pfn": "unsigned long",
        "mod_tree": "struct mod_tree_root",
        "module_kset": "struct kset *",
        "modules": "struct list_head",
        "net_namespace_list": "struct list_head",
        "nr_cpu_ids": "unsigned int",
        "num_registered_fb": "int",
        "packet_seq_ops": "struct seq_operations",
        "page_offset_base": "unsigned long",
        "prb": "struct printk_ringbuffer *",
        "proc_root": "struct proc_dir_entry",
        "prog_idr": "struct idr",
        "raw6_seq_ops": "struct seq_operations",
        "raw_seq_ops": "struct seq_operations",
        "registered_fb": "struct fb_info * [32]",
        "saved_command_line": "char *",
        "slab_caches": "struct list_head",
        "socket_file_ops": "struct file_operations",
        "sockfs_dentry_operations": "struct dentry_operations",
        "super_blocks": "struct list_head",
        "taint_flags": "struct taint_flag [19]",
        "tcp4_seq_ops": "struct seq_operations",
        "tcp6_seq_ops": "struct seq_operations",
        "tty_drivers": "struct list_head",
        "udp6_seq_ops": "struct seq_operations",
        "udp_seq_ops": "struct seq_operations",
        "unix_seq_ops": "struct seq_operations",
        "vmalloc_base": "unsigned long",
        "vmap_area_list": "struct list_head",
        "vmemmap_base": "unsigned long",
        "__start___tracepoints_ptrs": "int [1]",
    }
)

_DECLARATION = re.compile(r"((?:struct |union |unsigned )?\w+)(?: (\*+))?(?: \[(\d+)\])?")


@dataclass(frozen=True, slots=True)
class Declaration:
    """A type: ``base`` ("struct x", "unsigned long"), how many ``*``, and an array's length."""

    base: str
    pointers: int
    count: int | None


def declaration(text: str) -> Declaration:
    """Parse a type of :data:`VARIABLES`; raise ValueError if it is spelled in another way."""
    match = _DECLARATION.fullmatch(text)
    if match is None:
        raise ValueError(f"not a type as this table spells it: {text!r}")
    base, stars, count = match.groups()
    return Declaration(base, len(stars or ""), None if count is None else int(count))

// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: a BPF program that runs at every system call.
 * For throw-away guests only; see README.md.
 *
 * Technique: TripleCross and Boopkit need no module: a BPF program at a tracepoint sees what
 * every process does and may write to its memory.  This one returns 0.
 */
#include <linux/bpf.h>
#include "raw.h"

static struct bpf_insn code[] = {
	{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = 0 },
	{ .code = BPF_JMP | BPF_EXIT },
};
static union bpf_attr load, attach; /* zero, as the kernel wants what is not used */

__attribute__((used)) static void start(void)
{
	long fd;

	load.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT;
	load.insns = (unsigned long)code;
	load.insn_cnt = sizeof(code) / sizeof(*code);
	load.license = (unsigned long)"GPL";
	fd = CALL(bpf, BPF_PROG_LOAD, &load, sizeof(load));
	if (fd < 0)
		CALL(exit, 1);
	attach.raw_tracepoint.name = (unsigned long)"sys_enter";
	attach.raw_tracepoint.prog_fd = fd;
	if (CALL(bpf, BPF_RAW_TRACEPOINT_OPEN, &attach, sizeof(attach)) < 0)
		CALL(exit, 2);
	for (;;)
		CALL(pause, 0);
}

PROGRAM(start);

// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: a kprobe, or a kretprobe that changes what a function returns.
 * For throw-away guests only; see README.md.
 *
 * Technique: rootkits use kprobes to find unexported symbols (Diamorphine, KoviD) and
 * kretprobes to change results.  The kernel itself writes the breakpoint.
 */
#include <linux/errno.h>
#include <linux/kprobes.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static unsigned long target;
module_param(target, ulong, 0444);
MODULE_PARM_DESC(target, "address of the instruction to probe; of the function, with on_return=1");

static bool on_return;
module_param(on_return, bool, 0444);
MODULE_PARM_DESC(on_return, "a kretprobe instead");

static int pre_handler(struct kprobe *probe, struct pt_regs *regs)
{
	return 0;
}

static int return_handler(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	regs_set_return_value(regs, -ENOSYS);
	return 0;
}

static struct kprobe probe;
static struct kretprobe return_probe;

static int switch_on(void)
{
	if (on_return) {
		memset(&return_probe, 0, sizeof(return_probe));
		return_probe.kp.addr = (kprobe_opcode_t *)target;
		return_probe.handler = return_handler;
		return register_kretprobe(&return_probe);
	}
	memset(&probe, 0, sizeof(probe));
	probe.addr = (kprobe_opcode_t *)target;
	probe.pre_handler = pre_handler;
	return register_kprobe(&probe);
}

static void switch_off(void)
{
	if (on_return)
		unregister_kretprobe(&return_probe);
	else
		unregister_kprobe(&probe);
}

ADVERSARY("probes a kernel function");

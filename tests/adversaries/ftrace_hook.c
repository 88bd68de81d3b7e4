// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: takes over a kernel function through ftrace.
 * For throw-away guests only; see README.md.
 *
 * Technique: the kernel's own function tracer, with permission to change where execution goes on
 * (IPMODIFY).  KoviD and Singularity hook dozens of functions like this.  No text is written that
 * the kernel would not write for an honest tracer.
 */
#include <linux/errno.h>
#include <linux/ftrace.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static unsigned long target;
module_param(target, ulong, 0444);
MODULE_PARM_DESC(target, "address of the function that is taken over");

static long replacement(const struct pt_regs *regs)
{
	return -ENOSYS;
}

static void notrace hook(unsigned long ip, unsigned long parent, struct ftrace_ops *ops,
			 struct ftrace_regs *regs)
{
	ftrace_instruction_pointer_set(regs, (unsigned long)replacement);
}

static struct ftrace_ops ops = {
	.func = hook,
	.flags = FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_RECURSION | FTRACE_OPS_FL_IPMODIFY,
};

static int switch_on(void)
{
	int error = ftrace_set_filter_ip(&ops, target, 0, 0);

	if (error)
		return error;
	error = register_ftrace_function(&ops);
	if (error)
		ftrace_set_filter_ip(&ops, target, 1, 0);
	return error;
}

static void switch_off(void)
{
	unregister_ftrace_function(&ops);
	ftrace_set_filter_ip(&ops, target, 1, 0);
}

ADVERSARY("takes over a kernel function through ftrace");

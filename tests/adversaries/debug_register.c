// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: a hardware breakpoint on a kernel function, on every processor.
 * For throw-away guests only; see README.md.
 *
 * Technique: hooking without changing a byte of memory: the debug exception does the redirection
 * (halfdead's "Mystifying the debugger", Phrack 65).  This one does nothing when it fires.
 */
#include <linux/errno.h>
#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static unsigned long target;
module_param(target, ulong, 0444);
MODULE_PARM_DESC(target, "address of the function");

static struct perf_event * __percpu *events;

static void handler(struct perf_event *event, struct perf_sample_data *data, struct pt_regs *regs)
{
}

static int switch_on(void)
{
	struct perf_event_attr attr;

	hw_breakpoint_init(&attr);
	attr.bp_addr = target;
	attr.bp_len = sizeof(long);
	attr.bp_type = HW_BREAKPOINT_X;
	events = register_wide_hw_breakpoint(&attr, handler, NULL);
	return PTR_ERR_OR_ZERO((void __force *)events);
}

static void switch_off(void)
{
	unregister_wide_hw_breakpoint(events);
}

ADVERSARY("a hardware breakpoint in the kernel");

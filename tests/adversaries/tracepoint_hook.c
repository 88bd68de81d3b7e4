// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: attaches a function of its own to a tracepoint.
 * For throw-away guests only; see README.md.
 *
 * Technique: tracepoints are called with the arguments of system calls, of exec and of exit, and
 * any module may listen (TripleCross and Boopkit do it with BPF).  The kernel itself rewrites
 * the static call to lead to the listener.
 */
#include <linux/errno.h>
#include <linux/tracepoint.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static char *name = "sched_process_exit";
module_param(name, charp, 0444);
MODULE_PARM_DESC(name, "the tracepoint");

static struct tracepoint *found;

static void listener(void *data)
{
}

static void compare(struct tracepoint *tracepoint, void *unused)
{
	if (!strcmp(tracepoint->name, name))
		found = tracepoint;
}

static int switch_on(void)
{
	for_each_kernel_tracepoint(compare, NULL);
	return found ? tracepoint_probe_register(found, listener, NULL) : -ENOENT;
}

static void switch_off(void)
{
	tracepoint_probe_unregister(found, listener, NULL);
	tracepoint_synchronize_unregister();
}

ADVERSARY("listens at a tracepoint");

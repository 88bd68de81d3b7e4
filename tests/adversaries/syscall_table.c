// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: replaces one entry of sys_call_table.
 * For throw-away guests only; see README.md.
 *
 * Technique: the oldest hook of all, of knark and Adore; Diamorphine still does it, with CR0.WP
 * off.  Kernels with the fix for Spectre-BHI dispatch by x64_sys_call() and use the table for
 * tracing only, so that here the entry leads nowhere any more: it must be seen all the same.
 */
#include <linux/errno.h>
#include <linux/types.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static unsigned long table;
module_param(table, ulong, 0444);
MODULE_PARM_DESC(table, "address of sys_call_table");

static unsigned int number = 121; /* getpgid */
module_param(number, uint, 0444);
MODULE_PARM_DESC(number, "system call whose entry is replaced");

static unsigned long saved;

static long replacement(const struct pt_regs *regs)
{
	return -ENOSYS;
}

static int switch_on(void)
{
	unsigned long mine = (unsigned long)replacement;

	if (!table)
		return -EINVAL;
	saved = ((unsigned long *)table)[number];
	return write_through_alias(table + 8 * number, &mine, sizeof(mine));
}

static void switch_off(void)
{
	write_through_alias(table + 8 * number, &saved, sizeof(saved));
}

ADVERSARY("replaces a system call's entry");

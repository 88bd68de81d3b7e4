// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: sets one variable of the kernel to 0.
 * For throw-away guests only; see README.md.
 *
 * Technique: defences are variables.  Rootkits and exploits clear selinux_state.enforcing,
 * audit_enabled or, as the test does, ima_policy_flag, after which nothing is measured.
 */
#include <linux/errno.h>
#include <linux/types.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static unsigned long target;
module_param(target, ulong, 0444);
MODULE_PARM_DESC(target, "address of the variable, of four bytes");

static u32 saved;

static int switch_on(void)
{
	u32 zero = 0;

	if (!target)
		return -EINVAL;
	saved = *(u32 *)target;
	return write_through_alias(target, &zero, sizeof(zero));
}

static void switch_off(void)
{
	write_through_alias(target, &saved, sizeof(saved));
}

ADVERSARY("a defence is switched off");

// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: leads a static call of the kernel to a function of its own.
 * For throw-away guests only; see README.md.
 *
 * Technique: a static call is a function pointer that is compiled into its callers.  The kernel
 * rewrites them all when it is told to, so that text and pointer agree; with a tracepoint's
 * static call nothing stands in the tracepoint's own list.  Choose one that never happens.
 */
#include <linux/errno.h>
#include <linux/static_call.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static unsigned long key;
module_param(key, ulong, 0444);
MODULE_PARM_DESC(key, "address of __SCK__name");

static unsigned long trampoline;
module_param(trampoline, ulong, 0444);
MODULE_PARM_DESC(trampoline, "address of __SCT__name");

static void *saved;

static int replacement(void *data)
{
	return 0;
}

static int switch_on(void)
{
	if (!key || !trampoline)
		return -EINVAL;
	saved = ((struct static_call_key *)key)->func;
	__static_call_update((struct static_call_key *)key, (void *)trampoline, replacement);
	return 0;
}

static void switch_off(void)
{
	__static_call_update((struct static_call_key *)key, (void *)trampoline, saved);
}

ADVERSARY("a static call leads elsewhere");

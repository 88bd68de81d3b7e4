// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: holds a writable second mapping of a page of kernel text, and waits.
 * For throw-away guests only; see README.md.
 *
 * Technique: the preparation of an inline hook.  Nothing has changed yet; a write through this
 * mapping would change the kernel at once, without touching the text's own page tables.
 */
#include <linux/errno.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static unsigned long target;
module_param(target, ulong, 0444);
MODULE_PARM_DESC(target, "address in the page");

static void *alias;

static int switch_on(void)
{
	struct page *page;

	if (!target)
		return -EINVAL;
	page = virt_to_page((void *)target);
	alias = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
	if (!alias)
		return -ENOMEM;
	*(volatile u8 *)alias; /* have it in the page tables of whoever asks */
	return 0;
}

static void switch_off(void)
{
	vunmap(alias);
}

ADVERSARY("a writable mapping of kernel text");

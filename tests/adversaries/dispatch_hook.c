// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: leads one system call's branch of x64_sys_call() to a function of its own.
 * For throw-away guests only; see README.md.
 *
 * Technique: where kernels no longer dispatch through sys_call_table, rootkits patch the switch
 * that took its place: here the jump to one function, of which only the distance changes.
 */
#include <linux/errno.h>
#include <linux/stop_machine.h>
#include <linux/types.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static unsigned long target;
module_param(target, ulong, 0444);
MODULE_PARM_DESC(target, "address of the jump (e9, and four bytes of distance)");

static s32 saved;
static s32 *alias;

static long replacement(const struct pt_regs *regs)
{
	return -ENOSYS;
}

/* Runs while every other CPU waits, so that none executes the bytes while they change. */
static int change(void *distance)
{
	memcpy(alias, distance, sizeof(saved));
	return 0;
}

static int write_distance(s32 distance)
{
	struct page *pages[2] = {
		virt_to_page((void *)target), virt_to_page((void *)(target + PAGE_SIZE)),
	};
	void *base = vmap(pages, 2, VM_MAP, PAGE_KERNEL);

	if (!base)
		return -ENOMEM;
	alias = base + offset_in_page(target) + 1;
	stop_machine(change, &distance, NULL);
	vunmap(base);
	return 0;
}

static int switch_on(void)
{
	if (!target || *(u8 *)target != 0xe9)
		return -EINVAL;
	memcpy(&saved, (void *)target + 1, sizeof(saved));
	return write_distance((unsigned long)replacement - (target + 5));
}

static void switch_off(void)
{
	write_distance(saved);
}

ADVERSARY("a system call is dispatched elsewhere");

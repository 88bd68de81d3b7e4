// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: makes a page of kernel data executable.
 * For throw-away guests only; see README.md.
 *
 * Technique: with one write to a page table an exploit can run what it could only write before.
 * The page stays writable; it holds a return instruction.
 */
#include <linux/errno.h>
#include <asm/pgtable.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static u8 *data;

static void set_no_execute(bool wanted)
{
	unsigned int level;
	pte_t *entry = lookup_address((unsigned long)data, &level);

	set_pte(entry, wanted ? pte_set_flags(*entry, _PAGE_NX) : pte_mkexec(*entry));
	on_each_cpu(forget_page, data, 1);
}

static int switch_on(void)
{
	data = vmalloc(PAGE_SIZE);
	if (!data)
		return -ENOMEM;
	memset(data, 0xc3, PAGE_SIZE);
	set_no_execute(false);
	return 0;
}

static void switch_off(void)
{
	set_no_execute(true);
	vfree(data);
}

ADVERSARY("a page of data becomes executable");

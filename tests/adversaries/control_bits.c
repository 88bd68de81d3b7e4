// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: switches SMEP off, which keeps the kernel from running user pages.
 * For throw-away guests only; see README.md.
 *
 * Technique: the middle step of many exploits ("native_write_cr4" chains, CVE-2017-7308 and
 * others), since pinned by the kernel in its own function, which this does not use.
 */
#include <linux/errno.h>
#include <asm/processor-flags.h>
#include <asm/special_insns.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static void set_smep(void *wanted)
{
	unsigned long flags, cr4;

	local_irq_save(flags);
	cr4 = __read_cr4() & ~X86_CR4_SMEP;
	if (wanted)
		cr4 |= X86_CR4_SMEP;
	asm volatile("mov %0, %%cr4" : : "r"(cr4) : "memory");
	local_irq_restore(flags);
}

static int switch_on(void)
{
	if (!(__read_cr4() & X86_CR4_SMEP))
		return -EOPNOTSUPP;
	on_each_cpu(set_smep, NULL, 1);
	return 0;
}

static void switch_off(void)
{
	on_each_cpu(set_smep, (void *)1, 1);
}

ADVERSARY("a protection of the processor is off");

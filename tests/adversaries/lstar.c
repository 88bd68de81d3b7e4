// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: every system call enters the kernel through code of this module.
 * For throw-away guests only; see README.md.
 *
 * Technique: the MSR that tells the processor where SYSCALL leads (LSTAR) is written; all tables
 * stay as they are.  The code here jumps on to where it led before.  Under page-table isolation
 * the module is not mapped yet when SYSCALL arrives: then this is refused.
 */
#include <linux/errno.h>
#include <asm/cpufeature.h>
#include <asm/msr.h>
#include <asm/nospec-branch.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

unsigned long undercroft_entry; /* where LSTAR led */
void undercroft_detour(void);
asm(".pushsection .text\n"
    ".type undercroft_detour, @function\n"
    "undercroft_detour:\n" ANNOTATE_RETPOLINE_SAFE "jmp *undercroft_entry(%rip)\n"
    "int3\n"
    ".size undercroft_detour, . - undercroft_detour\n"
    ".popsection");

static void write_lstar(void *value)
{
	wrmsrl(MSR_LSTAR, (unsigned long)value);
}

static int switch_on(void)
{
	if (boot_cpu_has(X86_FEATURE_PTI))
		return -EOPNOTSUPP;
	rdmsrl(MSR_LSTAR, undercroft_entry);
	on_each_cpu(write_lstar, undercroft_detour, 1);
	return 0;
}

static void switch_off(void)
{
	on_each_cpu(write_lstar, (void *)undercroft_entry, 1);
}

ADVERSARY("system calls enter through a detour");

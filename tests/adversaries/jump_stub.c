// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: makes a kernel function jump to code on a page of its own.
 * For throw-away guests only; see README.md.
 *
 * Technique: inline hooking with a detour, as Suterusu ("mov $stub, %rax; jmp *%rax") and
 * Reptile's KHOOK do it.  The stub stands on a page that no module owns.  It is harmless: it
 * returns -ENOSYS at once.
 */
#include <linux/errno.h>
#include <linux/stop_machine.h>
#include <linux/types.h>
#include <asm/pgtable.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static unsigned long target;
module_param(target, ulong, 0444);
MODULE_PARM_DESC(target, "address of the function that is to jump");

/* endbr64; mov $-ENOSYS, %rax; ret; int3 */
static const u8 code[] = {
	0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0xc7, 0xc0, 0xda, 0xff, 0xff, 0xff, 0xc3, 0xcc,
};
static u8 jump[] = { 0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0 };
static u8 saved[sizeof(jump)];
static u8 *stub, *alias;

/* Executable and read-only: as a careful attacker would leave it. */
static int make_stub(void)
{
	unsigned int level;
	pte_t *entry;

	stub = vmalloc(PAGE_SIZE);
	if (!stub)
		return -ENOMEM;
	memcpy(stub, code, sizeof(code));
	entry = lookup_address((unsigned long)stub, &level);
	set_pte(entry, pte_wrprotect(pte_mkexec(*entry)));
	on_each_cpu(forget_page, stub, 1);
	return 0;
}

/* Runs while every other CPU waits, so that none executes the bytes while they change. */
static int change(void *bytes)
{
	memcpy(alias, bytes, sizeof(jump));
	return 0;
}

static int write_text(void *bytes)
{
	struct page *pages[2] = {
		virt_to_page((void *)target), virt_to_page((void *)(target + PAGE_SIZE)),
	};
	u8 *base = vmap(pages, 2, VM_MAP, PAGE_KERNEL);

	if (!base)
		return -ENOMEM;
	alias = base + offset_in_page(target);
	stop_machine(change, bytes, NULL);
	vunmap(base);
	return 0;
}

static int switch_on(void)
{
	int error = target ? make_stub() : -EINVAL;

	if (error)
		return error;
	memcpy(saved, (void *)target, sizeof(saved));
	memcpy(jump + 2, &stub, sizeof(stub));
	error = write_text(jump);
	if (error)
		vfree(stub);
	return error;
}

static void switch_off(void)
{
	write_text(saved);
	vfree(stub);
}

ADVERSARY("a kernel function jumps to a page that nobody owns");

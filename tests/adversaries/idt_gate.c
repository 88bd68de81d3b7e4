// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: leads one interrupt gate to a handler of its own.
 * For throw-away guests only; see README.md.
 *
 * Technique: hooking int 0x80, page faults or debug exceptions in the IDT (phrack 59-4, "Handling
 * the Interrupt Descriptor Table", and many since).  Choose a vector that never fires, as BOUND
 * (5), which 64-bit code cannot raise.
 */
#include <linux/errno.h>
#include <asm/desc_defs.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static unsigned long table;
module_param(table, ulong, 0444);
MODULE_PARM_DESC(table, "address of idt_table");

static unsigned int vector = 5;
module_param(vector, uint, 0444);
MODULE_PARM_DESC(vector, "which gate");

void undercroft_handler(void);
asm(".pushsection .text\n"
    ".type undercroft_handler, @function\n"
    "undercroft_handler:\n"
    "iretq\n"
    "int3\n"
    ".size undercroft_handler, . - undercroft_handler\n"
    ".popsection");

static gate_desc saved;

static int switch_on(void)
{
	unsigned long mine = (unsigned long)undercroft_handler;
	gate_desc gate;

	if (!table || vector > 255)
		return -EINVAL;
	gate = saved = ((gate_desc *)table)[vector];
	gate.offset_low = (u16)mine;
	gate.offset_middle = (u16)(mine >> 16);
	gate.offset_high = (u32)(mine >> 32);
	return write_through_alias(table + vector * sizeof(gate), &gate, sizeof(gate));
}

static void switch_off(void)
{
	write_through_alias(table + vector * sizeof(saved), &saved, sizeof(saved));
}

ADVERSARY("an interrupt gate leads elsewhere");

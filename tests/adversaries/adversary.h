/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the test adversaries share: the parameter `active`, and a write through a second mapping.
 * For throw-away guests only; see README.md.
 *
 * Include it last, after defining
 *     static int switch_on(void);    does it; an error leaves all as it was
 *     static void switch_off(void);  undoes it
 */
#ifndef UNDERCROFT_ADVERSARY_H
#define UNDERCROFT_ADVERSARY_H

#include <linux/mm.h>
#include <linux/module.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

static bool active;

static int __maybe_unused set_active(const char *value, const struct kernel_param *kp)
{
	bool wanted;
	int error = kstrtobool(value, &wanted);

	if (error || wanted == active)
		return error;
	if (THIS_MODULE->state != MODULE_STATE_LIVE) /* given on insmod's command line: too early */
		return -EAGAIN;
	if (wanted)
		error = switch_on();
	else
		switch_off();
	if (!error)
		active = wanted;
	return error;
}

#define ADVERSARY(description)                                                                     \
	static const struct kernel_param_ops active_ops = {                                        \
		.set = set_active, .get = param_get_bool                                           \
	};                                                                                         \
	module_param_cb(active, &active_ops, &active, 0644);                                       \
	MODULE_PARM_DESC(active, "1 does it, 0 undoes it");                                        \
	static int __init adversary_init(void)                                                     \
	{                                                                                          \
		return 0;                                                                          \
	}                                                                                          \
	static void __exit adversary_exit(void)                                                    \
	{                                                                                          \
		if (active)                                                                        \
			switch_off();                                                              \
	}                                                                                          \
	module_init(adversary_init);                                                               \
	module_exit(adversary_exit);                                                               \
	MODULE_LICENSE("GPL");                                                                     \
	MODULE_DESCRIPTION("test adversary: " description)

/*
 * Write to the kernel image, whatever its own mapping allows: through a writable mapping of the
 * same pages that is gone again when this returns.
 */
static int __maybe_unused write_through_alias(unsigned long target, const void *data, size_t size)
{
	struct page *pages[2] = {
		virt_to_page((void *)target), virt_to_page((void *)(target + size - 1)),
	};
	u8 *alias = vmap(pages, 2, VM_MAP, PAGE_KERNEL);

	if (!alias)
		return -ENOMEM;
	memcpy(alias + offset_in_page(target), data, size);
	vunmap(alias);
	return 0;
}

static void __maybe_unused forget_page(void *address)
{
	asm volatile("invlpg (%0)" : : "r"(address) : "memory");
}

#endif

// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: changes one byte of kernel memory for a moment and puts it back, many times.
 * For throw-away guests only; see README.md.
 *
 * Technique: the transient attack that polling cannot see (Vigilare, CCS 2012, measured how many
 * a periodic snapshot misses).  The byte is written through a second, writable mapping of its
 * page.  Choose a byte that nothing uses: the middle of an unused function, a reserved field.
 */
#include <linux/delay.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/vmalloc.h>

static unsigned long target;
module_param(target, ulong, 0444);
MODULE_PARM_DESC(target, "address of the byte, in the kernel image or the direct map");

static unsigned char mask = 1;
module_param(mask, byte, 0644);
MODULE_PARM_DESC(mask, "bits of the byte that are flipped");

static unsigned long dwell_ns = 1000;
module_param(dwell_ns, ulong, 0644);
MODULE_PARM_DESC(dwell_ns, "how long each change stays");

static unsigned int gap_us = 1000;
module_param(gap_us, uint, 0644);
MODULE_PARM_DESC(gap_us, "pause between two changes");

static unsigned int done;
module_param(done, uint, 0444);
MODULE_PARM_DESC(done, "changes made so far");

static u8 *alias; /* the byte, through the writable mapping */

static void flip(void)
{
	WRITE_ONCE(*alias, READ_ONCE(*alias) ^ mask);
}

static int set_run(const char *value, const struct kernel_param *kp)
{
	unsigned int count;
	u64 until;
	int error = kstrtouint(value, 0, &count);

	if (error)
		return error;
	if (!alias) /* given on insmod's command line: too early */
		return -EAGAIN;
	while (count--) {
		flip();
		until = ktime_get_ns() + dwell_ns;
		while (ktime_get_ns() < until)
			cpu_relax();
		flip();
		done++;
		usleep_range(gap_us, gap_us + gap_us / 4 + 1);
	}
	return 0;
}

static const struct kernel_param_ops run_ops = { .set = set_run };
module_param_cb(run, &run_ops, NULL, 0200);
MODULE_PARM_DESC(run, "how many changes to make, now");

static int __init transient_init(void)
{
	struct page *page;
	u8 *base;

	if (!target)
		return -EINVAL;
	page = virt_to_page((void *)target);
	base = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
	if (!base)
		return -ENOMEM;
	alias = base + offset_in_page(target);
	return 0;
}

static void __exit transient_exit(void)
{
	vunmap((void *)((unsigned long)alias & PAGE_MASK));
}

module_init(transient_init);
module_exit(transient_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("test adversary: changes one byte for a moment");

// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: hooks nothing, and wakes up by itself now and then.
 * For throw-away guests only; see README.md.
 *
 * Technique: rootkits that wait (Diamorphine's kin that hide again what was found, miners that look
 * for rivals) hang in a timer or in delayed work and nowhere else.  These do nothing when they run.
 */
#include <linux/jiffies.h>
#include <linux/timer.h>
#include <linux/workqueue.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

#define LATER (jiffies + 100 * HZ)

static void wake(struct timer_list *timer)
{
}

static void work(struct work_struct *item)
{
}

static DEFINE_TIMER(timer, wake);
static DECLARE_DELAYED_WORK(delayed, work);

static int switch_on(void)
{
	mod_timer(&timer, LATER);
	schedule_delayed_work(&delayed, 100 * HZ);
	return 0;
}

static void switch_off(void)
{
	del_timer_sync(&timer);
	cancel_delayed_work_sync(&delayed);
}

ADVERSARY("a timer and delayed work");

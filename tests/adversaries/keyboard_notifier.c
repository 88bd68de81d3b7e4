// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: is told of every key that is pressed.
 * For throw-away guests only; see README.md.
 *
 * Technique: the keylogger of many rootkits is a keyboard notifier.  This one does not look.
 */
#include <linux/errno.h>
#include <linux/keyboard.h>
#include <linux/notifier.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static int listener(struct notifier_block *block, unsigned long event, void *parameters)
{
	return NOTIFY_OK;
}

static struct notifier_block block = { .notifier_call = listener };

static int switch_on(void)
{
	return register_keyboard_notifier(&block);
}

static void switch_off(void)
{
	unregister_keyboard_notifier(&block);
}

ADVERSARY("a keyboard notifier");

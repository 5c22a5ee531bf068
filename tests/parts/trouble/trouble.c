// SPDX-License-Identifier: GPL-2.0
/* A kernel module that makes its kernel panic in the way that its parameter says. */
#include <linux/completion.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/sched.h>

static char *kind = "";
module_param(kind, charp, 0);

static noinline void write_to_nowhere(void)
{
	*(volatile int *)8 = 1;
}

static noinline void meet_a_bug(void)
{
	BUG_ON(kind[0] == 'b');
}

static noinline void warn_of_something(void)
{
	WARN(1, "trouble ahead\n");
}

static noinline int never_give_way(void *unused)
{
	preempt_disable();
	for (;;)
		cpu_relax();
	return 0;
}

static noinline int wait_for_ever(void *unused)
{
	static DECLARE_COMPLETION(never);

	wait_for_completion(&never);
	return 0;
}

static int __init begin_trouble(void)
{
	if (!strcmp(kind, "null"))
		write_to_nowhere();
	else if (!strcmp(kind, "bug"))
		meet_a_bug();
	else if (!strcmp(kind, "warn"))
		warn_of_something();
	else if (!strcmp(kind, "stuck"))
		kthread_run(never_give_way, NULL, "busy");
	else if (!strcmp(kind, "hung"))
		kthread_run(wait_for_ever, NULL, "waiter");
	return 0;
}

module_init(begin_trouble);
MODULE_LICENSE("GPL");

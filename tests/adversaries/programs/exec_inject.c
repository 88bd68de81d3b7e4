// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: puts code of its own into another process, and leaves.
 * For throw-away guests only; see README.md.
 *
 * Technique: injection by ptrace, as linux-inject and TripleCross do it.  The process is made to call mmap() for anonymous memory that may be executed; the code is
 * written there.  Here it is a return instruction, and nothing ever runs it.
 *
 *     exec_inject PID
 */
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include "raw.h"

static struct user_regs_struct saved, changed;

static long peek(long pid, long address)
{
	long word = 0;

	CALL(ptrace, PTRACE_PEEKTEXT, pid, address, &word);
	return word;
}

static void wait_for(long pid)
{
	CALL(wait4, pid, 0, 0x40000000 /* __WALL */, 0);
}

static long inject(long pid)
{
	long word, where;

	if (CALL(ptrace, PTRACE_ATTACH, pid, 0, 0))
		return 1;
	wait_for(pid);
	CALL(ptrace, PTRACE_GETREGS, pid, 0, &saved);
	word = peek(pid, saved.rip);
	changed = saved;
	changed.orig_rax = -1; /* no restart of the call that it sleeps in */
	changed.rax = SYS_mmap;
	changed.rdi = 0;
	changed.rsi = 4096;
	changed.rdx = PROT_READ | PROT_WRITE | PROT_EXEC;
	changed.r10 = MAP_PRIVATE | MAP_ANONYMOUS;
	changed.r8 = -1;
	changed.r9 = 0;
	CALL(ptrace, PTRACE_POKETEXT, pid, saved.rip, (word & ~0xffffL) | 0x050f); /* syscall */
	CALL(ptrace, PTRACE_SETREGS, pid, 0, &changed);
	CALL(ptrace, PTRACE_SINGLESTEP, pid, 0, 0);
	wait_for(pid);
	CALL(ptrace, PTRACE_GETREGS, pid, 0, &changed);
	where = changed.rax;
	CALL(ptrace, PTRACE_POKETEXT, pid, saved.rip, word);
	if ((unsigned long)where < -4095UL)
		CALL(ptrace, PTRACE_POKETEXT, pid, where, 0xccccccccccccccc3);
	CALL(ptrace, PTRACE_SETREGS, pid, 0, &saved);
	CALL(ptrace, PTRACE_DETACH, pid, 0, 0);
	return (unsigned long)where >= -4095UL;
}

__attribute__((used)) static void start(long *stack)
{
	long pid = 0;

	for (char *digit = (char *)stack[2]; stack[0] == 2 && *digit; digit++)
		pid = 10 * pid + (*digit - '0');
	CALL(exit, pid ? inject(pid) : 2);
}

PROGRAM(start);

/* SPDX-License-Identifier: GPL-2.0 */
/* System calls without a C library: a small program that is the same wherever it is compiled. */
#ifndef UNDERCROFT_RAW_H
#define UNDERCROFT_RAW_H

#include <sys/syscall.h>

static long raw(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 asm("r10") = d, r8 asm("r8") = e, r9 asm("r9") = f;
	long result;

	asm volatile("syscall"
		     : "=a"(result)
		     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return result;
}

#define CALL(name, ...) CALL_(SYS_##name, __VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define CALL_(number, a, b, c, d, e, f, ...)                                                       \
	raw(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

/* The kernel leaves argc at the stack pointer and argv above it. */
#define PROGRAM(start)                                                                             \
	asm(".globl _start; _start: mov %rsp, %rdi; and $-16, %rsp; call " #start "; ud2")

#endif

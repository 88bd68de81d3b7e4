// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: listens for a "magic" packet below every firewall rule.
 * For throw-away guests only; see README.md.
 *
 * Technique: BPFDoor.  A packet socket with a classic BPF filter sees what arrives before
 * netfilter does, and the filter wakes the program for the one packet that carries the magic
 * number.  This one never reads: it sleeps until it is killed.
 */
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <sys/socket.h>
#include "raw.h"

static struct sock_filter magic[] = {
	BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 12),             /* the EtherType */
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x5293, 0, 1),
	BPF_STMT(BPF_RET | BPF_K, 0xffff),
	BPF_STMT(BPF_RET | BPF_K, 0),
};
static struct sock_fprog program = { sizeof(magic) / sizeof(*magic), magic };

__attribute__((used)) static void start(void)
{
	long all = (ETH_P_ALL & 0xff) << 8 | ETH_P_ALL >> 8;
	long fd = CALL(socket, AF_PACKET, SOCK_RAW, all);

	if (fd < 0 ||
	    CALL(setsockopt, fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)))
		CALL(exit, 1);
	for (;;)
		CALL(pause, 0);
}

PROGRAM(start);

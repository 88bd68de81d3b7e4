// SPDX-License-Identifier: GPL-2.0
/*
 * A test adversary: sees every packet that arrives, first.
 * For throw-away guests only; see README.md.
 *
 * Technique: a netfilter hook with the highest priority: the "magic packet" door of KoviD,
 * Drovorub and Syslogk.  This one lets every packet go on.
 */
#include <linux/errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter_ipv4.h>
#include <net/net_namespace.h>

static int switch_on(void);
static void switch_off(void);

#include "adversary.h"

static unsigned int hook(void *private, struct sk_buff *packet, const struct nf_hook_state *state)
{
	return NF_ACCEPT;
}

static const struct nf_hook_ops ops = {
	.hook = hook,
	.pf = NFPROTO_IPV4,
	.hooknum = NF_INET_PRE_ROUTING,
	.priority = NF_IP_PRI_FIRST,
};

static int switch_on(void)
{
	return nf_register_net_hook(&init_net, &ops);
}

static void switch_off(void)
{
	nf_unregister_net_hook(&init_net, &ops);
}

ADVERSARY("a netfilter hook");

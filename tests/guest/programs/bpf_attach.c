/* Loads two trivial BPF programs and attaches them: one to a raw tracepoint, one to the entry of
 * a kernel function (through a BPF trampoline).  Then says so and stays.
 */
#include <fcntl.h>
#include <linux/bpf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

struct header { uint16_t magic; uint8_t version, flags; uint32_t len, type_off, type_len, str_off, str_len; };
struct type { uint32_t name, info, size; };

/* Bytes behind a type of each BTF_KIND: fixed, and for each of its vlen elements. */
static const uint8_t extra[20][2] = {
	{0, 0}, {4, 0}, {0, 0}, {12, 0}, {0, 12}, {0, 12}, {0, 8}, {0, 0}, {0, 0}, {0, 0},
	{0, 0}, {0, 0}, {0, 0}, {0, 8}, {4, 0}, {0, 12}, {0, 0}, {4, 0}, {0, 0}, {0, 12},
};

static uint32_t function_id(const char *wanted)
{
	int fd = open("/sys/kernel/btf/vmlinux", O_RDONLY);
	struct stat st;
	char *data;
	if (fd < 0 || fstat(fd, &st) || !(data = malloc(st.st_size)))
		return 0;
	for (ssize_t at = 0, got; at < st.st_size; at += got)
		if ((got = read(fd, data + at, st.st_size - at)) <= 0)
			return 0;
	struct header *h = (void *)data;
	char *at = data + h->len + h->type_off, *end = at + h->type_len;
	const char *strings = data + h->len + h->str_off;
	for (uint32_t id = 1; at < end; id++) {
		struct type *t = (void *)at;
		unsigned kind = t->info >> 24 & 31;
		if (kind == 12 && !strcmp(strings + t->name, wanted))
			return id;
		at += sizeof(*t) + extra[kind][0] + extra[kind][1] * (t->info & 0xffff);
	}
	return 0;
}

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static int load(int type, int attach_type, uint32_t btf_id)
{
	struct bpf_insn code[] = {
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 0},
		{.code = BPF_JMP | BPF_EXIT},
	};
	union bpf_attr attr = {0};
	attr.prog_type = type;
	attr.expected_attach_type = attach_type;
	attr.attach_btf_id = btf_id;
	attr.insns = (uintptr_t)code;
	attr.insn_cnt = 2;
	attr.license = (uintptr_t)"GPL";
	return bpf(BPF_PROG_LOAD, &attr);
}

static int attach(int program, const char *name)
{
	union bpf_attr attr = {0};
	attr.raw_tracepoint.name = (uintptr_t)name;
	attr.raw_tracepoint.prog_fd = program;
	return bpf(BPF_RAW_TRACEPOINT_OPEN, &attr);
}

int main(int argc, char **argv)
{
	const char *function = argc > 1 ? argv[1] : "vfs_statx";
	int tracepoint = load(BPF_PROG_TYPE_RAW_TRACEPOINT, 0, 0);
	if (tracepoint < 0 || attach(tracepoint, "sys_enter") < 0) {
		perror("raw tracepoint");
		return 1;
	}
	uint32_t id = function_id(function);
	int entry = load(BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY, id);
	if (!id || entry < 0 || attach(entry, NULL) < 0) {
		perror("fentry");
		return 1;
	}
	puts("attached");
	fflush(stdout);
	if (fork())
		return 0;
	setsid();
	for (;;)
		pause();
}

"""The micro guest: what stands in its initramfs beside packaged files."""

from __future__ import annotations

from undercroft.guests.cpio import CpioEntry, character_device, directory, file, symlink

READY_MARKER = "UNDERCROFT-GUEST-READY"
COMMAND_LINE = "console=ttyS0 quiet ima_policy=tcb rootfstype=ramfs no_timer_check panic=-1"
"""Measure what runs (IMA's built-in policy), and end QEMU if the kernel panics.

``rootfstype=ramfs``: the root would be a tmpfs otherwise, which that policy leaves out (kernel
security/integrity/ima/ima_policy.c, dont_measure_rules; init/do_mounts.c, init_rootfs).
``no_timer_check``: on a busy host an emulated timer may miss the ticks that the kernel counts to
see whether it works, and the kernel panics (arch/x86/kernel/apic/io_apic.c, timer_irq_works).
"""

INIT = f"""\
#!/bin/sh
# Init of the micro guest: mounts, some ordinary processes, a shell on the serial line.
export PATH=/bin HOME=/ PS1= TERM=dumb
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t securityfs securityfs /sys/kernel/security
mount -t debugfs debugfs /sys/kernel/debug
mount -t tmpfs tmp /tmp
hostname micro
ip link set lo up
syslogd -O /tmp/messages
klogd -c 1  # the serial line is for the shell; the kernel log is in /tmp/messages
crond -c /etc/crontabs
httpd -p 127.0.0.1:80 -h /srv
worker --patience 100000 &
stty -F /dev/ttyS0 -echo -onlcr
while :; do
  echo "{READY_MARKER} $(cut -d' ' -f1 /proc/uptime)"
  setsid cttyhack sh
done
"""

WORKER = """\
#!/bin/sh
# An ordinary program that runs for a long time; the one that an adversary hides.
while :; do sleep 3600; done
"""

# The applets that init, the shell and the tests use.  A link each, so that what can be run is
# known from the archive and not decided by a run of `busybox --install`.
APPLETS = (
    "awk", "base64", "basename", "cat", "chmod", "cp", "crond", "cttyhack", "cut", "date", "dd",
    "dmesg", "echo", "env", "expr", "false", "find", "free", "grep", "head", "hexdump",
    "hostname", "httpd", "id", "insmod", "ip", "kill", "klogd", "ln", "ls", "lsmod", "md5sum",
    "mkdir", "mknod", "mount", "mv", "od", "pidof", "poweroff", "printf", "ps", "reboot", "rm",
    "rmmod", "sed", "setsid", "sh", "sha256sum", "sleep", "sort", "stat", "stty", "sync",
    "syslogd", "tail", "tee", "test", "touch", "tr", "true", "umount", "uname", "uptime", "usleep",
    "vi", "wc", "wget", "which", "xxd",
)  # fmt: skip

_MOUNT_POINTS = ("/dev", "/proc", "/sys", "/tmp", "/etc/crontabs", "/srv", "/root", "/mnt")


def initramfs_entries() -> list[CpioEntry]:
    """Return everything but the files from packages and the adversaries."""
    return [
        *(directory(path) for path in _MOUNT_POINTS),
        # The kernel opens it as init's standard streams before anything is mounted.
        character_device("/dev/console", 5, 1),
        *(symlink(f"/bin/{applet}", "busybox") for applet in APPLETS),
        file("/init", INIT.encode(), mode=0o755),
        file("/bin/worker", WORKER.encode(), mode=0o755),
        file("/srv/index.html", b"<p>An ordinary guest.</p>\n"),
        file("/etc/crontabs/root", b"0 0 1 1 * true\n"),
        file("/etc/hostname", b"micro\n"),
        file("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
        file("/etc/group", b"root:x:0:\n"),
    ]

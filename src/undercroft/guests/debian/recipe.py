"""What goes into a Debian guest: packages, the few files of our own, and fixed names of things."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from undercroft.guests.micro import READY_MARKER

VERSION = "2"
"""Raise when something else is built from the same inputs."""

KERNEL_META_PACKAGE = "linux-image-cloud-amd64"

PACKAGES = (
    "?essential", "apt", "ca-certificates", "dbus", "efibootmgr", "grub-efi-amd64-bin",
    "grub-efi-amd64-signed", "grub-pc-bin", "grub2-common", "initramfs-tools", "iproute2", "kmod",
    "openssh-server", "shim-signed", "systemd-boot-efi", "systemd-sysv", "udev", "zstd",
    KERNEL_META_PACKAGE,
)  # fmt: skip
"""Everything but what these depend on.  Recommendations are left out."""

FIRMWARE_PACKAGES = ("ovmf", "seabios")

DISK_GUID = UUID("0d15c000-5ec0-4e2e-9d6b-756e64657263")
ESP_GUID = UUID("0d15c001-5ec0-4e2e-9d6b-756e64657263")
ROOT_GUID = UUID("0d15c002-5ec0-4e2e-9d6b-756e64657263")
BIOS_BOOT_GUID = UUID("0d15c003-5ec0-4e2e-9d6b-756e64657263")
ROOT_UUID = UUID("0d15c004-5ec0-4e2e-9d6b-756e64657263")
ESP_VOLUME_ID = "0D15C005"
"""Fixed, so that equal packages give equal disks; the firmware measures the GUIDs (PCR 5)."""


COMMAND_LINE = (
    f"root=UUID={ROOT_UUID} ro console=ttyS0 quiet ima_policy=tcb no_timer_check panic=-1"
)
"""IMA measures what runs and what root reads; see ``micro.COMMAND_LINE`` for the last two."""


@dataclass(frozen=True, slots=True)
class OwnFile:
    """A file that no package has.  ``target`` makes it a symbolic link."""

    text: str = ""
    mode: int = 0o644
    target: str = ""


_CONSOLE = f"""\
#!/bin/sh
# A root shell on the serial line: whoever holds that socket holds the machine's memory anyway.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PS1= TERM=dumb
stty -echo -onlcr
echo "{READY_MARKER} $(cut -d' ' -f1 /proc/uptime)"
exec sh
"""

_CONSOLE_UNIT = """\
[Unit]
Description=Shell on the serial line
After=basic.target ssh.service systemd-user-sessions.service
Conflicts=serial-getty@ttyS0.service

[Service]
ExecStart=/usr/local/sbin/undercroft-console
StandardInput=tty-force
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
Restart=always
RestartSec=0
KillMode=process

[Install]
WantedBy=multi-user.target
"""

_HOST_KEY_UNIT = """\
[Unit]
Description=Make this machine's own SSH key
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
Before=ssh.service

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key

[Install]
WantedBy=multi-user.target
"""

_WANTS = "/etc/systemd/system/multi-user.target.wants"
_UNITS = "/etc/systemd/system"

EARLY_FILES: Mapping[str, OwnFile] = {
    "/etc/initramfs-tools/conf.d/undercroft": OwnFile(
        "# Only what this machine's root needs: small, and the same bytes wherever it is made.\n"
        "MODULES=list\nCOMPRESS=gzip\nRESUME=none\n"
    ),
    "/usr/share/initramfs-tools/modules.d/undercroft": OwnFile(
        "virtio_pci\nvirtio_blk\next4\ncrc32c_generic\n"
    ),
    "/etc/dpkg/dpkg.cfg.d/undercroft": OwnFile(
        "path-exclude=/usr/share/man/*\npath-exclude=/usr/share/info/*\n"
        "path-exclude=/usr/share/locale/*\npath-exclude=/usr/share/doc/*\n"
        "path-include=/usr/share/doc/*/copyright\n"
    ),
}
"""Files that have to be there while packages are installed."""


def late_files(sources: str) -> Mapping[str, OwnFile]:
    """Return the files that are put in place at the end; ``sources`` is for apt in the guest."""
    return {
        "/etc/hostname": OwnFile("debian\n"),
        "/etc/hosts": OwnFile("127.0.0.1 localhost debian\n::1 localhost\n"),
        "/etc/resolv.conf": OwnFile("# QEMU's user network answers here.\nnameserver 10.0.2.3\n"),
        "/etc/fstab": OwnFile(
            f"UUID={ROOT_UUID} / ext4 defaults 0 1\n"
            f"PARTUUID={ESP_GUID} /boot/efi vfat noauto,umask=0077 0 0\n"
        ),
        "/etc/apt/sources.list.d/debian.sources": OwnFile(sources),
        "/etc/apt/sources.list": OwnFile("# See sources.list.d.\n"),
        "/etc/systemd/network/80-virtual.network": OwnFile(
            "[Match]\nType=ether\n\n[Network]\nDHCP=yes\n"
        ),
        "/usr/local/sbin/undercroft-console": OwnFile(_CONSOLE, 0o755),
        f"{_UNITS}/undercroft-console.service": OwnFile(_CONSOLE_UNIT),
        f"{_UNITS}/undercroft-host-key.service": OwnFile(_HOST_KEY_UNIT),
        f"{_UNITS}/serial-getty@ttyS0.service": OwnFile(target="/dev/null"),
        f"{_WANTS}/undercroft-console.service": OwnFile(
            target=f"{_UNITS}/undercroft-console.service"
        ),
        f"{_WANTS}/undercroft-host-key.service": OwnFile(
            target=f"{_UNITS}/undercroft-host-key.service"
        ),
        f"{_WANTS}/systemd-networkd.service": OwnFile(
            target="/lib/systemd/system/systemd-networkd.service"
        ),
    }


LOADER_CONFIG = "timeout 0\n"
"""systemd-boot: start the one image that is there."""


def grub_redirect() -> str:
    """Return the ``grub.cfg`` beside (or, for a BIOS, inside) GRUB: where the real one is."""
    return (
        f"search.fs_uuid {ROOT_UUID} root\n"
        "set prefix=($root)'/boot/grub'\n"
        "configfile $prefix/grub.cfg\n"
    )


def grub_config(release: str) -> str:
    """Return ``/boot/grub/grub.cfg``: one entry, at once; ``update-grub`` replaces it."""
    return (
        "set default=0\n"
        "set timeout=0\n"
        f"menuentry 'Debian GNU/Linux, {release}' --id debian {{\n"
        f"\tsearch --no-floppy --fs-uuid --set=root {ROOT_UUID}\n"
        f"\tlinux /boot/vmlinuz-{release} {COMMAND_LINE}\n"
        f"\tinitrd /boot/initrd.img-{release}\n"
        "}\n"
    )


REMOVED = (
    "/etc/ssh/ssh_host_*", "/etc/apt/sources.list.d/0000*", "/boot/*.old", "/initrd.img.old",
    "/vmlinuz.old", "/var/lib/systemd/random-seed", "/var/log/*.log",
    "/var/log/apt/*", "/var/lib/dbus/machine-id",
)  # fmt: skip
"""What packages leave that is drawn by chance or tells of the building machine."""

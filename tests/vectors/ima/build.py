"""Builds the measurement lists of ``made`` and what is expected of them.

    python3 tests/vectors/ima/build.py

``<name>.bin`` is a list; ``expected.json`` says of each the PCRs that are quoted, how many entries
they vouch for, and by which rule; or the check that refuses it; or, for what is no list at all,
the reason.  Names say what is special, or what is wrong.  A test builds them again and compares
every byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from undercroft.base import HashAlgorithm
from undercroft.testing.ima import SimulatedIma, boot_pcrs

HERE = Path(__file__).with_name("made")
SHA1, SHA256, SHA384 = HashAlgorithm.SHA1, HashAlgorithm.SHA256, HashAlgorithm.SHA384
BANKS = (SHA1, SHA256, SHA384)
DM_TABLE = (
    b"dm_version=4.48.0;name=root,uuid=CRYPT-VERITY-1,major=253,minor=0,minor_count=1,"
    b"num_targets=1;target_index=0,target_begin=0,target_len=8192,target_name=verity,"
    b"target_version=1.9.0,hash_failed=C,verity_version=1,data_device_name=8:1,"
    b"hash_device_name=8:2,verity_algorithm=sha256,root_digest=29cb87e60ce7b12b443ba6008266f3e4,"
    b"salt=8b3ac1c2,ignore_zero_blocks=n,check_at_most_once=n;"
)


def booted(
    *, template: str = "ima-ng", order: str = "little", padded: tuple[HashAlgorithm, ...] = ()
) -> SimulatedIma:
    """Return a kernel that has measured a few files."""
    kernel = SimulatedIma(boot_pcrs(*BANKS), template=template, order=order, padded=padded)  # type: ignore[arg-type]
    kernel.boot_aggregate()
    for path in ("/init", "/usr/bin/sh", "/usr/lib/libc.so.6"):
        kernel.measure(path, path.encode())
    kernel.violation("/var/log/wtmp")
    kernel.measure("/usr/bin/true", b"true")
    return kernel


def kexec() -> SimulatedIma:
    """Return a kernel that was started by another, whose list it carries on."""
    kernel = booted()
    kernel.buffer("kexec-cmdline", b"root=/dev/vda1 ro")
    kernel.boot_aggregate()
    kernel.measure("/init", b"/init")
    return kernel


def buffers() -> SimulatedIma:
    """Return a kernel that has measured buffers of several kinds."""
    kernel = booted()
    kernel.buffer("kernel_version", b"6.1.0-56-cloud-amd64")
    kernel.buffer("dm_table_load", DM_TABLE)
    kernel.buffer("selinux-policy-hash", bytes(range(32)))
    kernel.buffer(".ima", b"\x30\x03\x02\x01\x07")
    return kernel


def mixed() -> SimulatedIma:
    """Return a list of every template, as a kernel may carry it over kexecs."""
    kernel = booted()
    for template in ("ima", "ima-sig", "ima-ngv2", "ima-sigv2", "ima-modsig", "d-ng|n-ng|iuid"):
        kernel.template = template
        kernel.measure(f"/{template}", b"x", {"sig": b"", "iuid": bytes(4)})
    return kernel


def two_pcrs() -> SimulatedIma:
    """Return a kernel whose policy sends one file to another PCR."""
    kernel = booted()
    kernel.measure("/etc/secret", b"secret", pcr=11)
    kernel.measure("/etc/last", b"last")
    return kernel


GOOD: dict[str, Callable[[], SimulatedIma]] = {
    "big-endian": lambda: booted(order="big"),
    "buffers": buffers,
    "kexec": kexec,
    "mixed-templates": mixed,
    "original-template": lambda: booted(template="ima"),
    "padded-sha1": lambda: booted(padded=(SHA256, SHA384)),
    "two-pcrs": two_pcrs,
}


def defective() -> dict[str, tuple[bytes, str]]:
    """Return lists that do not lead to the PCRs of :func:`booted`, and the check that says so."""
    good = booted().binary
    first = len(_only_first())
    sh, evil = booted(), booted()
    evil.measure("/usr/bin/evil", b"evil")
    return {
        "empty": (b"", "ima.boot-aggregate-entry"),
        "starts-in-the-middle": (good[first:], "ima.boot-aggregate-entry"),
        "last-entry-removed": (good[: -len(_last())], "ima.pcr"),
        "path-changed": (sh.binary.replace(b"/usr/bin/sh", b"/usr/bin/su"), "ima.pcr"),
        "digest-changed": (_flipped(good, first + 60), "ima.pcr"),
        "entry-made-a-violation": (
            good[: first + 4] + bytes(20) + good[first + 24 :],
            "ima.pcr",
        ),
        "other-pcr": (good[:first] + b"\x0b" + good[first + 1 :], "ima.pcr-missing"),
    }


def _only_first() -> bytes:
    kernel = SimulatedIma(boot_pcrs(*BANKS))
    kernel.boot_aggregate()
    return kernel.binary


def _last() -> bytes:
    kernel = SimulatedIma(boot_pcrs(*BANKS))
    kernel.measure("/usr/bin/true", b"true")
    return kernel.binary


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def malformed() -> dict[str, tuple[bytes, str]]:
    """Return bytes that are no list, and what is said of them."""
    good = booted().binary
    return {
        "cut": (good[:-1], "the template data is longer than the input"),
        "pcr-of-2-to-32": (b"\xff" * 4 + good[4:], "no such PCR"),
        "template-name-of-2-to-32": (good[:24] + b"\xff" * 4 + good[28:], "is too large"),
        "template-data-of-2-to-32": (good[:34] + b"\xff" * 4 + good[38:], "longer than the input"),
        "field-of-2-to-32": (good[:38] + b"\xff" * 4 + good[42:], "a field is longer"),
        "digest-of-no-length": (
            good[:34] + b"\x08\0\0\0" + bytes(4) + b"\x00\0\0\0",
            "field d-ng: it is empty",
        ),
        "name-not-ended": (good[:-1] + b"x", "is not ended by a NUL"),
        "ascii": (booted().ascii, "no such PCR"),
    }


def _pcrs(kernel: SimulatedIma) -> dict[str, dict[str, str]]:
    return {
        algorithm.label: {str(i): v.hex() for i, v in kernel.bank(algorithm).values.items()}
        for algorithm in BANKS
    }


def build() -> dict[str, bytes]:
    """Return every file of ``made`` by name."""
    files: dict[str, bytes] = {}
    table: dict[str, object] = {}
    for name, make in GOOD.items():
        kernel = make()
        files[f"{name}.bin"] = kernel.binary
        table[name] = {"order": kernel.order, "entries": kernel.count, "pcrs": _pcrs(kernel)}
    for name, (data, check) in defective().items():
        files[f"defective-{name}.bin"] = data
        table[f"defective-{name}"] = {"check": check, "pcrs": _pcrs(booted())}
    for name, (data, error) in malformed().items():
        files[f"malformed-{name}.bin"] = data
        table[f"malformed-{name}"] = {"error": error}
    files["expected.json"] = (json.dumps(table, indent=1) + "\n").encode()
    return files


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for name, content in build().items():
        (HERE / name).write_bytes(content)

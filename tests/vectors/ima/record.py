"""Record measurement lists of a real kernel, with what the TPM's PCRs really held.

    python tests/vectors/ima/record.py VMLINUZ [DIRECTORY] [NAME...]

boots VMLINUZ under QEMU with a swtpm that has four PCR banks, once for each template, and writes
``NAME.binary``, ``NAME.ascii`` and ``NAME.json`` into DIRECTORY (``recorded`` beside this file
unless given).  Needs qemu-system-x86, swtpm, swtpm-tools and busybox-static.  The guest reads a
file that is open for writing and writes one that is open for reading: two violations.

The committed files are of linux-image-6.1.0-56-cloud-amd64 6.1.192-2 (Debian 12); that kernel
has SHA-384 and SHA-512 as modules, so IMA extends those banks with padded SHA-1.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from undercroft.guests.cpio import character_device, directory, file, write_cpio

BANKS = ("sha1", "sha256", "sha384", "sha512")
CASES = {
    "ima": "ima_template=ima ima_hash=sha1",
    "ima-ng": "ima_template=ima-ng",
    "ima-ng-sha1": "ima_template=ima-ng ima_hash=sha1",
    "ima-sig": "ima_template=ima-sig",
    "ima-ngv2": "ima_template=ima-ngv2",
    "ima-sigv2": "ima_template=ima-sigv2",
    "ima-modsig": "ima_template=ima-modsig",
    "evm-sig": "ima_template=evm-sig",
    "critical-data": "ima_policy=critical_data",
    "fmt-ids": "ima_template_fmt=d-ng|n-ng|iuid|igid|imode",
    "fmt-d-n": "ima_template_fmt=d|n ima_hash=sha1",
}
COMMAND_LINE = "console=ttyS0 quiet panic=-1 rootfstype=ramfs ima_policy=tcb"
TIMEOUT_S = 300

INIT = """\
#!/busybox sh
B=/busybox
$B mount -t devtmpfs dev /dev
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t securityfs securityfs /sys/kernel/security
$B cat /etc/plain "/etc/with space" > /dev/null
exec 3>>/etc/open-for-writing
$B cat /etc/open-for-writing > /dev/null
exec 3>&-
exec 4</etc/open-for-reading
$B cat /etc/open-for-reading > /dev/null
echo more >> /etc/open-for-reading
exec 4<&-
$B cat /etc/last > /dev/null
S=/sys/kernel/security/ima
echo "=BINARY"
$B base64 $S/binary_runtime_measurements
echo "=ASCII"
$B base64 $S/ascii_runtime_measurements
echo "=PCRS"
for b in sha1 sha256 sha384 sha512; do
  for i in 0 1 2 3 4 5 6 7 8 9 10; do
    echo "=PCR $b $i $($B cat /sys/class/tpm/tpm0/pcr-$b/$i)"
  done
done
echo "=VIOLATIONS $($B cat $S/violations)"
echo "=KERNEL $($B uname -r)"
echo "=END"
$B poweroff -f
"""


def initramfs() -> bytes:
    """Return the guest: busybox, an init, a few files."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise SystemExit("busybox is not installed: apt-get install busybox-static")
    names = ("plain", "with space", "open-for-writing", "open-for-reading", "last")
    entries = [file(f"/etc/{name}", name.encode() + b"\n") for name in names]
    entries += [directory(path) for path in ("/dev", "/proc", "/sys")]
    entries += [
        character_device("/dev/console", 5, 1),
        file("/busybox", Path(busybox).read_bytes(), mode=0o755),
        file("/init", INIT.encode(), mode=0o755),
    ]
    return gzip.compress(write_cpio(entries), compresslevel=1, mtime=0)


def boot(vmlinuz: Path, folder: Path, options: str) -> str:
    """Boot once; return what came over the serial line."""
    state, control, serial = folder / "tpm", folder / "ctrl", folder / "serial"
    state.mkdir()
    initrd = folder / "initrd"
    initrd.write_bytes(initramfs())
    setup = ["swtpm_setup", "--tpm2", "--tpmstate", str(state), "--createek"]
    subprocess.run([*setup, "--pcr-banks", ",".join(BANKS)], check=True, capture_output=True)
    tpm = f"--tpmstate dir={state} --ctrl type=unixio,path={control} --terminate"
    swtpm = subprocess.Popen(["swtpm", "socket", "--tpm2", *tpm.split()])
    machine = (
        f"-machine q35 -cpu max -m 512 -display none -no-reboot -nodefaults -serial file:{serial} "
        f"-kernel {vmlinuz} -initrd {initrd} -chardev socket,id=c,path={control} "
        "-tpmdev emulator,id=t,chardev=c -device tpm-tis,tpmdev=t"
    )
    command = ["qemu-system-x86_64", *machine.split(), "-append", f"{COMMAND_LINE} {options}"]
    try:
        while not control.exists():
            time.sleep(0.01)
        subprocess.run(command, check=True, timeout=TIMEOUT_S)
    finally:
        swtpm.terminate()
        swtpm.wait()
    return serial.read_bytes().decode("utf-8", "replace").replace("\r", "")


def _between(text: str, start: str, end: str) -> str:
    return text[text.index(start) + len(start) : text.index(end)]


def record(vmlinuz: Path, target: Path, name: str) -> None:
    """Boot with the template ``name`` and write its three files into ``target``."""
    with tempfile.TemporaryDirectory() as folder:
        text = boot(vmlinuz, Path(folder), CASES[name])
    binary = base64.b64decode(_between(text, "=BINARY\n", "=ASCII\n"))
    ascii_list = base64.b64decode(_between(text, "=ASCII\n", "=PCRS\n"))
    pcrs: dict[str, dict[str, str]] = {bank: {} for bank in BANKS}
    for bank, index, value in re.findall(r"^=PCR (\w+) (\d+) ([0-9A-F]+)$", text, re.M):
        pcrs[bank][index] = value.lower()
    about = {
        "kernel": _between(text, "=KERNEL ", "\n=END"),
        "options": CASES[name],
        "violations": int(_between(text, "=VIOLATIONS ", "\n=KERNEL")),
        "pcrs": pcrs,
    }
    target.mkdir(exist_ok=True)
    (target / f"{name}.binary").write_bytes(binary)
    (target / f"{name}.ascii").write_bytes(ascii_list)
    (target / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")


def main(arguments: list[str]) -> None:
    """Record the cases named, or all."""
    vmlinuz, *rest = map(Path, arguments)
    target = rest[0] if rest else Path(__file__).with_name("recorded")
    for name in arguments[2:] or CASES:
        record(vmlinuz, target, name)


if __name__ == "__main__":
    main(sys.argv[1:])

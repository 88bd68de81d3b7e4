#!/usr/bin/bash
# What ordinary software does with a TPM; each step prints "RESULT name status".
export PATH=/usr/bin:/usr/sbin:/lib/systemd:/bin HOME=/root TMPDIR=/tmp
export TPM2TOOLS_TCTI=device:/dev/tpmrm0
mkdir -p /run /run/systemd /tmp/w /root
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
cd /tmp/w || exit 1

step() {
  local name=$1 status
  shift
  "$@" >"$name.log" 2>&1 </dev/null
  status=$?
  echo "RESULT $name $status"
}
refuses() { ! "$@"; }

# --- our own quote and log, which the test has put here
if [ "$1" = ours ]; then
  step checkquote-of-ours tpm2_checkquote -u /tmp/ak -m /tmp/attest -s /tmp/sig -g sha256 -q "$2"
  of_ours() { tpm2_eventlog /tmp/log | grep -q "vm-descriptor\|EV_EVENT_TAG"; }
  step eventlog-of-ours of_ours
  exit 0
fi

for module in /modules/*.ko; do
  busybox insmod "$module" || echo "insmod $module failed"
done

# --- the boot log and the quote
pcrs_of_log() {
  tpm2_eventlog /sys/kernel/security/tpm0/binary_bios_measurements >log.yaml || return 1
  sed -n '/^pcrs:/,$p' log.yaml | sed -n '/^  sha256:/,$p' | grep -oiE '^ +[0-7] +: 0x[0-9a-f]+' |
    tr -d ' ' | tr A-F a-f >log.pcrs
  tpm2_pcrread sha256:0,1,2,3,4,5,6,7 | grep -oiE '^ +[0-7] +: 0x[0-9a-f]+' |
    tr -d ' ' | tr A-F a-f >tpm.pcrs
  [ "$(grep -c : tpm.pcrs)" = 8 ] && cmp log.pcrs tpm.pcrs
}
quote() {
  tpm2_createek -G rsa -c ek.ctx -u ek.pub &&
    tpm2_createak -C ek.ctx -c ak.ctx -G ecc -g sha256 -s ecdsa -u ak.pub -n ak.name &&
    tpm2_quote -c ak.ctx -l sha256:0,1,2,3,4,5,6,7,10 -q 00112233 -m q.msg -s q.sig -o q.pcrs
}
step eventlog pcrs_of_log
step quote quote
step checkquote tpm2_checkquote -u ak.pub -m q.msg -s q.sig -f q.pcrs -g sha256 -q 00112233
step checkquote-wrong-nonce refuses tpm2_checkquote -u ak.pub -m q.msg -s q.sig -f q.pcrs -q 99
step upper-pcr refuses tpm2_pcrextend 17:sha256=$(printf '%064d' 0)

# --- disks sealed to PCR 7
disk() {
  dd if=/dev/zero of="$1" bs=1M count=20 && printf pass >key &&
    cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 "$1" key
}
opened() {
  [ -b /dev/mapper/"$1" ] || return 1
  echo secret | dd of=/dev/mapper/"$1" conv=sync && head -c 6 /dev/mapper/"$1" | grep -q secret
}
enrol() { PASSWORD=pass systemd-cryptenroll --tpm2-device=auto --tpm2-pcrs=7 disk1; }
attach() { timeout 120 systemd-cryptsetup attach vol1 /tmp/w/disk1 - tpm2-device=auto,headless=true; }
bind() { clevis luks bind -f -k key -d disk2 tpm2 '{"pcr_bank":"sha256","pcr_ids":"7"}'; }
step luks-format-1 disk disk1
step luks-format-2 disk disk2
step cryptenroll enrol
step cryptenroll-attach attach
step cryptenroll-disk opened vol1
step cryptenroll-detach systemd-cryptsetup detach vol1
step clevis-bind bind
step clevis-unlock clevis luks unlock -d disk2 -n vol2
step clevis-disk opened vol2
step clevis-lock cryptsetup close vol2

# --- the kernel's own selftests
if [ -d /selftests ]; then
  cd /selftests || exit 1
  python3 -B - 2>/tmp/w/selftests.log <<'PYTHON'
import sys, unittest, tpm2_tests

def run(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            run(test)
            continue
        result = unittest.TestResult()
        test.run(result)
        for _, text in result.failures + result.errors:
            sys.stderr.write(text)
        name = type(test).__name__ + "." + test._testMethodName
        print(f"\nRESULT selftest-{name} {int(not result.wasSuccessful())}", flush=True)

run(unittest.defaultTestLoader.loadTestsFromModule(tpm2_tests))
PYTHON
  cd /tmp/w || exit 1
fi

# --- another state of PCR 7: nothing opens any more
step extend tpm2_pcrextend 7:sha256=$(printf '%064d' 1)
step cryptenroll-refused refuses attach
step clevis-refused refuses clevis luks unlock -d disk2 -n vol2
exit 0

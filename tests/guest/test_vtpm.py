"""The multiplexer in front of a real swtpm, with tpm2-tools as the guest's software."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from undercroft.base import HashAlgorithm
from undercroft.formats.tpm.public import EccPublic, RsaPublic, parse_public
from undercroft.securekernel.vtpm import (
    AK_POLICY,
    EkType,
    KeyType,
    LaunchConfig,
    TpmError,
    VtpmClient,
    VtpmUnavailable,
    commands,
)
from undercroft.securekernel.vtpm.control import Control
from undercroft.securekernel.vtpm.rc import rc_name
from undercroft.securekernel.vtpm.wire import Auth, Command, response_code
from undercroft.testing.vtpm import HypervisorSide, SwtpmProcess, ToolRelay, wait_for

pytestmark = pytest.mark.guest

SHA256 = HashAlgorithm.SHA256
NONCE = bytes(range(32))
MANIFEST, VM = b"what runs beside the guest\n", b"machine: q35\n"


class Machine:
    """A swtpm, the multiplexer as its own process, a hypervisor, tpm2-tools in the guest."""

    def __init__(self, folder: Path, like: SwtpmProcess, *options: str) -> None:
        self.folder = folder
        self.swtpm = SwtpmProcess(folder, like=like)
        self.listen, self.kernel = folder / "qemu.sock", folder / "kernel.sock"
        pid_file = folder / "mux.pid"
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "undercroft.securekernel.vtpm",
                "--upstream", str(self.swtpm.path), "--listen", str(self.listen),
                "--control", str(self.kernel), "--pidfile", str(pid_file), *options,
            ],
        )  # fmt: skip
        wait_for(pid_file)
        self.hypervisor = HypervisorSide(self.listen)
        self.relay = ToolRelay(self.hypervisor, folder / "relay")
        self._clients: list[VtpmClient] = []

    def power_on(self) -> None:
        self.hypervisor.power_on()

    def client(self) -> VtpmClient:
        self._clients.append(VtpmClient(self.kernel))
        return self._clients[-1]

    def tool(self, line: str, *, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run one of tpm2-tools in the guest, in its own folder."""
        return run_tool(line, self.folder, self.relay.tcti, stdin)

    def ok(self, line: str, *, stdin: bytes = b"") -> str:
        done = self.tool(line, stdin=stdin)
        assert done.returncode == 0, (line, done.stderr.decode())
        return done.stdout.decode()

    def guest(self, command: Command) -> bytes:
        return self.hypervisor.command(command.data)

    def guest_rc(self, command: Command) -> str:
        return rc_name(response_code(self.guest(command)))

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.relay.close()
        self.hypervisor.close()
        self._process.terminate()
        assert self._process.wait(10) == 0
        self.swtpm.stop()


def run_tool(
    line: str, folder: Path, tcti: str, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "TPM2TOOLS_TCTI": tcti}
    return subprocess.run(
        line.split(), cwd=folder, env=environment, input=stdin, capture_output=True, check=False,
        timeout=60,
    )  # fmt: skip


@pytest.fixture(scope="module")
def manufactured(tmp_path_factory: pytest.TempPathFactory) -> SwtpmProcess:
    swtpm = SwtpmProcess(tmp_path_factory.mktemp("manufactured"))
    swtpm.stop()
    return swtpm


NewMachine = Callable[..., Machine]


@pytest.fixture
def new_machine(tmp_path: Path, manufactured: SwtpmProcess) -> Iterator[NewMachine]:
    machines: list[Machine] = []

    def make(*options: str) -> Machine:
        folder = tmp_path / f"m{len(machines)}"
        folder.mkdir()
        machines.append(Machine(folder, manufactured, *options))
        return machines[-1]

    yield make
    for machine in machines:
        machine.close()


@pytest.fixture
def machine(new_machine: NewMachine) -> Machine:
    machine = new_machine()
    machine.power_on()
    return machine


@pytest.fixture
def launched(new_machine: NewMachine, tmp_path: Path) -> Machine:
    (tmp_path / "manifest").write_bytes(MANIFEST)
    (tmp_path / "vm").write_bytes(VM)
    machine = new_machine(
        "--manifest", f"{tmp_path}/manifest", "--identity", f"vm={tmp_path}/vm",
        "--keys", f"{tmp_path}/m0/keys",
    )  # fmt: skip
    machine.power_on()
    return machine


# --- quotes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("key_type", KeyType)
def test_tpm2_checkquote_accepts_our_quotes(machine: Machine, key_type: KeyType) -> None:
    machine.ok("tpm2_pcrextend 10:sha256=" + "ab" * 32)
    selection = {HashAlgorithm.SHA384: [3], SHA256: range(24)}
    quote = machine.client().quote(NONCE, selection, key_type=key_type)
    for name, data in (("attest", quote.attest), ("sig", quote.signature)):
        (machine.folder / name).write_bytes(data)
    public = len(quote.ak_public).to_bytes(2, "big") + quote.ak_public
    (machine.folder / "ak").write_bytes(public)
    check = "tpm2_checkquote -u ak -m attest -s sig -g sha256 -q "
    machine.ok(check + NONCE.hex())
    assert machine.tool(check + bytes(32).hex()).returncode != 0
    values = b"".join(value for bank in quote.pcrs for value in bank.values.values())
    assert quote.attest.endswith(hashlib.sha256(values).digest())
    assert [bank.algorithm for bank in quote.pcrs] == [HashAlgorithm.SHA384, SHA256]
    read = machine.ok("tpm2_pcrread sha256:10").split()[-1]
    assert quote.pcrs[1].values[10] == bytes.fromhex(read.removeprefix("0x"))


def test_quotes_before_power_on_are_a_clear_error(new_machine: NewMachine) -> None:
    client = new_machine().client()
    with pytest.raises(VtpmUnavailable, match="not running"):
        client.quote(NONCE, {SHA256: [0]})


def test_a_bank_that_is_not_allocated_is_named(machine: Machine) -> None:
    with pytest.raises(Exception, match="asked for"):
        machine.client().pcr_read({HashAlgorithm.SHA512: [0]})


def test_the_key_is_the_same_after_a_reset_and_in_every_connection(machine: Machine) -> None:
    client = machine.client()
    before = [client.create_ak(key_type) for key_type in KeyType]
    first = client.quote(NONCE, {SHA256: [0]})
    machine.power_on()
    second = client.quote(NONCE, {SHA256: [0]})  # its saved context is void by now
    assert first.ak_public == second.ak_public
    assert [machine.client().create_ak(key_type) for key_type in KeyType] == before
    assert {key.hierarchy for key in before} == {"platform"}
    public = parse_public(before[0].public)
    assert public.auth_policy == AK_POLICY
    assert "userWithAuth" not in str(public.attributes)


def test_a_guest_with_every_password_cannot_take_the_key_away(machine: Machine) -> None:
    client = machine.client()
    before = client.quote(NONCE, {SHA256: [0]}).ak_public
    machine.ok("tpm2_changeauth -c p firmware")  # as firmware does at the end of its boot
    machine.ok("tpm2_changeauth -c e mine")
    machine.ok("tpm2_changeauth -c o mine")
    assert client.quote(NONCE, {SHA256: [0]}).ak_public == before
    machine.ok("tpm2_clear -c l")
    machine.ok("tpm2_hierarchycontrol -C o shEnable clear")
    machine.ok("tpm2_hierarchycontrol -C e ehEnable clear")
    assert client.quote(NONCE, {SHA256: [0]}).ak_public == before
    assert machine.client().quote(NONCE, {SHA256: [0]}, key_type=KeyType.RSA).attest


def test_the_guest_cannot_use_the_key_even_if_its_context_leaks(machine: Machine) -> None:
    client = machine.client()
    client.create_ak()
    load = commands.context_load(client._contexts[KeyType.ECC])
    key = commands.parse_context_load(load, machine.guest(load))
    start = commands.start_policy_session()
    session = commands.parse_start_policy_session(start, machine.guest(start))
    assert machine.guest_rc(commands.policy_locality(session, 1 << 2)) == "TPM_RC_SUCCESS"
    selection = commands.encode_selection({SHA256: [0]})
    refused = commands.quote(key, Auth(session), NONCE, selection)
    assert machine.guest_rc(refused) == "TPM_RC_LOCALITY"
    without = commands.quote(key, Auth(), NONCE, selection)
    assert machine.guest_rc(without) == "TPM_RC_AUTH_UNAVAILABLE"


def test_a_stand_in_key_is_made_where_there_was_no_launch(machine: Machine) -> None:
    client = machine.client()
    key = client._create_stand_in(KeyType.ECC)
    assert key.hierarchy == "endorsement"
    assert client.quote(NONCE, {SHA256: [0]}).ak_public == key.public


# --- the endorsement key ------------------------------------------------------------------------


@pytest.mark.parametrize("ek_type", [EkType.RSA_2048, EkType.ECC_P384])
def test_the_certificate_is_of_the_key_that_we_make(machine: Machine, ek_type: EkType) -> None:
    client = machine.client()
    der = client.ek_certificate(ek_type)
    assert der is not None
    certified = x509.load_der_x509_certificate(der).public_key()
    raw = certified.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    area = parse_public(client.ek_public(ek_type)).key
    if isinstance(area, RsaPublic):
        assert area.modulus in raw
    else:
        assert isinstance(area, EccPublic)
        assert raw.endswith(area.x + area.y)


def test_a_certificate_that_is_not_there_is_none(machine: Machine) -> None:
    assert machine.client().ek_certificate(EkType.ECC_P256) is None


@pytest.mark.parametrize("ek_type", EkType)
@pytest.mark.parametrize("key_type", KeyType)
def test_credentials_are_activated(machine: Machine, key_type: KeyType, ek_type: EkType) -> None:
    client, folder = machine.client(), machine.folder
    public = client.ek_public(ek_type)
    (folder / "ek").write_bytes(len(public).to_bytes(2, "big") + public)
    (folder / "secret").write_bytes(b"the secret")
    name = client.create_ak(key_type).name.hex()
    machine.ok(f"tpm2_makecredential -T none -u ek -s secret -n {name} -o blob")
    blob = (folder / "blob").read_bytes()[8:]  # after tpm2-tools' own magic and version
    size = int.from_bytes(blob[:2], "big") + 2
    opened = client.activate_credential(
        blob[2:size], blob[size + 2 :], key_type=key_type, ek_type=ek_type
    )
    assert opened == b"the secret"
    with pytest.raises(TpmError):
        client.activate_credential(
            blob[2 : size - 1] + b"?", blob[size + 2 :], key_type=key_type, ek_type=ek_type
        )
    assert machine.ok("tpm2_getcap handles-transient") == ""


# --- localities ---------------------------------------------------------------------------------


def test_the_guest_can_write_none_of_the_upper_pcrs(launched: Machine) -> None:
    client = launched.client()
    upper = {SHA256: range(17, 23)}
    before = client.pcr_read(upper)
    for pcr in range(17, 23):
        assert launched.tool(f"tpm2_pcrextend {pcr}:sha256={'00' * 32}").returncode != 0
        assert launched.tool(f"tpm2_pcrreset {pcr}").returncode != 0
    for pcr in range(17, 23):
        extend = commands.pcr_extend(pcr, {SHA256: bytes(32)})
        prefix = bytes.fromhex("00000008") + b"\4" + len(extend.data).to_bytes(4, "big")
        assert response_code(launched.hypervisor.command(prefix + extend.data)) == 0x01E
        for locality in range(1, 5):
            launched.hypervisor.ask(Control.SET_LOCALITY, bytes([locality, 0, 0, 0]))
            assert launched.guest_rc(extend) == "TPM_RC_LOCALITY"
        launched.hypervisor.ask(Control.SET_LOCALITY, bytes(4))
        assert launched.guest_rc(extend) == "TPM_RC_LOCALITY"
    assert client.pcr_read(upper) == before
    assert client.status()["refused_localities"] == 24


def test_what_the_locality_prefix_would_do_without_us(
    manufactured: SwtpmProcess, tmp_path: Path
) -> None:
    """Keep the reason for that check true: swtpm itself obeys the prefix."""
    swtpm = SwtpmProcess(tmp_path, like=manufactured)
    hypervisor = HypervisorSide(swtpm.path)
    try:
        hypervisor.power_on()
        extend = commands.pcr_extend(17, {SHA256: bytes(32)})
        assert rc_name(response_code(hypervisor.command(extend.data))) == "TPM_RC_LOCALITY"
        hypervisor._data.sendall(
            bytes.fromhex("0000000804") + len(extend.data).to_bytes(4, "big") + extend.data
        )
        answer = hypervisor._data.recv(4096)
        assert response_code(answer[4:-4]) == 0
    finally:
        hypervisor.close()
        swtpm.stop()


# --- the launch ---------------------------------------------------------------------------------


def replayed(machine: Machine, log: bytes) -> dict[int, str]:
    """What tpm2_eventlog computes for the sha256 bank."""
    (machine.folder / "log").write_bytes(log)
    lines = machine.ok("tpm2_eventlog log").splitlines()
    bank = lines[lines.index("  sha256:") + 1 :]
    pairs = [line.split(":") for line in bank if line.strip()[:1].isdigit()]
    return {int(pcr): value.strip().removeprefix("0x") for pcr, value in pairs[:3]}


def test_tpm2_eventlog_replays_our_log_to_the_quoted_pcrs(launched: Machine) -> None:
    client = launched.client()
    client.record("epoch", b"nothing was found")
    client.record("epoch", b"and nothing again")
    quote = client.quote(NONCE, {SHA256: [17, 18, 19]})
    client.record("epoch", b"after the quote")
    log = client.launch_log(quote)
    got = {pcr: value.hex() for pcr, value in quote.pcrs[0].values.items()}
    assert replayed(launched, log) == got
    for part in (MANIFEST, VM, b"reason: power-on\nlaunch: 1\n", b"and nothing again"):
        assert part in log
    assert b"after the quote" not in log


def test_a_reset_launches_again_and_says_so(launched: Machine) -> None:
    client = launched.client()
    client.record("epoch", b"before")
    first = client.quote(NONCE, {SHA256: [17, 18, 19]})
    launched.power_on()
    second = client.quote(NONCE, {SHA256: [17, 18, 19]})
    with pytest.raises(VtpmUnavailable, match="started again"):
        client.launch_log(first)
    log = client.launch_log(second)
    assert b"reason: reset\nlaunch: 2\n" in log
    assert b"before" not in log
    assert first.pcrs[0].values[17] == second.pcrs[0].values[17]
    assert second.pcrs[0].values[19] == bytes(32)


def test_a_launch_at_attach_is_marked(machine: Machine) -> None:
    client = machine.client()
    assert client.launch_log(client.quote(NONCE, {SHA256: [17]})) == b""
    with pytest.raises(VtpmUnavailable, match="no launch"):
        client.record("epoch", b"too early")
    assert machine.ok("tpm2_pcrread sha256:17").split()[-1] == "0x" + "F" * 64
    client.launch(LaunchConfig(MANIFEST, (("vm", VM),)))
    quote = client.quote(NONCE, {SHA256: [17, 18, 19]})
    log = client.launch_log(quote)
    assert b"reason: attach\nlaunch: 2\n" in log
    machine.power_on()
    assert b"reason: reset" in client.launch_log(client.quote(NONCE, {SHA256: [17]}))


def test_the_guests_own_startup_behaves_as_ever(new_machine: NewMachine) -> None:
    machine = new_machine()
    machine.hypervisor.power_on(startup=False)
    assert machine.guest_rc(commands.pcr_read({SHA256: [0]})) == "TPM_RC_INITIALIZE"
    assert machine.guest_rc(commands.startup(state=True)) == "TPM_RC_VALUE (parameter 1)"
    assert machine.guest_rc(commands.startup(state=False)) == "TPM_RC_SUCCESS"
    assert machine.guest_rc(commands.startup(state=False)) == "TPM_RC_INITIALIZE"
    assert machine.guest_rc(commands.pcr_read({SHA256: [0]})) == "TPM_RC_SUCCESS"


# --- the guest's things are its own -------------------------------------------------------------


def test_a_guest_that_fills_the_tpm_neither_starves_us_nor_notices(machine: Machine) -> None:
    # an ECC P-256 storage key
    template = bytes.fromhex("0023 000b 00030072 0000 0006 0080 0043 0010 0003 0010 0000 0000")
    create = commands.create_primary(0x40000001, template)
    keys = [commands.parse_create_primary(create, machine.guest(create)) for _ in range(3)]
    start = commands.start_policy_session()
    sessions = [commands.parse_start_policy_session(start, machine.guest(start)) for _ in range(3)]
    assert machine.guest_rc(create) == "TPM_RC_OBJECT_MEMORY"
    assert machine.guest_rc(start) == "TPM_RC_SESSION_MEMORY"
    for session in sessions:
        machine.guest(commands.policy_locality(session, 1))
    client = machine.client()
    for _ in range(5):
        client.quote(NONCE, {SHA256: range(24)})
        client.ek_public()
    assert client.status()["evictions"] >= 15
    for key in keys:
        read = commands.read_public(key.handle)
        assert commands.parse_read_public(read, machine.guest(read)) == (key.public, key.name)
    for session in sessions:
        assert machine.guest_rc(commands.policy_locality(session, 1)) == "TPM_RC_SUCCESS"
    assert machine.guest_rc(create) == "TPM_RC_OBJECT_MEMORY"
    # a gap below: what was moved away must come back under its own number all the same
    assert machine.guest_rc(commands.flush_context(keys[0].handle)) == "TPM_RC_SUCCESS"
    client.quote(NONCE, {SHA256: [0]})
    ask = commands.get_handles(0x80000000)
    assert commands.parse_get_handles(ask, machine.guest(ask)) == [k.handle for k in keys[1:]]


def test_hash_sequences_and_saved_contexts_survive(machine: Machine) -> None:
    data = os.urandom(3000)
    (machine.folder / "data").write_bytes(data)
    machine.ok("tpm2_createprimary -c primary.ctx -G ecc")
    machine.ok("tpm2_startauthsession -S session.ctx --policy-session")
    start_sequence = bytes.fromhex("8001 0000000e 00000186 0000 000b")
    handle = machine.hypervisor.command(start_sequence)[10:14]
    client = machine.client()
    for start in range(0, 3000, 1000):
        client.quote(NONCE, {SHA256: [0]})
        part = data[start : start + 1000]
        update = bytes.fromhex("0000015c") + handle + bytes.fromhex("00000009400000090000010000")
        update += len(part).to_bytes(2, "big") + part
        command = b"\x80\x02" + (len(update) + 6).to_bytes(4, "big") + update
        assert response_code(machine.hypervisor.command(command)) == 0
    complete = bytes.fromhex("0000013e") + handle + bytes.fromhex("00000009400000090000010000")
    complete += bytes.fromhex("0000 40000007")
    done = machine.hypervisor.command(
        b"\x80\x02" + (len(complete) + 6).to_bytes(4, "big") + complete
    )
    assert hashlib.sha256(data).digest() in done
    machine.ok("tpm2_readpublic -c primary.ctx")
    machine.ok("tpm2_policypcr -S session.ctx -l sha256:0")
    machine.ok("tpm2_flushcontext session.ctx")


def test_all_sixty_four_sessions_taken_leave_one_for_us(machine: Machine) -> None:
    client = machine.client()
    start = commands.start_policy_session()
    count = 0
    while response_code(response := machine.guest(start)) == 0:
        save = commands.context_save(commands.parse_start_policy_session(start, response))
        assert machine.guest_rc(save) == "TPM_RC_SUCCESS"
        count += 1
        assert count < 100
    assert rc_name(response_code(response)) == "TPM_RC_SESSION_HANDLES"
    assert count == 63
    assert client.quote(NONCE, {SHA256: [0]}).attest


def test_a_locked_out_guest_stays_locked_out_and_we_still_quote(machine: Machine) -> None:
    machine.ok("tpm2_dictionarylockout -s -n 2 -t 1000 -l 1000")
    machine.ok("tpm2_createprimary -c primary.ctx -G ecc")
    machine.ok("tpm2_create -C primary.ctx -c key.ctx -G ecc -p right")
    (machine.folder / "data").write_bytes(b"data")
    for _ in range(3):
        machine.tool("tpm2_sign -c key.ctx -p wrong -o sig data")
        machine.ok("tpm2_flushcontext -t")
    before = machine.ok("tpm2_getcap properties-variable")
    assert "inLockout:                 1" in before
    machine.client().quote(NONCE, {SHA256: [0]})
    assert machine.ok("tpm2_getcap properties-variable") == before


# --- start, stop, suspend, resume, loss ---------------------------------------------------------


def test_suspend_to_ram_brings_the_guests_state_back(launched: Machine) -> None:
    client = launched.client()
    launched.ok("tpm2_pcrextend 10:sha256=" + "ab" * 32)
    before = client.quote(NONCE, {SHA256: range(17)}).pcrs
    launched.ok("tpm2_shutdown")
    client.record("epoch", b"while it sleeps")  # ends the TPM's saved state, and saves it again
    launched.hypervisor.power_on(startup=False)
    assert launched.guest_rc(commands.startup(state=True)) == "TPM_RC_SUCCESS"
    after = client.quote(NONCE, {SHA256: range(17)})
    assert after.pcrs == before
    assert b"reason: resume\nlaunch: 2\n" in client.launch_log(after)


def test_state_blobs_carry_a_guest_to_another_machine(
    launched: Machine, new_machine: NewMachine
) -> None:
    launched.ok("tpm2_changeauth -c p firmware")
    launched.ok("tpm2_pcrextend 10:sha256=" + "ab" * 32)
    launched.ok("tpm2_createprimary -c primary.ctx -G ecc")
    launched.ok("tpm2_createprimary -c /dev/null -G ecc")  # leaves an object in TPM memory
    before = launched.ok("tpm2_pcrread sha256:0,1,2,3,4,5,6,7,8,9,10")
    key = launched.client().create_ak()
    blobs = []
    for kind in (1, 2, 3):
        request = (1).to_bytes(4, "big") + kind.to_bytes(4, "big") + bytes(4)
        blobs.append(launched.hypervisor.ask(Control.GET_STATEBLOB, request)[12:])
    other = new_machine("--keys", str(launched.folder / "keys"))
    other.hypervisor.ask(Control.STOP)
    for kind, blob in zip((1, 2, 3), blobs, strict=True):
        header = bytes(4) + kind.to_bytes(4, "big") + len(blob).to_bytes(4, "big")
        if blob:
            other.hypervisor.ask(Control.SET_STATEBLOB, header + blob)
    other.hypervisor.ask(Control.INIT, (1).to_bytes(4, "big"))
    assert other.ok("tpm2_pcrread sha256:0,1,2,3,4,5,6,7,8,9,10") == before
    objects = "tpm2_getcap handles-transient"
    assert other.ok(objects) == launched.ok(objects) == "- 0x80000000\n- 0x80000001\n"
    shutil.copy(launched.folder / "primary.ctx", other.folder / "primary.ctx")
    other.ok("tpm2_readpublic -c primary.ctx")
    client = other.client()
    client.launch(LaunchConfig(MANIFEST))
    quote = client.quote(NONCE, {SHA256: [10, 17]})
    assert quote.ak_public == key.public
    assert client.status()["launch_reason"] == "attach"


def test_a_killed_swtpm_is_an_error_and_its_return_a_reset(launched: Machine) -> None:
    client = launched.client()
    launched.swtpm.stop()
    assert launched.guest_rc(commands.pcr_read({SHA256: [0]})) == "TPM_RC_FAILURE"
    with pytest.raises(VtpmUnavailable, match="swtpm was lost"):
        client.quote(NONCE, {SHA256: [0]})
    launched.swtpm.start()
    launched.power_on()
    assert client.quote(NONCE, {SHA256: [0]}).attest
    events = [what for _, what in client.status()["events"]]
    assert any("swtpm was lost" in event for event in events)
    assert "connected to swtpm again" in events


# --- what tpm2-tools do is the same with and without us -----------------------------------------

SAME = """
tpm2_getcap properties-fixed
tpm2_getcap algorithms
tpm2_getcap commands
tpm2_getcap pcrs
tpm2_getcap handles-persistent
tpm2_getcap handles-nv-index
tpm2_selftest
tpm2_testparms rsa2048
tpm2_pcrread sha1+sha256+sha384
tpm2_pcrextend 7:sha1={h1},sha256={h2}
tpm2_pcrevent 16 data
tpm2_pcrreset 16
tpm2_pcrread sha256:7,16
tpm2_getrandom 16 -o random
tpm2_hash -g sha256 data
tpm2_createprimary -C o -G ecc -c primary.ctx
tpm2_readpublic -c primary.ctx -o primary.pub
tpm2_create -C primary.ctx -G ecc -u key.pub -r key.priv
tpm2_load -C primary.ctx -u key.pub -r key.priv -c key.ctx
tpm2_sign -c key.ctx -g sha256 -o sig data
tpm2_verifysignature -c key.ctx -g sha256 -m data -s sig
tpm2_create -C primary.ctx -i data -u sealed.pub -r sealed.priv
tpm2_load -C primary.ctx -u sealed.pub -r sealed.priv -c sealed.ctx
tpm2_unseal -c sealed.ctx
tpm2_createprimary -C o -G rsa2048 -c rsa.ctx
tpm2_create -C rsa.ctx -G rsa2048 -u rsa.pub -r rsa.priv
tpm2_load -C rsa.ctx -u rsa.pub -r rsa.priv -c rsakey.ctx
tpm2_rsaencrypt -c rsakey.ctx -o cipher data
tpm2_rsadecrypt -c rsakey.ctx cipher
tpm2_create -C primary.ctx -G aes128 -u aes.pub -r aes.priv
tpm2_load -C primary.ctx -u aes.pub -r aes.priv -c aes.ctx
tpm2_encryptdecrypt -c aes.ctx -o aes.enc data
tpm2_create -C primary.ctx -G hmac -u hmac.pub -r hmac.priv
tpm2_load -C primary.ctx -u hmac.pub -r hmac.priv -c hmac.ctx
tpm2_hmac -c hmac.ctx -o mac data
tpm2_evictcontrol -C o -c key.ctx 0x81000001
tpm2_readpublic -c 0x81000001 -o persistent.pub
tpm2_evictcontrol -C o -c 0x81000001
tpm2_createek -G rsa -c ek.ctx -u ek.pub
tpm2_createak -C ek.ctx -c ak.ctx -G ecc -g sha256 -s ecdsa -u ak.pub -n ak.name
tpm2_quote -c ak.ctx -l sha256:0,7,10 -q 0011 -m q.msg -s q.sig -o q.pcrs
tpm2_checkquote -u ak.pub -m q.msg -s q.sig -f q.pcrs -q 0011
tpm2_certify -c key.ctx -C key.ctx -g sha256 -o cert.att -s cert.sig
tpm2_gettime -c key.ctx -o time.att -s time.sig
tpm2_startauthsession -S trial.ctx
tpm2_policypcr -S trial.ctx -l sha256:7 -L pcr.policy
tpm2_flushcontext trial.ctx
tpm2_create -C primary.ctx -i data -L pcr.policy -u ps.pub -r ps.priv
tpm2_load -C primary.ctx -u ps.pub -r ps.priv -c ps.ctx
tpm2_startauthsession -S policy.ctx --policy-session
tpm2_policypcr -S policy.ctx -l sha256:7
tpm2_unseal -c ps.ctx -p session:policy.ctx
tpm2_flushcontext policy.ctx
tpm2_pcrextend 7:sha256={h2}
tpm2_startauthsession -S policy2.ctx --policy-session
tpm2_policypcr -S policy2.ctx -l sha256:7
tpm2_unseal -c ps.ctx -p session:policy2.ctx
tpm2_flushcontext policy2.ctx
tpm2_startauthsession -S hmac-session.ctx --hmac-session
tpm2_sign -c key.ctx -g sha256 -p session:hmac-session.ctx -o sig2 data
tpm2_flushcontext hmac-session.ctx
tpm2_nvdefine -C o -s 32 0x1500001
tpm2_nvwrite -C o -i data32 0x1500001
tpm2_nvread -C o -s 32 0x1500001
tpm2_nvreadpublic 0x1500001
tpm2_nvundefine -C o 0x1500001
tpm2_nvdefine -C o -a ownerwrite|ownerread|nt=counter 0x1500002
tpm2_nvincrement -C o 0x1500002
tpm2_nvread -C o -s 8 0x1500002
tpm2_nvdefine -C o -a ownerwrite|ownerread|nt=extend 0x1500003
tpm2_nvextend -C o -i data 0x1500003
tpm2_nvread -C o 0x1500003
tpm2_nvundefine -C o 0x1500003
tpm2_changeauth -c o secret
tpm2_createprimary -C o -G ecc -c p2.ctx
tpm2_createprimary -C o -G ecc -P secret -c p2.ctx
tpm2_changeauth -c o -p secret
tpm2_dictionarylockout -s -n 5 -t 6 -l 7
tpm2_getcap properties-variable
tpm2_getcap handles-transient
tpm2_getcap handles-loaded-session
tpm2_getcap handles-saved-session
tpm2_pcrextend 17:sha256={h2}
tpm2_pcrreset 17
tpm2_flushcontext -t
tpm2_clear -c l
tpm2_readpublic -c primary.ctx
""".strip().splitlines()
SETTING = {"h1": "11" * 20, "h2": "22" * 32}
RANDOM = (
    "tpm2_getrandom", "tpm2_create", "tpm2_sign", "tpm2_quote", "tpm2_certify", "tpm2_gettime",
    "tpm2_rsaencrypt", "tpm2_load", "tpm2_createak", "tpm2_checkquote",
)  # fmt: skip


def outcome(line: str, done: subprocess.CompletedProcess[bytes]) -> tuple[str, int, bytes]:
    """What must be the same: status always, output where it is not random."""
    is_random = line.split()[0] in RANDOM or "0x81000001" in line
    return line, done.returncode, b"" if is_random else done.stdout


def flush_transient(hypervisor: HypervisorSide) -> None:
    """What a resource manager does after each tool: else three objects fill the TPM."""
    ask = commands.get_handles(0x80000000)
    for handle in commands.parse_get_handles(ask, hypervisor.command(ask.data)):
        hypervisor.command(commands.flush_context(handle).data)


def run_all(
    lines: list[str], folder: Path, relay: ToolRelay, hypervisor: HypervisorSide
) -> list[tuple[str, int, bytes]]:
    outcomes = []
    for line in lines:
        outcomes.append(outcome(line, run_tool(line, folder, relay.tcti)))
        flush_transient(hypervisor)
    return outcomes


def prepare(folder: Path) -> None:
    (folder / "data").write_bytes(b"some data")
    (folder / "data32").write_bytes(bytes(range(32)))


def test_tools_behave_the_same_while_we_quote_all_the_time(
    launched: Machine, manufactured: SwtpmProcess, tmp_path: Path
) -> None:
    plain_folder = tmp_path / "plain"
    plain_folder.mkdir()
    for folder in (plain_folder, launched.folder):
        prepare(folder)
    swtpm = SwtpmProcess(plain_folder, like=manufactured)
    hypervisor = HypervisorSide(swtpm.path)
    relay = ToolRelay(hypervisor, plain_folder / "relay")
    hypervisor.power_on()
    lines = [line.format(**SETTING) for line in SAME]
    plain = run_all(lines, plain_folder, relay, hypervisor)
    relay.close()
    hypervisor.close()
    swtpm.stop()

    stop = threading.Event()
    quotes = 0

    def quote_on() -> None:
        nonlocal quotes
        client = launched.client()
        while not stop.is_set():
            client.quote(NONCE, {SHA256: range(24)})
            client.record("epoch", b"again")
            quotes += 1

    busy = threading.Thread(target=quote_on)
    busy.start()
    try:
        through_us = run_all(lines, launched.folder, launched.relay, launched.hypervisor)
    finally:
        stop.set()
        busy.join(30)
    for alone, beside_us in zip(plain, through_us, strict=True):
        assert beside_us == alone
    assert sum(1 for _, status, _ in plain if status == 0) > len(lines) * 0.85
    assert quotes > len(lines)

"""The launch against a scripted swtpm: what is hashed and extended, in which order, at which
locality, and what the log says of it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from undercroft.base import FormatError, HashAlgorithm
from undercroft.formats.eventlog import parse_eventlog
from undercroft.formats.reader import BoundedReader
from undercroft.securekernel.vtpm import (
    AK_POLICY,
    EkType,
    KeyType,
    LaunchConfig,
    TpmError,
    VtpmClient,
    VtpmUnavailable,
    commands,
    control,
    kernelside,
    protocol,
)
from undercroft.securekernel.vtpm.control import Control
from undercroft.securekernel.vtpm.keyfile import KeyFile
from undercroft.securekernel.vtpm.keys import ak_template, ek_template
from undercroft.securekernel.vtpm.launchlog import MAX_MEASURED, event2, tagged_event
from undercroft.securekernel.vtpm.wire import HEADER, CommandCode, build, error_response

if TYPE_CHECKING:
    from tests.unit.securekernel.vtpm.conftest import Rig

OK = HEADER.pack(0x8001, 10, 0)
SHA256, SHA384 = HashAlgorithm.SHA256, HashAlgorithm.SHA384
CONFIG = LaunchConfig(b"manifest " * 1000, (("vm", b"q35"), ("kernel", b"6.1")))
STARTUP = commands.startup(state=False).data
STATE = commands.startup(state=True).data


def reply(body: bytes = b"", *, sessions: bool = False, handle: bytes = b"") -> bytes:
    if sessions:
        body = handle + len(body).to_bytes(4, "big") + body + bytes([0, 0, 1, 0, 0])
        return HEADER.pack(0x8002, 10 + len(body), 0) + body
    body = handle + body
    return HEADER.pack(0x8001, 10 + len(body), 0) + body


BANKS = reply(
    struct.pack(">BII", 0, 5, 3) + bytes.fromhex("000403000000 000b03ffffff 000c03ffffff")
)
CONTEXT = struct.pack(">QIIH", 1, 0x80000000, 0x4000000C, 4) + b"blob"
CREATED = reply(
    b"\0\6public" + bytes(4) + bytes.fromhex("8021 40000007 0000") + b"\0\4name",
    sessions=True,
    handle=bytes.fromhex("80000000"),
)


def script(rig: Rig) -> None:
    """A TPM with the banks sha256 and sha384, where keys can be made."""
    answers = {
        CommandCode.GET_CAPABILITY: BANKS,
        CommandCode.PCR_EXTEND: reply(sessions=True),
        CommandCode.CREATE_PRIMARY: CREATED,
        CommandCode.CONTEXT_SAVE: reply(CONTEXT),
        CommandCode.CONTEXT_LOAD: reply(bytes.fromhex("80000000")),
        CommandCode.START_AUTH_SESSION: reply(bytes.fromhex("03000000 0000")),
    }
    rig.swtpm.start_answers = {0x144: OK}
    rig.swtpm.answer = lambda _, command: answers.get(
        CommandCode(HEADER.unpack_from(command)[2]), OK
    )


def codes(rig: Rig) -> list[tuple[int, str]]:
    return [
        (locality, CommandCode(HEADER.unpack_from(command)[2]).name)
        for locality, command in rig.swtpm.commands
    ]


@pytest.fixture
def launched(rig: Rig) -> Rig:
    script(rig)
    rig.multiplexer.tpm.launcher.config = CONFIG
    qemu = rig.qemu(started=False)
    qemu.pass_data_fd()
    assert qemu.ask(Control.INIT, bytes(4)) == bytes(4)
    return rig


def test_the_launch_comes_before_anything_the_guest_does(launched: Rig) -> None:
    made = [(0, "CREATE_PRIMARY"), (0, "CONTEXT_SAVE"), (0, "FLUSH_CONTEXT")]
    assert codes(launched) == [
        (0, "STARTUP"),
        *made,
        *made,
        (0, "GET_CAPABILITY"),
        *[(2, "PCR_EXTEND")] * 3,
    ]
    hashed = [r for r in launched.swtpm.controls if 6 <= int.from_bytes(r[:4], "big") <= 8]
    numbers = [int.from_bytes(request[:4], "big") for request in hashed]
    assert numbers == [6, 7, 7, 7, 8]
    measured = b"".join(request[8:] for request in hashed[1:-1])
    assert measured == tagged_event(0x55430011, "secure kernel", CONFIG.manifest)


def test_the_log_proves_itself(launched: Rig) -> None:
    launched.multiplexer.kernel.record("epoch", b"all is well")
    log = parse_eventlog(launched.multiplexer.kernel.log(1))
    assert log.algorithms == (SHA256, SHA384)
    assert [event.pcr for event in log.events] == [0, 17, 18, 18, 18, 19]
    for event in log.events[1:]:
        for bank, digest in event.digests.items():
            assert digest == bank.hash(event.data)
    extended = [command for _, command in launched.swtpm.commands if command[9] == 0x82]
    for command, event in zip(extended, log.events[2:], strict=True):
        assert int.from_bytes(command[10:14], "big") == event.pcr
        assert command.endswith(b"\0\x0c" + event.digests[SHA384])
        assert event.digests[SHA256] in command
    assert log.encode() == launched.multiplexer.kernel.log(1)


def test_the_guests_startup_is_answered_once(launched: Rig) -> None:
    (qemu,) = launched.qemus
    launched.swtpm.commands.clear()
    cases = [
        (commands.pcr_read({SHA256: [0]}).data, 0x100),
        (STARTUP[:-1], 0x142),
        (STATE, 0x1C4),
        (build(CommandCode.STARTUP, parameters=b"\0\0\0").data, 0x142),
    ]
    for command, code in cases:
        assert qemu.command(command) == error_response(code)
    assert launched.swtpm.commands == []
    assert qemu.command(STARTUP) == OK
    assert launched.swtpm.commands == []
    assert qemu.command(STARTUP) == OK  # now the TPM's own answer
    assert codes(launched)[0] == (0, "STARTUP")


def test_a_suspended_guests_startup_goes_to_the_tpm_and_the_launch_follows(launched: Rig) -> None:
    (qemu,) = launched.qemus
    qemu.command(STARTUP)
    qemu.command(build(CommandCode.SHUTDOWN, parameters=b"\0\1").data)
    qemu.ask(Control.INIT, bytes(4))
    launched.swtpm.commands.clear()
    assert launched.multiplexer.tpm.launcher.number == 1
    assert qemu.command(STATE) == OK
    assert launched.swtpm.commands[0] == (0, STATE)
    assert launched.multiplexer.tpm.launcher.number == 2
    assert b"reason: resume\nlaunch: 2\n" in launched.multiplexer.kernel.log(2)


@pytest.mark.parametrize(
    ("answer", "reason"), [(OK, "power-on"), (error_response(0x100), "restore")]
)
def test_the_reason_is_what_the_tpm_says(rig: Rig, answer: bytes, reason: str) -> None:
    script(rig)
    rig.swtpm.start_answers = {0x144: answer}
    rig.multiplexer.tpm.launcher.config = CONFIG
    qemu = rig.qemu(started=False)
    qemu.pass_data_fd()
    qemu.ask(Control.INIT, bytes(4))
    assert rig.multiplexer.tpm.launcher.reason == reason
    qemu.ask(Control.INIT, bytes(4))
    assert rig.multiplexer.tpm.launcher.reason == ("reset" if answer == OK else "restore")


def test_a_tpm_that_does_not_start_is_noted_and_left_to_the_guest(rig: Rig) -> None:
    script(rig)
    rig.swtpm.start_answers = {0x144: error_response(0x101)}
    qemu = rig.qemu(started=False)
    qemu.pass_data_fd()
    qemu.ask(Control.INIT, bytes(4))
    assert qemu.command(STARTUP) == error_response(0x101)
    assert "TPM_RC_FAILURE" in str(rig.multiplexer.status()["events"])


def test_a_start_that_is_answered_with_nonsense_does_not_hang_the_hypervisor(rig: Rig) -> None:
    script(rig)
    rig.swtpm.start_answers = {0x144: HEADER.pack(0x1234, 10, 0)}
    qemu = rig.qemu(started=False)
    qemu.pass_data_fd()
    assert qemu.ask(Control.INIT, bytes(4)) == bytes(4)
    assert "unknown tag" in str(rig.multiplexer.status()["events"])


def test_keys_that_cannot_be_written_down_do_not_stop_the_launch(rig: Rig, tmp_path: Path) -> None:
    script(rig)
    rig.multiplexer.tpm.launcher._key_file = KeyFile(tmp_path / "nowhere" / "keys")
    rig.qemu()
    assert set(rig.multiplexer.kernel.keys()) == {"ecc", "rsa"}


@pytest.mark.parametrize("refused", ["hash", "extend", "banks", "bank unknown"])
def test_a_launch_that_fails_is_noted_and_not_claimed(rig: Rig, refused: str) -> None:
    script(rig)
    rig.multiplexer.tpm.launcher.config = CONFIG
    scripted = rig.swtpm.answer
    overridden = {
        "extend": (CommandCode.PCR_EXTEND, error_response(0x907)),
        "banks": (CommandCode.GET_CAPABILITY, reply(struct.pack(">BII", 0, 5, 17))),
        "bank unknown": (
            CommandCode.GET_CAPABILITY,
            reply(struct.pack(">BII", 0, 5, 1) + bytes.fromhex("009903ffffff")),
        ),
    }
    if refused == "hash":
        rig.swtpm.control_answer = lambda request: (
            struct.pack(">I", control.TPM_FAIL)
            if request[3] == Control.HASH_END
            else rig.swtpm.default_control(request)
        )
    else:
        code, answer = overridden[refused]
        rig.swtpm.answer = lambda locality, command: (
            answer if HEADER.unpack_from(command)[2] == code else scripted(locality, command)
        )
    qemu = rig.qemu(started=False)
    qemu.pass_data_fd()
    assert qemu.ask(Control.INIT, bytes(4)) == bytes(4)
    assert qemu.command(STARTUP) == OK
    assert rig.multiplexer.kernel.log(1) == b""
    assert "the launch failed" in str(rig.multiplexer.status()["events"])
    with VtpmClient(rig.kernel_path) as client, pytest.raises(VtpmUnavailable, match="no launch"):
        client.record("epoch", b"")


def test_keys_that_can_no_longer_be_made_are_kept_while_their_contexts_load(launched: Rig) -> None:
    (qemu,) = launched.qemus
    assert set(launched.multiplexer.kernel.keys()) == {"ecc", "rsa"}
    launched.swtpm.start_answers = {0x144: error_response(0x100), 0x131: error_response(0x9A2)}
    qemu.ask(Control.INIT, bytes(4))
    assert set(launched.multiplexer.kernel.keys()) == {"ecc", "rsa"}
    launched.swtpm.start_answers |= {CommandCode.CONTEXT_LOAD: error_response(0x1DF)}
    qemu.ask(Control.INIT, bytes(4))
    assert launched.multiplexer.kernel.keys() == {}


# --- records ------------------------------------------------------------------------------------


def test_a_record_waits_for_a_guest_with_a_pcr_policy(
    launched: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernelside, "COURTESY", 0.2)
    (qemu,) = launched.qemus
    qemu.command(STARTUP)
    multiplexer = launched.multiplexer
    qemu.command(build(CommandCode.POLICY_PCR, handles=[0x0300_0000]).data)
    courtesy = multiplexer.tpm.courtesy
    before = courtesy.settled
    multiplexer.kernel.record("epoch", b"waited for a while, and no longer")
    assert (before, courtesy.settled) == (False, True)
    assert b"no longer" in multiplexer.kernel.log(1)


def test_records_too_large_or_named_badly_are_refused(launched: Rig) -> None:
    with VtpmClient(launched.kernel_path) as client:
        for name in ("", "x" * 65, "new\nline", "naïve"):
            with pytest.raises(FormatError):
                client.record(name, b"")
        with pytest.raises(FormatError):
            client.record("epoch", bytes(MAX_MEASURED + 1))
        client.record("epoch", bytes(MAX_MEASURED))
    launched.multiplexer.tpm.launcher._log.extend(bytes(40 * 1024 * 1024))
    with VtpmClient(launched.kernel_path) as client, pytest.raises(VtpmUnavailable, match="large"):
        client.record("epoch", b"")


def test_a_launch_request_survives_the_socket_and_waits_for_a_start(rig: Rig) -> None:
    body = protocol.encode_launch(CONFIG)
    assert protocol.parse_launch(BoundedReader(body, "launch", order="big")) == CONFIG
    script(rig)
    with VtpmClient(rig.kernel_path) as client:
        client.launch(CONFIG)
        assert client.status()["launch"] == 0
        qemu = rig.qemu(started=False)
        qemu.pass_data_fd()
        qemu.ask(Control.INIT, bytes(4))
        assert client.status()["launch_reason"] == "power-on"
        client.launch(CONFIG)
        assert client.status()["launch_reason"] == "attach"


def test_events_are_little_endian_with_every_bank() -> None:
    event = tagged_event(1, "n", b"d")
    assert event.hex() == "01000000" + "03000000" + b"n\0d".hex()
    encoded = event2(19, event, [SHA256])
    assert encoded.startswith(struct.pack("<IIIH", 19, 6, 1, 0x0B) + SHA256.hash(event))


# --- quotes through the socket --------------------------------------------------------------------


def quoting(rig: Rig, value: bytes, calls: list[str]) -> None:
    """Let the scripted TPM quote PCR 0 of the sha256 bank with this value."""
    scripted = rig.swtpm.answer
    attest = b"attest" + b"\0\x20" + SHA256.hash(value)

    def answer(locality: int, command: bytes) -> bytes | None:
        code = HEADER.unpack_from(command)[2]
        if code == CommandCode.QUOTE:
            calls.append("quote")
            return reply(len(attest).to_bytes(2, "big") + attest + b"signature", sessions=True)
        if code == CommandCode.PCR_READ:
            calls.append("read")
            body = struct.pack(">II", 7, 1) + bytes.fromhex("000b03010000") + struct.pack(">I", 1)
            return reply(body + b"\0\x20" + value)
        return scripted(locality, command)

    rig.swtpm.answer = answer


def test_pcrs_are_read_again_only_if_the_quote_says_that_they_changed(launched: Rig) -> None:
    calls: list[str] = []
    quoting(launched, bytes(32), calls)
    with VtpmClient(launched.kernel_path) as client:
        first = client.quote(b"n", {SHA256: [0]})
        assert client.quote(b"n", {SHA256: [0]}).pcrs == first.pcrs
        assert calls == ["quote", "read", "quote"]
        last = codes(launched)[-2:]
        assert last == [(2, "POLICY_LOCALITY"), (2, "QUOTE")]  # the key stays loaded
        assert client.quote(b"n", {SHA256: [0]}).pcrs == first.pcrs
        assert codes(launched)[-2:] == last
        calls.clear()
        quoting(launched, bytes([1]) * 32, calls)
        assert client.quote(b"n", {SHA256: [0]}).pcrs[0].values[0] == bytes([1]) * 32
        assert calls == ["quote", "quote", "read"]
    assert first.signature == b"signature"
    assert first.ak_public == b"public"


def test_a_key_that_went_with_a_reset_is_asked_for_again(launched: Rig) -> None:
    calls: list[str] = []
    quoting(launched, bytes(32), calls)
    with VtpmClient(launched.kernel_path) as client:
        client.quote(b"n", {SHA256: [0]})
        client._contexts[KeyType.ECC] = CONTEXT[:-1] + b"?"
        scripted = launched.swtpm.answer
        launched.swtpm.answer = lambda locality, command: (
            error_response(0x1DF) if command.endswith(b"?") else scripted(locality, command)
        )
        assert client.quote(b"n", {SHA256: [0]}).attest
        launched.swtpm.start_answers = {CommandCode.CONTEXT_LOAD: error_response(0x1DF)}
        launched.multiplexer.tpm.resident.forget()
        with pytest.raises(TpmError, match="TPM2_CONTEXT_LOAD"):
            client.quote(b"n", {SHA256: [0]})


def loaded(rig: Rig, client: VtpmClient) -> None:
    """Quote twice, so that key and session are loaded, and forget what went by."""
    for _ in range(2):
        client.quote(b"n", {SHA256: [0]})
    assert rig.multiplexer.tpm.resident._loaded is not None
    rig.swtpm.commands.clear()


def test_the_guest_never_sees_what_stays_loaded(launched: Rig) -> None:
    quoting(launched, bytes(32), [])
    (qemu,) = launched.qemus
    qemu.command(STARTUP)
    random = build(CommandCode.GET_RANDOM).data
    flushes = [(0, "FLUSH_CONTEXT")] * 2
    with VtpmClient(launched.kernel_path) as client:
        loaded(launched, client)
        qemu.command(random)
        assert codes(launched) == [*flushes, (0, "GET_RANDOM")]
        loaded(launched, client)
        qemu.ask(Control.STORE_VOLATILE)
        assert codes(launched) == flushes
        loaded(launched, client)
        client.run([build(CommandCode.GET_RANDOM)])
        assert codes(launched) == [*flushes, (0, "GET_RANDOM")]
        loaded(launched, client)
        client.launch(CONFIG)
        assert codes(launched)[:2] == flushes
        loaded(launched, client)
        qemu.ask(Control.INIT, bytes(4))
        assert "FLUSH_CONTEXT" not in [name for _, name in codes(launched)[:1]]
        assert launched.multiplexer.tpm.resident._loaded is None


def test_a_guest_that_has_shut_down_finds_nothing_of_ours_in_its_saved_state(
    launched: Rig,
) -> None:
    quoting(launched, bytes(32), [])
    (qemu,) = launched.qemus
    qemu.command(STARTUP)
    qemu.command(build(CommandCode.SHUTDOWN, parameters=b"\0\1").data)
    with VtpmClient(launched.kernel_path) as client:
        client.quote(b"n", {SHA256: [0]})
        client.quote(b"n", {SHA256: [0]})
    assert [name for _, name in codes(launched)[-3:]] == ["FLUSH_CONTEXT"] * 2 + ["SHUTDOWN"]


@pytest.mark.parametrize(
    "refused", [CommandCode.CONTEXT_LOAD, CommandCode.START_AUTH_SESSION, CommandCode.QUOTE]
)
def test_what_the_short_way_cannot_do_is_left_to_a_batch(
    launched: Rig, refused: CommandCode
) -> None:
    quoting(launched, bytes(32), [])
    multiplexer = launched.multiplexer
    selection = commands.encode_selection({SHA256: [0]})
    assert len(multiplexer.kernel.quote(KeyType.ECC, b"n", selection).responses) == 1
    multiplexer.tpm.resident.evict()
    launched.swtpm.start_answers[refused] = error_response(0x902)
    launched.swtpm.commands.clear()
    assert multiplexer.kernel.quote(KeyType.ECC, b"n", selection).responses == ()
    made = [name for _, name in codes(launched)]
    started = [CommandCode.CONTEXT_LOAD.name, CommandCode.START_AUTH_SESSION.name]
    succeeded = [name for name in made if name in started and name != refused.name]
    assert made.count("FLUSH_CONTEXT") == len(succeeded)
    multiplexer.tpm.launcher.keys.clear()
    assert multiplexer.kernel.quote(KeyType.ECC, b"n", selection).responses == ()


@pytest.mark.parametrize(
    "body",
    [b"", b"\2\0\0", b"\0\0\x41" + bytes(65), b"\0\0\0" + bytes(257)],
    ids=["empty", "no such key", "too much data", "selection too large"],
)
def test_malformed_quote_requests_are_refused(body: bytes) -> None:
    with pytest.raises(FormatError):
        protocol.parse_quote(BoundedReader(body, "quote", order="big"))


def test_qualifying_data_beyond_64_bytes_is_the_callers_mistake(launched: Rig) -> None:
    with VtpmClient(launched.kernel_path) as client, pytest.raises(ValueError, match="64"):
        client.quote(bytes(65), {SHA256: [0]})


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (bytes.fromhex("00000007 00000001 000b03000000 00000000"), "asked for"),
        (bytes.fromhex("00000007 00000001 000b03010000 00000000"), "asked for"),
    ],
    ids=["another selection", "no value"],
)
def test_a_tpm_that_returns_other_pcrs_is_refused(launched: Rig, body: bytes, match: str) -> None:
    launched.swtpm.start_answers[CommandCode.PCR_READ] = reply(body)
    with (
        VtpmClient(launched.kernel_path) as client,
        pytest.raises(Exception, match=match),
    ):
        client.pcr_read({SHA256: [0]})


def test_pcrs_of_two_moments_are_refused(launched: Rig) -> None:
    counters = iter((1, 2))

    def answer(locality: int, command: bytes) -> bytes:
        selection = command[10:]
        head = struct.pack(">I", next(counters)) + selection + struct.pack(">I", 8)
        return reply(head + (b"\0\x20" + bytes(32)) * 8)

    launched.swtpm.answer = answer
    with VtpmClient(launched.kernel_path) as client, pytest.raises(FormatError, match="changed"):
        client.pcr_read({SHA256: range(16)})


def test_an_empty_selection_is_the_callers_mistake(launched: Rig) -> None:
    with VtpmClient(launched.kernel_path) as client, pytest.raises(ValueError, match="empty"):
        client.pcr_read({SHA256: []})


# --- templates ------------------------------------------------------------------------------------


def test_the_policy_is_policy_locality_two() -> None:
    assert SHA256.hash(bytes(32), bytes.fromhex("0000016f 04")) == AK_POLICY


@pytest.mark.parametrize("key_type", KeyType)
def test_attestation_keys_are_restricted_to_quoting(key_type: KeyType) -> None:
    template = ak_template(key_type)
    assert AK_POLICY in template
    attributes = int.from_bytes(template[4:8], "big")
    user_with_auth, decrypt, restricted, sign = 1 << 6, 1 << 17, 1 << 16, 1 << 18
    assert attributes & (user_with_auth | decrypt) == 0
    assert attributes & restricted
    assert attributes & sign


@pytest.mark.parametrize(("ek_type", "size"), [("RSA_2048", 314), ("ECC_P256", 122)])
def test_ek_templates_have_the_size_of_the_profile(ek_type: str, size: int) -> None:
    assert len(ek_template(EkType[ek_type])) == size

from __future__ import annotations

import os
import socket
import stat
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from undercroft.base import EnvironmentFault, HashAlgorithm
from undercroft.securekernel.vtpm import TpmError, VtpmClient, VtpmUnavailable, control, protocol
from undercroft.securekernel.vtpm.control import Control
from undercroft.securekernel.vtpm.interposer import listen
from undercroft.securekernel.vtpm.wire import HEADER, CommandCode, build, error_response

if TYPE_CHECKING:
    from tests.unit.securekernel.vtpm.conftest import Rig

OK = HEADER.pack(0x8001, 10, 0)
FAILURE = error_response(0x101)
LOCALITY = error_response(0x907)
COMMAND_SIZE = error_response(0x142)
GET_RANDOM = bytes.fromhex("8001 0000000c 0000017b 0010")
EXTEND = build(CommandCode.READ_PUBLIC, handles=[17]).data


def test_a_guest_command_passes_at_locality_0_and_comes_back(rig: Rig) -> None:
    answer = HEADER.pack(0x8001, 14, 0) + b"\0\2hi"
    rig.swtpm.answer = lambda *_: answer
    assert rig.qemu().command(GET_RANDOM) == answer
    assert rig.swtpm.commands == [(0, GET_RANDOM)]


def test_a_hypervisor_that_reconnects_finds_the_tpm(rig: Rig) -> None:
    first = rig.qemu()
    assert first.command(GET_RANDOM) == OK
    assert first.ask(Control.SHUTDOWN) == bytes(4)
    first.close()
    second = rig.qemu()
    assert second.command(GET_RANDOM) == OK
    sent = [int.from_bytes(request[:4], "big") for request in rig.swtpm.controls]
    assert Control.SHUTDOWN not in sent  # swtpm would have exited
    assert sent.count(Control.STOP) == 1
    assert sent.count(Control.SET_DATAFD) == 1


# --- locality ---------------------------------------------------------------------------------


@pytest.mark.parametrize("locality", [1, 2, 3, 4])
def test_the_guest_cannot_use_another_locality(rig: Rig, locality: int) -> None:
    qemu = rig.qemu()
    assert qemu.ask(Control.SET_LOCALITY, bytes([locality, 0, 0, 0])) == bytes(4)
    assert qemu.command(EXTEND) == LOCALITY
    assert rig.swtpm.commands == []
    assert qemu.ask(Control.SET_LOCALITY, bytes(4)) == bytes(4)
    assert qemu.command(EXTEND) == OK
    assert rig.swtpm.commands == [(0, EXTEND)]
    assert rig.multiplexer.counters.refused_localities == 1


def test_a_locality_that_does_not_exist_is_refused(rig: Rig) -> None:
    reply = rig.qemu().ask(Control.SET_LOCALITY, bytes([5, 0, 0, 0]))
    assert reply == struct.pack(">I", control.TPM_BAD_LOCALITY)


def test_a_locality_prefix_in_the_guests_bytes_is_refused(rig: Rig) -> None:
    # swtpm takes 00 00 00 08, a locality and a size in front of a command as TPM2_SEND_COMMAND
    smuggled = struct.pack(">IBI", 8, 4, len(EXTEND)) + EXTEND
    assert rig.qemu().command(smuggled) == error_response(0x01E)
    assert rig.swtpm.commands == []


def test_swtpms_vendor_command_for_localities_is_refused(rig: Rig) -> None:
    command = HEADER.pack(0x8001, 11, 0x20001000) + b"\4"
    assert rig.qemu().command(command) == error_response(0x143)
    assert rig.swtpm.commands == []


@pytest.mark.parametrize("number", [Control.HASH_START, Control.HASH_END])
def test_the_hypervisor_cannot_start_a_dynamic_launch(rig: Rig, number: Control) -> None:
    qemu = rig.qemu()
    before = len(rig.swtpm.controls)
    assert qemu.ask(number) == struct.pack(">I", control.TPM_BAD_ORDINAL)
    assert qemu.ask(Control.HASH_DATA, b"\0\0\0\4data") == struct.pack(
        ">I", control.TPM_BAD_ORDINAL
    )
    assert len(rig.swtpm.controls) == before
    (capabilities,) = struct.unpack(">4xI", qemu.ask(Control.GET_CAPABILITY))
    assert not capabilities & control.CAP_HASHING


def test_the_established_flag_is_reset_at_locality_0_only(rig: Rig) -> None:
    rig.qemu().ask(Control.RESET_TPMESTABLISHED, bytes([3, 0, 0, 0]))
    assert rig.swtpm.controls[-1] == control.request(Control.RESET_TPMESTABLISHED, bytes(4))


# --- malformed traffic of the guest -----------------------------------------------------------


def test_commands_beyond_4096_bytes_are_refused(rig: Rig) -> None:
    qemu = rig.qemu()
    assert qemu.command(HEADER.pack(0x8001, 4097, 0x17B) + bytes(4087)) == COMMAND_SIZE
    assert rig.swtpm.commands == []
    assert qemu.command(GET_RANDOM) == OK


def test_a_command_shorter_than_a_header_is_refused_not_waited_for(rig: Rig) -> None:
    qemu = rig.qemu()
    assert qemu.command(b"\x80\x01\x00") == COMMAND_SIZE
    assert rig.swtpm.commands == []
    assert qemu.command(GET_RANDOM) == OK


def test_a_size_that_lies_is_the_tpms_business(rig: Rig) -> None:
    rig.swtpm.answer = lambda *_: COMMAND_SIZE
    qemu = rig.qemu()
    long, short = HEADER.pack(0x8001, 2**32 - 1, 0x17B), HEADER.pack(0x8001, 4, 0x17B)
    cut = HEADER.pack(0x8001, 20, 0x17B)
    for command in (long, short, cut):
        assert qemu.command(command) == COMMAND_SIZE
    assert [command for _, command in rig.swtpm.commands] == [long, short, cut]


def test_a_command_that_comes_in_pieces_is_one_command(rig: Rig) -> None:
    qemu = rig.qemu()
    assert qemu.data is not None
    for piece in (GET_RANDOM[:3], GET_RANDOM[3:11]):
        qemu.data.sendall(piece)
        time.sleep(0.02)
    assert qemu.command(GET_RANDOM[11:]) == OK
    assert rig.swtpm.commands == [(0, GET_RANDOM)]


# --- control messages out of order or malformed ------------------------------------------------


def test_commands_before_init_reach_swtpm_which_knows_the_answer(rig: Rig) -> None:
    rig.swtpm.answer = lambda *_: FAILURE
    qemu = rig.qemu(started=False)
    qemu.pass_data_fd()
    assert qemu.command(GET_RANDOM) == FAILURE


def test_an_unknown_control_command_is_refused(rig: Rig) -> None:
    qemu = rig.qemu()
    qemu.control.sendall(struct.pack(">I", 0x99))
    assert qemu.control.recv(64) == struct.pack(">I", control.TPM_BAD_ORDINAL)
    assert qemu.command(GET_RANDOM) == OK


def test_a_data_descriptor_that_is_missing_is_refused(rig: Rig) -> None:
    qemu = rig.qemu(started=False)
    assert qemu.ask(Control.SET_DATAFD) == struct.pack(">I", control.TPM_BAD_PARAMETER)


def test_a_data_descriptor_that_is_no_socket_is_refused(rig: Rig) -> None:
    qemu = rig.qemu(started=False)
    reader, writer = os.pipe()
    try:
        control.send_with_fd(qemu.control, control.request(Control.SET_DATAFD), reader)
        assert qemu.control.recv(64) == struct.pack(">I", control.TPM_BAD_PARAMETER)
    finally:
        os.close(reader)
        os.close(writer)


def test_descriptors_with_any_other_request_are_closed(rig: Rig) -> None:
    qemu = rig.qemu()
    reader, writer = os.pipe()
    control.send_with_fd(qemu.control, control.request(Control.GET_CONFIG), writer)
    os.close(writer)
    assert len(qemu.control.recv(64)) == 8
    assert os.read(reader, 1) == b""  # nobody holds the other end
    os.close(reader)


def test_a_second_data_descriptor_replaces_the_first(rig: Rig) -> None:
    qemu = rig.qemu()
    first = qemu.data
    assert first is not None
    assert qemu.pass_data_fd() == bytes(4)
    assert first.recv(1) == b""
    assert qemu.command(GET_RANDOM) == OK
    first.close()


@pytest.mark.parametrize(
    "message",
    [
        b"\0\0",
        control.request(Control.INIT, b"\0\0"),
        control.request(Control.SET_STATEBLOB, struct.pack(">III", 0, 1, 2**31)),
        control.request(Control.INIT, bytes(5)),
        control.request(Control.STOP, b"trailing"),
    ],
    ids=["number cut", "body cut", "blob too large", "body too long", "trailing bytes"],
)
def test_a_malformed_control_message_ends_the_connection_only(rig: Rig, message: bytes) -> None:
    qemu = rig.qemu()
    before = len(rig.swtpm.controls)
    qemu.control.sendall(message)
    assert qemu.control.recv(64) == struct.pack(">I", control.TPM_BAD_PARAMETER)
    assert qemu.control.recv(64) == b""
    assert len(rig.swtpm.controls) == before
    assert rig.qemu().command(GET_RANDOM) == OK
    assert rig.multiplexer.counters.refused_control == 1


def test_state_blobs_pass_both_ways(rig: Rig) -> None:
    qemu = rig.qemu()
    blob = os.urandom(20000)
    header = struct.pack(">III", 0, 2, len(blob))
    assert qemu.ask(Control.GET_STATEBLOB, struct.pack(">III", 1, 1, 0))[16:] == b"state"
    assert qemu.ask(Control.STOP) == bytes(4)
    qemu.control.sendall(control.request(Control.SET_STATEBLOB, header))
    time.sleep(0.02)
    qemu.control.sendall(blob)
    assert qemu.control.recv(64) == bytes(4)
    assert rig.swtpm.controls[-1] == control.request(Control.SET_STATEBLOB, header + blob)


def test_an_error_of_swtpm_is_passed_on_as_it_is(rig: Rig) -> None:
    qemu = rig.qemu()
    rig.swtpm.control_answer = lambda _: struct.pack(">I", control.TPM_BAD_ORDINAL)
    # with every field that QEMU will wait for
    answer = struct.pack(">II", control.TPM_BAD_ORDINAL, 0)
    assert qemu.ask(Control.GET_TPMESTABLISHED) == answer


# --- swtpm dies, stalls, talks nonsense --------------------------------------------------------


def test_a_dead_swtpm_is_a_tpm_error_for_the_guest_and_a_clear_one_for_us(rig: Rig) -> None:
    qemu = rig.qemu()
    assert qemu.command(GET_RANDOM) == OK
    rig.swtpm.die()
    assert qemu.command(GET_RANDOM) == FAILURE
    assert qemu.command(GET_RANDOM) == FAILURE
    assert qemu.ask(Control.GET_CONFIG) == struct.pack(">II", control.TPM_FAIL, 0)
    with VtpmClient(rig.kernel_path) as client:
        with pytest.raises(VtpmUnavailable, match="swtpm was lost"):
            client.pcr_read({HashAlgorithm.SHA256: [0]})
        status = client.status()
    assert "swtpm was lost" in status["fault"]
    assert status["upstream_losses"] == 1


def test_a_swtpm_that_comes_back_is_found_at_the_next_reset(rig: Rig) -> None:
    qemu = rig.qemu()
    rig.swtpm.die()
    assert qemu.command(GET_RANDOM) == FAILURE
    assert qemu.ask(Control.STOP) == bytes(4)  # QEMU exits if a reset is refused
    buffer = qemu.ask(Control.SET_BUFFERSIZE, bytes(4))
    assert buffer == struct.pack(">IIII", 0, 4096, 4096, 4096)
    assert qemu.ask(Control.INIT, bytes(4)) == bytes(4)
    assert qemu.command(GET_RANDOM) == FAILURE
    with VtpmClient(rig.kernel_path) as client:
        assert not client.status()["running"]
    rig.swtpm.__init__(rig.swtpm.path)  # type: ignore[misc]
    rig.start(qemu)
    assert qemu.command(GET_RANDOM) == OK
    with VtpmClient(rig.kernel_path) as client:
        assert client.status()["fault"] == ""


def test_a_swtpm_that_stalls_does_not_hang_the_guest(stalling_rig: Rig) -> None:
    rig = stalling_rig
    qemu = rig.qemu()
    rig.swtpm.answer = lambda *_: None
    assert qemu.command(GET_RANDOM) == FAILURE
    rig.swtpm.answer = lambda *_: OK
    assert qemu.command(GET_RANDOM) == FAILURE  # a late answer must never be taken for this one
    assert "timed out" in rig.upstream.fault


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack(">I", 4097) + bytes(4101),
        struct.pack(">I", 9) + bytes(13),
        struct.pack(">I", 10) + HEADER.pack(0x8001, 11, 0) + bytes(4),
        struct.pack(">I", 10) + OK + bytes(5),
        b"",
    ],
    ids=["too large", "too small", "sizes disagree", "too long", "silent"],
)
def test_a_swtpm_that_talks_nonsense_is_dropped(stalling_rig: Rig, raw: bytes) -> None:
    rig = stalling_rig
    qemu = rig.qemu()
    rig.swtpm.raw = lambda _: raw
    assert qemu.command(GET_RANDOM) == FAILURE
    assert rig.upstream.fault


def test_a_swtpm_without_the_locality_header_is_refused(rig: Rig) -> None:
    rig.swtpm.capabilities = 0x7FFF
    with pytest.raises(VtpmUnavailable, match="lacks a capability"):
        rig.upstream.connect()


# --- both sides at once -------------------------------------------------------------------------


def test_cancel_sends_a_waiting_guest_command_away(rig: Rig) -> None:
    release = threading.Event()

    def slow(locality: int, _: bytes) -> bytes:
        if locality == 2:
            release.wait(5)
        return OK

    rig.swtpm.answer = slow
    qemu = rig.qemu()
    with VtpmClient(rig.kernel_path) as client:
        batch = threading.Thread(
            target=lambda: client.run([build(CommandCode.GET_RANDOM)], locality=2)
        )
        batch.start()
        while not rig.swtpm.commands:
            time.sleep(0.01)
        assert qemu.data is not None
        qemu.data.sendall(GET_RANDOM)
        time.sleep(0.05)
        assert qemu.ask(Control.CANCEL_TPM_CMD) == bytes(4)
        assert qemu.data.recv(64) == error_response(0x909)
        release.set()
        batch.join(5)
    assert rig.swtpm.commands == [(2, build(CommandCode.GET_RANDOM).data)]


def test_no_guest_command_comes_between_the_commands_of_a_batch(rig: Rig) -> None:
    qemu = rig.qemu()
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            qemu.command(GET_RANDOM)

    guest = threading.Thread(target=flood)
    guest.start()
    ours = build(CommandCode.GET_RANDOM)
    with VtpmClient(rig.kernel_path) as client:
        for _ in range(20):
            client.run([ours] * 5, locality=3)
    stop.set()
    guest.join(5)
    localities = [locality for locality, _ in rig.swtpm.commands]
    runs = [len(run) for run in "".join("k" if n == 3 else "g" for n in localities).split("g")]
    assert sum(runs) == 100
    assert all(length % 5 == 0 for length in runs)
    assert localities.count(0) > 10  # and the guest was served all the while


def test_an_orderly_shutdown_of_the_guest_is_repeated_after_a_batch(rig: Rig) -> None:
    shutdown = build(CommandCode.SHUTDOWN, parameters=b"\0\1").data
    qemu = rig.qemu()
    qemu.command(shutdown)
    with VtpmClient(rig.kernel_path) as client:
        client.run([build(CommandCode.GET_RANDOM)])
        assert rig.swtpm.commands[-1] == (0, shutdown)
        qemu.command(GET_RANDOM)  # the guest goes on: its shutdown no longer counts
        before = len(rig.swtpm.commands)
        client.run([build(CommandCode.GET_RANDOM)])
    assert [command for _, command in rig.swtpm.commands[before:]] == [
        build(CommandCode.GET_RANDOM).data
    ]


def test_the_guests_64th_session_is_refused_so_that_ours_finds_room(rig: Rig) -> None:
    start = HEADER.pack(0x8001, 10, CommandCode.START_AUTH_SESSION)
    qemu = rig.qemu()
    for handle, expected in ((0x0300003E, None), (0x0300003F, 0x905), (0x0200003F, 0x905)):
        answer = HEADER.pack(0x8001, 14, 0) + struct.pack(">I", handle)
        rig.swtpm.answer = lambda _, command, answer=answer: (  # type: ignore[misc]
            answer if command == start else OK
        )
        assert qemu.command(start) == (answer if expected is None else error_response(expected))
    flushed = [command for _, command in rig.swtpm.commands if command[9] == 0x65]
    assert [command[10:].hex() for command in flushed] == ["0300003f", "0200003f"]


# --- the secure kernel's socket -----------------------------------------------------------------


def test_the_sockets_are_for_their_owner_only(rig: Rig) -> None:
    for path in (rig.kernel_path, rig.qemu_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_listening_twice_is_refused_and_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    server = listen(path)
    with pytest.raises(EnvironmentFault, match="already listens"):
        listen(path)
    server.close()
    listen(path).close()
    with pytest.raises(EnvironmentFault, match="cannot listen"):
        listen(tmp_path / "nowhere" / "socket")


def test_nobody_listening_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(VtpmUnavailable, match="cannot connect") as caught:
        VtpmClient(tmp_path / "none")
    assert "multiplexer" in caught.value.remedy


def test_a_refusal_ends_the_batch(rig: Rig) -> None:
    ours = build(CommandCode.GET_RANDOM)
    rig.swtpm.answer = lambda *_: error_response(0x101)
    rig.qemu()
    with VtpmClient(rig.kernel_path) as client:
        assert client.batch([ours] * 3).responses == (FAILURE,)
        with pytest.raises(TpmError, match="TPM_RC_FAILURE"):
            client.run([ours] * 3)
    assert len(rig.swtpm.commands) == 2


@pytest.mark.parametrize(
    "message",
    [
        struct.pack(">I", 0),
        struct.pack(">I", 2**31),
        struct.pack(">IB", 100, 1) + b"cut",
    ],
    ids=["empty", "too large", "cut"],
)
def test_a_malformed_message_ends_that_connection_only(rig: Rig, message: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(5)
        peer.connect(str(rig.kernel_path))
        peer.sendall(message)
        peer.shutdown(socket.SHUT_WR)
        assert peer.recv(64) == b""
    with VtpmClient(rig.kernel_path) as client:
        assert client.status()["fault"] == ""


@pytest.mark.parametrize("kind", range(10))
def test_an_unknown_or_malformed_request_is_answered(rig: Rig, kind: int) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(5)
        peer.connect(str(rig.kernel_path))
        protocol.send(peer, kind, b"\xff")
        answer = protocol.receive(peer)
    assert answer is not None
    assert answer[0] == protocol.Reply.MALFORMED


def test_connections_beyond_four_are_turned_away(rig: Rig) -> None:
    clients = [VtpmClient(rig.kernel_path) for _ in range(4)]
    for client in clients:
        client.status()
    with VtpmClient(rig.kernel_path) as fifth, pytest.raises(VtpmUnavailable):
        fifth.status()
    for client in clients:
        client.status()
        client.close()

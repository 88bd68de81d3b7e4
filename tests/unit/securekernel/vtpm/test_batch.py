"""What a batch leaves behind: nothing.  A small TPM memory with slots is scripted here."""

from __future__ import annotations

import struct

import pytest

from undercroft.base import FormatError
from undercroft.securekernel.vtpm import commands
from undercroft.securekernel.vtpm.batch import BatchRunner, StateLost
from undercroft.securekernel.vtpm.protocol import Batch, RawCommand
from undercroft.securekernel.vtpm.wire import (
    HEADER,
    Auth,
    Command,
    CommandCode,
    HandleOf,
    build,
    error_response,
)

OK = HEADER.pack(0x8001, 10, 0)
CREATE = build(CommandCode.LOAD_EXTERNAL)
START = commands.start_policy_session()


def reply(body: bytes) -> bytes:
    return HEADER.pack(0x8001, 10 + len(body), 0) + body


class SlotTpm:
    """Three object slots and three loaded sessions, as libtpms has; lowest free number first."""

    def __init__(self) -> None:
        self.objects: dict[int, str] = {}
        self.sessions: dict[int, str] = {}
        self.saved: dict[bytes, tuple[int, str]] = {}
        self.log: list[CommandCode] = []
        self.unsavable: set[int] = set()
        self.lose_contexts = False
        self.next_name = 0

    def fill(self) -> None:
        self.objects = {0x80000000 + n: f"object {n}" for n in range(3)}
        self.sessions = {0x03000000 + n: f"session {n}" for n in range(3)}

    def execute(self, command: bytes, locality: int) -> bytes:
        code = CommandCode(HEADER.unpack_from(command)[2])
        self.log.append(code)
        argument = int.from_bytes(command[10:14], "big")
        match code:
            case CommandCode.LOAD_EXTERNAL:
                return self._add("ours")
            case CommandCode.START_AUTH_SESSION:
                return self._start()
            case CommandCode.FLUSH_CONTEXT:
                gone = self.objects.pop(argument, None) or self.sessions.pop(argument, None)
                return OK if gone else error_response(0x1CB)
            case CommandCode.GET_CAPABILITY:
                first = int.from_bytes(command[14:18], "big")
                kind = self.objects if first == 0x80000000 else self.sessions
                return reply(struct.pack(f">BII{len(kind)}I", 0, 1, len(kind), *sorted(kind)))
            case CommandCode.CONTEXT_SAVE:
                return self._save(argument)
            case CommandCode.CONTEXT_LOAD:
                return self._load(command[10:])
        return OK

    def _add(self, name: str) -> bytes:
        free = [n for n in range(0x80000000, 0x80000003) if n not in self.objects]
        if not free:
            return error_response(0x902)
        self.objects[free[0]] = name
        return reply(free[0].to_bytes(4, "big"))

    def _start(self) -> bytes:
        if len(self.sessions) == 3:
            return error_response(0x903)
        taken = {handle for handle, _ in self.saved.values()} | set(self.sessions)
        handle = next(n for n in range(0x03000000, 0x03000040) if n not in taken)
        self.sessions[handle] = "ours"
        return reply(handle.to_bytes(4, "big") + b"\0\0")

    def _save(self, handle: int) -> bytes:
        if handle in self.unsavable:
            return error_response(0x901)
        self.next_name += 1
        context = struct.pack(">QIIH", self.next_name, handle, 0x40000007, 0)
        kind = self.sessions if handle in self.sessions else self.objects
        self.saved[context] = (handle, kind[handle])
        if kind is self.sessions:
            del self.sessions[handle]
        return reply(context)

    def _load(self, context: bytes) -> bytes:
        if self.lose_contexts:
            return error_response(0x1DF)
        handle, name = self.saved[context]
        if handle >> 24 == 0x03:
            del self.saved[context]
            self.sessions[handle] = name
            return reply(handle.to_bytes(4, "big"))
        return self._add(name)


def run(tpm: SlotTpm, *batch: Command) -> list[bytes]:
    return BatchRunner(tpm.execute).run(Batch.of(2, batch))


def test_what_a_batch_creates_is_gone_at_its_end() -> None:
    tpm = SlotTpm()
    responses = run(tpm, CREATE, START)
    assert [response[10:14].hex() for response in responses] == ["80000000", "03000000"]
    assert tpm.objects == tpm.sessions == {}


def test_handles_are_filled_in() -> None:
    seen: list[bytes] = []
    tpm = SlotTpm()

    def execute(command: bytes, locality: int) -> bytes:
        seen.append(command)
        return tpm.execute(command, locality)

    tpm.objects[0x80000000] = "the guest's"
    read = build(CommandCode.READ_PUBLIC, handles=[HandleOf(0)])
    BatchRunner(execute).run(Batch.of(0, [CREATE, read]))
    assert seen[1][10:14].hex() == "80000001"


def test_a_handle_of_a_command_that_returned_none_is_refused_and_all_is_cleaned() -> None:
    tpm = SlotTpm()
    random = build(CommandCode.GET_RANDOM)
    read = build(CommandCode.READ_PUBLIC, handles=[HandleOf(1)])
    with pytest.raises(FormatError, match="no handle"):
        run(tpm, CREATE, random, read)
    assert tpm.objects == {}


def test_a_session_that_ends_with_its_command_is_not_flushed() -> None:
    tpm = SlotTpm()
    use = build(CommandCode.READ_PUBLIC, auths=[Auth(HandleOf(0), last=True)])
    run(tpm, START, use)
    assert CommandCode.FLUSH_CONTEXT not in tpm.log


def test_a_session_whose_command_failed_is_flushed() -> None:
    tpm = SlotTpm()
    use = RawCommand(build(CommandCode.READ_PUBLIC).data, (), (0,))

    def execute(command: bytes, locality: int) -> bytes:
        failed = command == use.data
        return error_response(0x101) if failed else tpm.execute(command, locality)

    BatchRunner(execute).run(Batch(0, (RawCommand(START.data), use)))
    assert tpm.sessions == {}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_full_tpm_gives_room_and_gets_everything_back(count: int) -> None:
    tpm = SlotTpm()
    tpm.fill()
    before = dict(tpm.objects), dict(tpm.sessions)
    responses = run(tpm, *[CREATE] * count, START)
    assert all(response[6:10] == bytes(4) for response in responses)
    assert (tpm.objects, tpm.sessions) == before


def test_a_guest_object_comes_back_above_a_gap() -> None:
    tpm = SlotTpm()
    tpm.fill()
    del tpm.objects[0x80000000]
    before = dict(tpm.objects)
    responses = run(tpm, CREATE, CREATE, CREATE)
    assert all(response[6:10] == bytes(4) for response in responses)
    assert tpm.objects == before


def test_what_cannot_be_saved_is_left_alone() -> None:
    tpm = SlotTpm()
    tpm.fill()
    tpm.unsavable = {0x80000002}
    before = dict(tpm.objects)
    run(tpm, CREATE)
    assert tpm.objects == before
    tpm.unsavable = set(before)
    assert run(tpm, CREATE)[-1] == error_response(0x902)
    assert tpm.objects == before


def test_no_more_room_than_there_is() -> None:
    tpm = SlotTpm()
    responses = run(tpm, CREATE, CREATE, CREATE, CREATE)
    assert responses[-1] == error_response(0x902)
    assert tpm.objects == {}


def test_a_context_that_does_not_come_back_is_reported() -> None:
    tpm = SlotTpm()
    tpm.fill()
    tpm.lose_contexts = True
    with pytest.raises(StateLost, match="0x80000002"):
        run(tpm, CREATE)


@pytest.mark.parametrize("code", [0x922, 0x908, 0x90A, 0x909])
def test_a_tpm_that_asks_for_patience_gets_some(code: int) -> None:
    answers = [error_response(code), error_response(code), OK]
    random = build(CommandCode.GET_RANDOM)
    assert BatchRunner(lambda *_: answers.pop(0)).run(Batch.of(0, [random])) == [OK]
    assert answers == []


def test_patience_has_an_end() -> None:
    calls = []

    def never(command: bytes, locality: int) -> bytes:
        calls.append(command)
        return error_response(0x922)

    random = build(CommandCode.GET_RANDOM)
    assert BatchRunner(never).run(Batch.of(0, [random])) == [error_response(0x922)]
    assert len(calls) == 8

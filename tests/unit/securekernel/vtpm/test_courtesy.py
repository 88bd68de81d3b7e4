"""How long a record waits for the guest: until its PCR policy is used, and for nothing else."""

from __future__ import annotations

import threading
import time

import pytest

from undercroft.securekernel.vtpm import commands
from undercroft.securekernel.vtpm.courtesy import Courtesy
from undercroft.securekernel.vtpm.wire import Auth, Command, CommandCode, build

SESSION, OTHER, KEY = 0x0300_0000, 0x0300_0001, 0x8000_0000


def saw(courtesy: Courtesy, command: Command, *, succeeded: bool = True) -> bool:
    courtesy.watch(command.code, command.data, succeeded=succeeded)
    return courtesy.settled


def policy_pcr(session: int) -> Command:
    return build(CommandCode.POLICY_PCR, handles=[session])


@pytest.fixture
def waiting() -> Courtesy:
    courtesy = Courtesy()
    assert courtesy.settled
    assert not saw(courtesy, policy_pcr(SESSION))
    return courtesy


def unseal(session: int) -> Command:
    return commands.quote(KEY, Auth(session), b"", b"")


def test_what_the_session_authorizes_ends_the_wait(waiting: Courtesy) -> None:
    assert not saw(waiting, unseal(OTHER))
    assert saw(waiting, unseal(SESSION), succeeded=False), "a refused command uses it up as well"


@pytest.mark.parametrize("code", [CommandCode.FLUSH_CONTEXT, CommandCode.POLICY_RESTART])
def test_letting_go_of_it_ends_the_wait(waiting: Courtesy, code: CommandCode) -> None:
    assert not saw(waiting, build(code, handles=[SESSION]), succeeded=False)
    assert not saw(waiting, build(code, handles=[OTHER]))
    assert saw(waiting, build(code, handles=[SESSION]))


def test_more_policy_and_a_saved_context_do_not_end_it(waiting: Courtesy) -> None:
    assert not saw(waiting, commands.policy_secret(0x4000_000B, SESSION))
    assert not saw(waiting, build(CommandCode.POLICY_COMMAND_CODE, handles=[SESSION]))
    assert not saw(waiting, commands.context_save(SESSION))
    assert not saw(waiting, commands.pcr_extend(10, {}))


def test_every_session_is_waited_for(waiting: Courtesy) -> None:
    assert not saw(waiting, policy_pcr(OTHER))
    assert not saw(waiting, unseal(SESSION))
    assert saw(waiting, unseal(OTHER))


def test_a_refused_policy_is_not_waited_for() -> None:
    courtesy = Courtesy()
    assert saw(courtesy, policy_pcr(SESSION), succeeded=False)


def test_a_guest_with_any_number_of_sessions_is_remembered_in_little(waiting: Courtesy) -> None:
    for number in range(1000):
        saw(waiting, policy_pcr(0x0300_0000 + number))
    assert len(waiting._sessions) == 64
    waiting.end()
    assert waiting.settled


def test_the_wait_ends_with_the_use_or_at_the_deadline(waiting: Courtesy) -> None:
    waiting.wait(time.monotonic() - 1)
    assert not waiting.settled
    threading.Timer(0.05, saw, (waiting, unseal(SESSION))).start()
    waiting.wait(time.monotonic() + 60)
    assert waiting.settled

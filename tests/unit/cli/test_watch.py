"""What `undercroft watch` says, and what it can watch."""

from __future__ import annotations

import json

import pytest

from undercroft import wiring
from undercroft.base import EnvironmentFault
from undercroft.cli import watch
from undercroft.securekernel.supervise import Death, OnDeath, Word
from undercroft.testing.fakeguest import FakeGuest


class FakeTarget:
    """A target that is no guest of QEMU."""

    guest = FakeGuest(pages=8)


def test_only_a_guest_of_qemu_can_be_supervised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "open_target", lambda *_: FakeTarget)
    with pytest.raises(EnvironmentFault, match="QEMU"):
        watch.watch("dump:x")


def test_a_death_is_told_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    watch._report(Death(7, -9, 0), OnDeath.PAUSE, as_json=True)
    watch._report(Death(8, 1, 0, Word.REPLACED), OnDeath.PAUSE, as_json=True)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"secure_kernel": 7, "died": -9, "because": "unknown"}
    assert "reset" in second["because"]


@pytest.mark.parametrize(
    ("death", "policy", "held"),
    [
        (Death(7, -9, 0), OnDeath.PAUSE, True),
        (Death(7, -9, 0), OnDeath.LAPSE, False),
        (Death(7, 1, 0, Word.BOOTING), OnDeath.PAUSE, False),
    ],
)
def test_a_person_is_told_whether_the_guest_stands(
    capsys: pytest.CaptureFixture[str], death: Death, policy: OnDeath, held: bool
) -> None:
    watch._report(death, policy, as_json=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "secure kernel (process 7) ended" in said
    assert ("stands still" in said) is held

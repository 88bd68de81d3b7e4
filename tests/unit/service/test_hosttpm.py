"""The host's TPM, as a real swtpm that stands in for one, vouching for a simulated guest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from undercroft.appraise.pipeline import verify_evidence
from undercroft.base import EnvironmentFault, VerificationError
from undercroft.formats.evidence import Evidence, Trust
from undercroft.formats.evidence.hostlayer import HostTpmKind
from undercroft.service import hosttpm
from undercroft.service.hosttpm import HostTpm, accept_host, open_host_tpm, trust_host
from undercroft.testing.guest import SimulatedGuest
from undercroft.verify.deepquote import VerifiedHost

GUEST = SimulatedGuest()
CHALLENGE = GUEST.challenge()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def host(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostTpm]:
    monkeypatch.setattr(hosttpm, "DEVICE", Path("/nonexistent"))
    with open_host_tpm(home) as opened:
        yield opened


def vouched(host: HostTpm) -> Evidence:
    evidence = GUEST.evidence(CHALLENGE)
    return replace(evidence, host_layer=host.vouch(evidence, CHALLENGE.nonce))


def verified(evidence: Evidence, trust: Trust) -> VerifiedHost:
    found = verify_evidence(evidence, trust, CHALLENGE).host
    assert found is not None
    return found


def test_it_vouches_and_counts(host: HostTpm, home: Path) -> None:
    trust = trust_host(GUEST.trust, host, home)
    first, second = vouched(host), vouched(host)
    one, two = verified(first, trust), verified(second, trust)
    assert two.counter == one.counter + 1
    assert one.claimed_tpm is HostTpmKind.STAND_IN


def test_what_was_accepted_is_not_accepted_again(host: HostTpm, home: Path) -> None:
    evidence = vouched(host)
    verified(evidence, trust_host(GUEST.trust, host, home))
    accept_host(evidence, home)
    with pytest.raises(VerificationError) as caught:
        verified(evidence, trust_host(GUEST.trust, host, home))
    assert caught.value.check == "host.rollback"
    verified(vouched(host), trust_host(GUEST.trust, host, home))


def test_the_counter_goes_on_after_the_tpm_was_off(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosttpm, "DEVICE", Path("/nonexistent"))
    counters = []
    for _ in range(2):
        with open_host_tpm(home) as host:
            counters.append(verified(vouched(host), trust_host(GUEST.trust, host, home)).counter)
    assert counters[1] == counters[0] + 1


def test_another_tpm_under_the_same_name_is_told(host: HostTpm, home: Path) -> None:
    pin = home / "host-tpm" / "ak.pub"
    pinned = pin.read_bytes() if pin.is_file() else host.ak_public()
    pin.write_bytes(b"another")
    with pytest.raises(EnvironmentFault, match="another key"):
        trust_host(GUEST.trust, host, home)
    pin.write_bytes(pinned)


def test_nothing_is_remembered_of_evidence_without_a_host(tmp_path: Path) -> None:
    accept_host(GUEST.evidence(CHALLENGE), tmp_path)
    assert list(tmp_path.iterdir()) == []

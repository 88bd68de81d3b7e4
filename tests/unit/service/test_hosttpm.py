"""The host's TPM, as a real swtpm that stands in for one, vouching for a simulated guest."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from undercroft import wiring
from undercroft.appraise.host import HostRules, appraise_host
from undercroft.appraise.pipeline import verify_evidence
from undercroft.base import EnvironmentFault, HashAlgorithm, Outcome, VerificationError
from undercroft.formats.ear import Tier
from undercroft.formats.evidence import Evidence, Trust
from undercroft.formats.evidence.hostlayer import HostTpmKind
from undercroft.formats.ima import parse_binary
from undercroft.securekernel.vtpm import commands
from undercroft.service import hosttpm
from undercroft.service.hosttpm import (
    HostLogs,
    HostTpm,
    accept_host,
    open_host_tpm,
    trust_host,
)
from undercroft.testing.guest import SimulatedGuest, encode_log, standard_boot
from undercroft.testing.tpm_vendor import SimulatedTpmVendor
from undercroft.verify.deepquote import VerifiedHost

GUEST = SimulatedGuest()
CHALLENGE = GUEST.challenge()


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


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
    trust = trust_host(GUEST.trust, host, home, now())
    first, second = vouched(host), vouched(host)
    one, two = verified(first, trust), verified(second, trust)
    assert two.counter == one.counter + 1
    assert one.claimed_tpm is HostTpmKind.STAND_IN


def test_what_was_accepted_is_not_accepted_again(host: HostTpm, home: Path) -> None:
    evidence = vouched(host)
    verified(evidence, trust_host(GUEST.trust, host, home, now()))
    accept_host(evidence, home)
    with pytest.raises(VerificationError) as caught:
        verified(evidence, trust_host(GUEST.trust, host, home, now()))
    assert caught.value.check == "host.rollback"
    verified(vouched(host), trust_host(GUEST.trust, host, home, now()))


def test_the_counter_goes_on_after_the_tpm_was_off(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosttpm, "DEVICE", Path("/nonexistent"))
    counters = []
    for _ in range(2):
        with open_host_tpm(home) as host:
            counters.append(
                verified(vouched(host), trust_host(GUEST.trust, host, home, now())).counter
            )
    assert counters[1] == counters[0] + 1


def test_another_tpm_under_the_same_name_is_told(host: HostTpm, home: Path) -> None:
    pin = home / "host-tpm" / "ak.pub"
    pinned = pin.read_bytes() if pin.is_file() else host.ak_public()
    pin.write_bytes(b"another")
    with pytest.raises(EnvironmentFault, match="another key"):
        trust_host(GUEST.trust, host, home, now())
    pin.write_bytes(pinned)


def test_nothing_is_remembered_of_evidence_without_a_host(tmp_path: Path) -> None:
    accept_host(GUEST.evidence(CHALLENGE), tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- the host itself ----------------------------------------------------------------------------


def test_its_key_is_tied_to_a_certified_ek(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosttpm, "DEVICE", Path("/nonexistent"))
    with open_host_tpm(tmp_path) as host:
        trust = trust_host(GUEST.trust, host, tmp_path, now())
        assert trust.host_ek_certificate == host.ek_certificate()
        again = trust_host(GUEST.trust, host, tmp_path, now())
        assert again.host_ek_certificate == trust.host_ek_certificate
        (tmp_path / "host-tpm" / "ek.der").unlink()
        hidden = tmp_path / "vtpm-ca"
        hidden.rename(tmp_path / "elsewhere")
        assert trust_host(GUEST.trust, host, tmp_path, now()).host_ek_certificate == b""
        other = SimulatedTpmVendor().root.certificate
        assert other is not None
        hidden.mkdir()
        (hidden / "root.der").write_bytes(other.der)
        with pytest.raises(VerificationError):
            trust_host(GUEST.trust, host, tmp_path, now())


def measured(host: HostTpm, machine: SimulatedGuest) -> None:
    """Do to the TPM what a host's firmware and kernel do when it boots as ``machine``."""
    bank = HashAlgorithm.SHA256
    for one in machine.boot:
        extend = commands.pcr_extend(one.pcr, {bank: bank.hash(one.measured)})
        commands.empty(extend, host._run(extend))
    for data in parse_binary(machine.ima.binary).template_data:
        extend = commands.pcr_extend(10, {bank: bank.hash(data)})
        commands.empty(extend, host._run(extend))


def test_its_boot_log_and_file_list_are_in_the_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TPM that boots as a host would; no machine of ours has a TPM and logs of its own."""
    machine = SimulatedGuest(name="host", boot=standard_boot(secure_boot=False))
    monkeypatch.setattr(hosttpm, "SECURITY", tmp_path / "security")
    for folder in ("tpm0", "ima"):
        (tmp_path / "security" / folder).mkdir(parents=True)
    logs = HostLogs.of_this_machine()
    logs.eventlog.write_bytes(encode_log(machine.boot, [HashAlgorithm.SHA256]))
    logs.ima_list.write_bytes(machine.ima.binary)
    with hosttpm._stand_in(tmp_path) as transport:
        host = HostTpm(transport, HostTpmKind.HARDWARE, logs)
        measured(host, machine)
        evidence = vouched(host)
        trust = trust_host(GUEST.trust, host, tmp_path, now())
    found = verify_evidence(evidence, trust, CHALLENGE)
    assert found.host_evidence is not None
    assert found.host_evidence.log is not None
    assert found.host_evidence.ima is not None
    rules = HostRules(machine.predicted(), wiring.shipped_policy("direct-boot"))
    judged = {j.finding.id: j for j in appraise_host(found, rules)}
    assert judged["host.boot"].finding.outcome is Outcome.PASS
    assert judged["host.ima.files"].finding.outcome is Outcome.PASS
    assert all(j.tier in (None, Tier.AFFIRMING) for j in judged.values())


def test_a_host_that_measures_all_the_time_is_an_error(
    host: HostTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host._logs = HostLogs(tmp_path / "none", tmp_path / "list")
    counter = itertools.count()
    monkeypatch.setattr(hosttpm, "_read", lambda path: b"%d" % next(counter) if path else None)
    with pytest.raises(EnvironmentFault, match="all the time"):
        vouched(host)


def test_a_log_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    assert hosttpm._read(tmp_path / "none") is None
    assert hosttpm._read(None) is None
    (tmp_path / "empty").write_bytes(b"")
    assert hosttpm._read(tmp_path / "empty") is None
    with pytest.raises(EnvironmentFault, match="cannot be read"):
        hosttpm._read(tmp_path)

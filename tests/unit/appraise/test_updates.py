"""Packages that are not of today: how long, how many files, and both states of an upgrade."""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Mapping
from dataclasses import replace

import pytest

from undercroft.appraise.ima_rules import rules_of
from undercroft.appraise.model import Appraisal, Judgement
from undercroft.appraise.pipeline import Rulebook, appraise, judge_of, verify_evidence
from undercroft.appraise.steady import SteadySession
from undercroft.base import Grade, Outcome
from undercroft.formats.ear import Tier
from undercroft.formats.ima import LinuxHash
from undercroft.policy import Action, FileRules, Policy, Requirement, UpdateRules, parse_policy
from undercroft.reference.archive import FileArchive, FileFlag, PackageRecord, parse_file_archive
from undercroft.reference.archive_build import PackageFiles, build_file_archive
from undercroft.reference.model import PackageState, ReferenceSet
from undercroft.testing.guest import NOW, SimulatedGuest

DEFAULT = replace(
    parse_policy(
        (importlib.resources.files("undercroft.policy") / "policies" / "default.toml").read_text()
    ),
    updates=UpdateRules(14, Action.WARN, 3, Action.CONTRAINDICATE),
)
DAY = 24 * 3600
LIBC, BASH, CONF = "/usr/lib/libc.so.6", "/usr/bin/bash", "/etc/bash.bashrc"


def package(
    name: str, version: str, files: Mapping[str, bytes], flags: FileFlag = FileFlag.NONE
) -> PackageFiles:
    rows = ((path.encode(), hashlib.sha256(text).digest(), flags) for path, text in files.items())
    return PackageFiles(PackageRecord(name, version), tuple(rows))


TABLE = parse_file_archive(
    build_file_archive(
        (
            package("libc6", "1", {LIBC: b"old"}),
            package("libc6", "2", {LIBC: b"new"}),
            package("bash", "5", {BASH: b"bash"}),
            package("bash-conf", "5", {CONF: b"shipped"}, FileFlag.CONFFILE),
            package("linux-image", "6.1.192-2", {"/boot/vmlinuz": b"vmlinuz"}),
        ),
        LinuxHash.SHA256,
    )
)


def state(days: int, *advisories: str, package: str = "libc6", version: str = "1") -> PackageState:
    return PackageState(package, version, NOW - days * DAY, "2", advisories)


def with_files(files: Mapping[str, bytes]) -> SimulatedGuest:
    return SimulatedGuest(files=files)


def references(guest: SimulatedGuest, *states: PackageState) -> ReferenceSet:
    """The guest's boot and kernel, and files from the table alone."""
    return replace(guest.references, files={}, archives=(TABLE.id.hex(),), states=states)


def judged(guest: SimulatedGuest, known: ReferenceSet, policy: Policy = DEFAULT) -> Appraisal:
    challenge = guest.challenge()
    verified = verify_evidence(guest.evidence(challenge), guest.trust, challenge)
    return appraise(verified, known, policy, NOW, judge=judge_of(known, policy, [TABLE]))


def told(appraisal: Appraisal, name: str = "updates.package") -> list[Judgement]:
    return [j for j in appraisal.judgements if j.finding.id == name]


def test_files_of_packages_are_known() -> None:
    guest = with_files({LIBC: b"new", BASH: b"bash"})
    appraisal = judged(guest, references(guest))
    assert appraisal.verdict is Tier.AFFIRMING
    assert not told(appraisal, "updates.summary")


def test_everything_of_today() -> None:
    guest = with_files({LIBC: b"new", BASH: b"bash"})
    appraisal = judged(guest, references(guest, state(30)))
    assert appraisal.verdict is Tier.AFFIRMING
    (summary,) = told(appraisal, "updates.summary")
    assert summary.finding.summary == "everything that ran is of today"
    (files,) = told(appraisal, "ima.files")
    assert files.finding.details["grades"] == {"package": 2}


@pytest.mark.parametrize(
    ("states", "tier", "outcome"),
    [
        ([state(13)], None, Outcome.PASS),
        ([state(14)], Tier.WARNING, Outcome.UNKNOWN),
        ([state(2, "DSA-1")], None, Outcome.PASS),
        ([state(3, "DSA-1")], Tier.CONTRAINDICATED, Outcome.FAIL),
        ([PackageState("libc6", "1", 0, "", ("DSA-1",))], None, Outcome.PASS),
    ],
)
def test_an_old_version_by_its_age(
    states: list[PackageState], tier: Tier | None, outcome: Outcome
) -> None:
    guest = with_files({LIBC: b"old"})
    appraisal = judged(guest, references(guest, *states))
    (judgement,) = told(appraisal)
    assert (judgement.tier, judgement.finding.outcome) == (tier, outcome)
    assert appraisal.verdict is (tier or Tier.AFFIRMING)
    details = judgement.finding.details
    assert (details["package"], details["version"], details["files"]) == ("libc6", "1", 1)
    (summary,) = told(appraisal, "updates.summary")
    assert summary.finding.details["not-current"] == 1
    assert summary.tier is (tier or Tier.AFFIRMING)


def test_an_advisory_without_a_date_counts_at_once_where_no_days_are_allowed() -> None:
    guest = with_files({LIBC: b"old"})
    strict = replace(DEFAULT, updates=UpdateRules())
    known = references(guest, PackageState("libc6", "1", 0, "", ("DSA-1",)))
    assert judged(guest, known, strict).verdict is Tier.CONTRAINDICATED


def test_between_upgrade_and_reboot_both_versions_are_explained() -> None:
    guest = with_files({BASH: b"bash"})
    guest.ima.measure(LIBC, b"old")
    guest.ima.measure(LIBC, b"new")
    appraisal = judged(guest, references(guest, state(1)))
    assert appraisal.verdict is Tier.AFFIRMING
    (judgement,) = told(appraisal)
    assert judgement.finding.details["other-versions-that-ran"] == ["2"]
    assert "the old one ends when the machine reboots" in judgement.finding.summary
    (files,) = told(appraisal, "ima.files")
    assert files.finding.details["kinds"] == {"known": 3, "boot-aggregate": 1}


def test_a_superseded_kernel() -> None:
    guest = with_files({BASH: b"bash"})
    old = state(20, package="linux-image", version="6.1.192-2")
    (judgement,) = told(judged(guest, references(guest, old)))
    assert (judgement.tier, judgement.finding.details["package"]) == (Tier.WARNING, "linux-image")


def test_a_running_guest_is_judged_by_the_same_states() -> None:
    guest = with_files({BASH: b"bash"})
    known = references(guest, state(1))
    session = SteadySession(guest.trust, Rulebook.of(known, DEFAULT, [TABLE]))
    challenge = guest.challenge()
    session.first(guest.evidence(challenge), challenge, NOW)
    for content in (b"new", b"old"):
        offset = session.ima_offset
        guest.ima.measure(LIBC, content)
        challenge = guest.challenge(nonce=content * 8)
        rest = guest.evidence(challenge, ima_list=guest.ima.binary[offset:], eventlog=None)
        appraisal = session.next(rest, challenge, NOW)
        assert appraisal.verdict is Tier.AFFIRMING
    (judgement,) = told(appraisal)
    assert judgement.finding.details["other-versions-that-ran"] == ["2"]


def test_the_tables_have_to_be_the_ones_that_are_named() -> None:
    guest = with_files({BASH: b"bash"})
    with pytest.raises(ValueError, match="not the file tables"):
        judge_of(references(guest), DEFAULT)
    with pytest.raises(ValueError, match="not the file tables"):
        Rulebook.of(references(guest), DEFAULT)


# --- paths ---------------------------------------------------------------------------------------


def by_path(files: Mapping[str, bytes], **rules: object) -> Appraisal:
    guest = with_files({BASH: b"bash", **files})
    changed = replace(FileRules(Requirement.REQUIRED), **rules)  # type: ignore[arg-type]
    return judged(guest, references(guest), replace(DEFAULT, files=changed))


def test_what_may_be_unknown_at_a_path() -> None:
    unknown = {"/opt/tool": b"?", "/tmp/x": b"?"}
    assert by_path(unknown).verdict is Tier.CONTRAINDICATED
    appraisal = by_path(unknown, unknown_at=(("/opt/*", None), ("/tmp/*", Action.WARN)))
    assert appraisal.verdict is Tier.WARNING
    (judgement,) = told(appraisal, "ima.file")
    assert judgement.finding.details["path"] == "/tmp/x"
    assert by_path({"/opt/tool": b"?"}, unknown_at=(("/opt/*", None),)).verdict is Tier.AFFIRMING
    # A known path with another content is not an unknown one.
    evil = by_path({LIBC: b"evil"}, unknown_at=(("/*", None),))
    assert evil.verdict is Tier.CONTRAINDICATED


def test_copies_of_known_files() -> None:
    copied = {"/init": b"bash"}
    assert by_path(copied).verdict is Tier.CONTRAINDICATED
    assert by_path(copied, elsewhere=("/init",)).verdict is Tier.AFFIRMING
    assert by_path({"/init": b"evil"}, elsewhere=("/init",)).verdict is Tier.CONTRAINDICATED


def test_a_conffile_that_was_changed() -> None:
    changed = {CONF: b"mine"}
    assert by_path(changed).verdict is Tier.CONTRAINDICATED
    appraisal = by_path(changed, conffiles=Action.WARN)
    assert appraisal.verdict is Tier.WARNING
    (judgement,) = told(appraisal, "ima.file")
    assert judgement.finding.outcome is Outcome.UNKNOWN
    assert "changed by an administrator" in judgement.finding.summary
    assert by_path({CONF: b"shipped"}, conffiles=Action.WARN).verdict is Tier.AFFIRMING


def test_each_of_these_rules_is_in_the_judge_s_name() -> None:
    def judge_id(**rules: object) -> bytes:
        files = replace(FileRules(Requirement.REQUIRED), **rules)  # type: ignore[arg-type]
        policy = replace(DEFAULT, files=files)
        assert rules_of(policy).conffiles is files.conffiles
        return judge_of(ReferenceSet("x"), policy).id

    ids = {
        judge_id(),
        judge_id(unknown_at=(("/x", None),)),
        judge_id(elsewhere=("/x",)),
        judge_id(conffiles=Action.WARN),
    }
    assert len(ids) == 4


def test_observed_values_stay_observed() -> None:
    observed = PackageFiles(
        PackageRecord("seen", "1", grade=Grade.OBSERVED),
        ((BASH.encode(), hashlib.sha256(b"bash").digest(), FileFlag.NONE),),
    )
    table: FileArchive = parse_file_archive(build_file_archive([observed], LinuxHash.SHA256))
    guest = with_files({BASH: b"bash"})
    known = replace(guest.references, files={}, archives=(table.id.hex(),))
    challenge = guest.challenge()
    verified = verify_evidence(guest.evidence(challenge), guest.trust, challenge)
    judge = judge_of(known, DEFAULT, [table])
    assert appraise(verified, known, DEFAULT, NOW, judge=judge).verdict is Tier.WARNING

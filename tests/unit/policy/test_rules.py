"""What a policy may say beyond the layers: read, written, refused, combined, put into words."""

from __future__ import annotations

import contextlib
import importlib.resources
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.base import FormatError, Grade
from undercroft.policy import (
    Action,
    BootRules,
    Expression,
    FileRules,
    Policy,
    Requirement,
    RunningRules,
    SecureBootMode,
    SecureKernelRules,
    UpdateRules,
    all_of,
    encode_policy,
    parse_policy,
)
from undercroft.policy.rules import MAX_EXPRESSIONS, evaluate, release_numbers
from undercroft.policy.words import gaps, in_words

SHIPPED = importlib.resources.files("undercroft.policy") / "policies"
DEFAULT_TEXT = (SHIPPED / "default.toml").read_text()
DEFAULT = parse_policy(DEFAULT_TEXT)

WEB = """
format = "undercroft.policy/1"
extends = "default"
id = "web"
serial = 7
expires = 2027-01-01T00:00:00Z
boot = { secure-boot-mode = "deployed", authorities = ["CN=Debian*"], sbat = { shim = 4 } }
[files]
unknown-at = { "/opt/*" = "state", "/srv/*" = "warn" }
elsewhere = ["/init"]
conffiles = "warn"
[updates]
superseded-days = 30
[running]
kernel-minimum = "6.1.0-56"
modules = ["virtio_*"]
notable = []
bpf = ["tag:00"]
devices = ["virtio-*"]
otherwise = "warn"
[[rules]]
id = "quiet-kernel"
expect = "findings['kernel.notable'].details.notable.size() == 0"
when = "guest.startsWith('web')"
otherwise = "insufficient"
why = "something traces the kernel"
suggest = "see who"
"""


def others(texts: Mapping[str, str]) -> Callable[[str], str | None]:
    return lambda name: {"default": DEFAULT_TEXT, **texts}.get(name)


def web(old: str = "", new: str = "") -> Policy:
    assert old in WEB
    return parse_policy(WEB.replace(old, new) if old else WEB, others({}))


def test_a_policy_that_says_everything() -> None:
    policy = web()
    assert (policy.id, policy.serial, policy.expires) == ("web", 7, 1_798_761_600)
    assert policy.boot.pcrs == DEFAULT.boot.pcrs
    assert policy.boot.secure_boot_mode is SecureBootMode.DEPLOYED
    assert policy.boot.authorities == ("CN=Debian*",)
    assert policy.boot.sbat == (("shim", 4),)
    assert policy.files.unknown_at == (("/opt/*", None), ("/srv/*", Action.WARN))
    assert (policy.files.elsewhere, policy.files.conffiles) == (("/init",), Action.WARN)
    assert policy.updates == replace(DEFAULT.updates, superseded_days=30)
    assert policy.running == RunningRules(
        "6.1.0-56", ("virtio_*",), (), ("tag:00",), ("virtio-*",), Action.WARN
    )
    (rule,) = policy.rules
    assert (rule.id, rule.otherwise) == ("quiet-kernel", Action.INSUFFICIENT)


def test_it_is_written_as_it_is_read() -> None:
    policy = web()
    assert parse_policy(encode_policy(policy)) == policy
    assert parse_policy(encode_policy(DEFAULT)) == DEFAULT
    assert "running" not in encode_policy(DEFAULT)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("serial = 7", "serial = 8"),
        ("2027-01-01", "2028-01-01"),
        ('secure-boot-mode = "deployed"', 'secure-boot-mode = "user"'),
        ('["CN=Debian*"]', "[]"),
        ("shim = 4", "shim = 5"),
        ('"/opt/*" = "state"', '"/opt/*" = "warn"'),
        ('["/init"]', '["/init", "/x"]'),
        ('conffiles = "warn"', 'conffiles = "insufficient"'),
        ("superseded-days = 30", "superseded-days = 31"),
        ("notable = []", ""),
        ("size() == 0", "size() == 1"),
    ],
)
def test_another_rule_is_another_policy(old: str, new: str) -> None:
    other = web(old, new)
    assert other.identifier != web().identifier
    assert parse_policy(encode_policy(other)).identifier == other.identifier


def test_no_authority_is_not_no_rule() -> None:
    none = replace(DEFAULT, boot=replace(DEFAULT.boot, authorities=()))
    assert none.identifier != DEFAULT.identifier
    assert parse_policy(encode_policy(none)) == none


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("serial = 7", "serial = -1", "count up"),
        ("2027-01-01T00:00:00Z", "2027-01-01T00:00:00", "without its zone"),
        ("2027-01-01T00:00:00Z", "1960-01-01T00:00:00Z", "count up"),
        ('"deployed"', '"setup"', "enum"),
        ('["CN=Debian*"]', '["a", "a"]', "authority is named twice"),
        ("shim = 4", "shim = 0", "above 0"),
        ('"/opt/*" = "state"', '"opt" = "state"', "begins with /"),
        ('"/opt/*" = "state"', '"" = "state"', "empty pattern"),
        ('"/opt/*" = "state"', '"/opt/*" = "pass"', "not a valid Action"),
        ('["/init"]', '["init"]', "begins with /"),
        ('["/init"]', '["/init", "/init"]', "named twice"),
        ("superseded-days = 30", "superseded-days = 4000", "days are"),
        ("superseded-days = 30", "superseded-days = -1", "days are"),
        ('"6.1.0-56"', '"new"', "kernel release"),
        ('["virtio_*"]', '["a", "a"]', "stands twice"),
        ('["virtio_*"]', '[""]', "is empty"),
        ('["tag:00"]', '["00"]', "named by tag"),
        ('id = "quiet-kernel"', 'id = "Quiet Kernel"', "not a rule's id"),
        ("findings['kernel.notable']", "finding['kernel.notable']", "there is no finding"),
        (".size() == 0", ".sise() == 0", "no function sise"),
        (".size() == 0", ".size() ==", "not CEL"),
        ("guest.startsWith('web')", "guest.startsWith('web", "not CEL"),
        (".size() == 0", ".all(a, a.all(b, b.all(c, c.all(d, d))))", "loops"),
        (".size() == 0", ".size() == " + "0" * 1000, "longer than"),
        ("[[rules]]", "[[rules]]\nid='quiet-kernel'\nexpect='true'\n[[rules]]", "named twice"),
        ("[[rules]]", "[[rules]]\nid='a'\n[[rules]]", "expect"),
        ("[[rules]]", "[[rules]]\nid='a'\nexpect='true'\nelse='x'\n[[rules]]", "unknown field"),
    ],
)  # fmt: skip
def test_refused(old: str, new: str, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        web(old, new)


def test_too_many_rules() -> None:
    rules = tuple(Expression(f"r{n}", "true") for n in range(MAX_EXPRESSIONS + 1))
    with pytest.raises(ValueError, match="more than"):
        replace(DEFAULT, rules=rules)


# --- extends -------------------------------------------------------------------------------------

HEAD = 'format = "undercroft.policy/1"\n'


def test_rules_of_both_are_kept() -> None:
    base = f'{HEAD}extends = "default"\nid = "base"\n[[rules]]\nid = "one"\nexpect = "true"\n'
    top = f'{HEAD}extends = "base"\nid = "top"\n[[rules]]\nid = "two"\nexpect = "true"\n'
    policy = parse_policy(top, others({"base": base}))
    assert [rule.id for rule in policy.rules] == ["one", "two"]


def test_a_circle_is_refused() -> None:
    texts = {
        "a": f'{HEAD}extends = "b"\nid = "a"\n',
        "b": f'{HEAD}extends = "c"\nid = "b"\n',
        "c": f'{HEAD}extends = "a"\nid = "c"\n',
    }
    with pytest.raises(FormatError, match=r"in a circle .*a -> b -> c -> a"):
        parse_policy(f'{HEAD}extends = "a"\nid = "top"\n', others(texts))
    with pytest.raises(FormatError, match="in a circle"):
        parse_policy(f'{HEAD}extends = "x"\n', others({"x": f'{HEAD}extends = "x"\n'}))


def test_a_long_chain_is_refused() -> None:
    texts = {f"p{n}": f'{HEAD}extends = "p{n + 1}"\n' for n in range(100)}
    with pytest.raises(FormatError, match="a chain of more than"):
        parse_policy(f'{HEAD}extends = "p0"\n', others(texts))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f'{HEAD}extends = "nobody"\n', "not here"),
        (f"{HEAD}extends = 5\n", "names one policy"),
        ('extends = "default"\n', "another format"),
        (f'{HEAD}extends = "default"\nboot = 5\n', "Expected"),
        (f'{HEAD}extends = "default"\nquote = {{ bank = [] }}\n', "unknown field"),
        (f'{HEAD}extends = "bad"\n', "not TOML"),
        (f'{HEAD}extends = "huge"\n', "too long"),
        (f'{HEAD}extends = "old"\n', "another format"),
    ],
)
def test_what_cannot_be_extended(text: str, reason: str) -> None:
    texts = {"bad": "x = [", "huge": "#" * 70_000, "old": 'format = "undercroft.policy/0"\n'}
    with pytest.raises(FormatError, match=reason):
        parse_policy(text, others(texts))
    with pytest.raises(FormatError):
        parse_policy(text)


# --- all_of --------------------------------------------------------------------------------------


def test_what_every_policy_allows_is_allowed() -> None:
    one = replace(
        DEFAULT,
        boot=replace(
            DEFAULT.boot, secure_boot_mode=SecureBootMode.USER, authorities=("a", "b"),
            sbat=(("shim", 3), ("grub", 2)),
        ),
        running=RunningRules("6.1.0-9", ("a", "b"), None, None, None, Action.WARN),
        updates=UpdateRules(14, Action.WARN, 3, Action.CONTRAINDICATE),
        rules=(Expression("one", "true"),),
        serial=3,
        expires=100,
    )  # fmt: skip
    two = replace(
        one,
        boot=replace(
            one.boot, secure_boot_mode=SecureBootMode.DEPLOYED, authorities=("b", "c"),
            sbat=(("shim", 4),),
        ),
        running=RunningRules("6.1.0-56", ("b",), ("x",), None, None, Action.INSUFFICIENT),
        updates=UpdateRules(30, Action.INSUFFICIENT, 1, Action.WARN),
        rules=(Expression("one", "true"), Expression("two", "true")),
        serial=5,
        expires=0,
    )  # fmt: skip
    both = all_of("both", [one, two])
    assert both.boot.secure_boot_mode is SecureBootMode.DEPLOYED
    assert both.boot.authorities == ("b",)
    assert both.boot.sbat == (("shim", 4), ("grub", 2))
    assert both.running == RunningRules("6.1.0-56", ("b",), ("x",), None, None, Action.INSUFFICIENT)
    assert both.updates == UpdateRules(14, Action.INSUFFICIENT, 1, Action.CONTRAINDICATE)
    assert [rule.id for rule in both.rules] == ["one", "two"]
    assert (both.serial, both.expires) == (5, 100)
    same = all_of("same", [DEFAULT, DEFAULT])
    assert (same.boot.authorities, same.boot.secure_boot_mode) == (None, None)


def test_two_rules_of_one_id_cannot_be_put_together() -> None:
    one, two = (replace(DEFAULT, rules=(Expression("x", text),)) for text in ("true", "false"))
    with pytest.raises(ValueError, match="rule is named twice"):
        all_of("both", [one, two])


def test_paths_of_one_policy_fall_when_another_does_not_name_them() -> None:
    lax = FileRules(
        Requirement.REQUIRED, Action.WARN, unknown_at=(("/a", None), ("/b", Action.CONTRAINDICATE)),
        elsewhere=("/init", "/x"), conffiles=Action.WARN,
    )  # fmt: skip
    strict = FileRules(Requirement.REQUIRED, Action.WARN, elsewhere=("/init",))
    both = all_of("both", [replace(DEFAULT, files=lax), replace(DEFAULT, files=strict)]).files
    assert both.unknown_at == ()
    assert both.unknown is Action.CONTRAINDICATE  # what /b does
    assert (both.elsewhere, both.conffiles) == (("/init",), Action.CONTRAINDICATE)
    alike = all_of("alike", [replace(DEFAULT, files=lax)] * 2).files
    assert (alike.unknown_at, alike.unknown) == (lax.unknown_at, Action.WARN)


# --- words ---------------------------------------------------------------------------------------


def test_every_rule_in_words() -> None:
    rows = dict(in_words(web()))
    assert "Secure Boot has to be on" in rows["boot.secure-boot"]
    for rule in ("serial", "expires", "boot.secure-boot-mode", "boot.authorities", "boot.sbat",
                 "files.unknown-at", "files.elsewhere", "running.modules", "running.notable",
                 "running.otherwise", "rules.quiet-kernel", "updates", "result"):  # fmt: skip
        assert rows[rule]
    assert rows["running.notable"] == "allowed: none"
    plain = dict(in_words(DEFAULT))
    assert "running.otherwise" not in plain
    files = replace(
        DEFAULT.files, violations_at=(("/log", None),), buffers=((".ima", Action.WARN),),
        exclude=("/run/*",), keys=("k",),
    )  # fmt: skip
    rows = dict(in_words(replace(DEFAULT, files=files)))
    assert rows["files.violations-at"] == "... at /log is stated"
    assert {"files.buffers", "files.exclude", "files.keys"} <= rows.keys()


def test_what_a_policy_leaves_open() -> None:
    assert len(gaps(DEFAULT)) == 1
    assert gaps(web()) == ("/opt/*: only stated",)
    nothing = replace(
        DEFAULT,
        boot=BootRules((), Requirement.NOT_REQUIRED),
        files=FileRules(Requirement.NOT_REQUIRED, exclude=("/run/*",)),
        secure_kernel=SecureKernelRules(()),
        reference=replace(DEFAULT.reference, affirm=(Grade.OBSERVED,)),
    )
    text = "\n".join(gaps(nothing))
    for words in ("everything", "PCR 0, 1", "Secure Boot may be off", "need not be shown",
                  "/run/*", "running kernel", "learned by observation", "old kernel"):  # fmt: skip
        assert words in text
    rows = dict(in_words(nothing))
    assert rows["boot.secure-boot"] == "Secure Boot may be off"
    assert rows["files.ima"] == "an IMA list may be missing"


@pytest.mark.parametrize(
    ("release", "numbers"),
    [("6.1.0-56-cloud-amd64", (6, 1, 0, 56)), ("6.12.1+deb13-amd64", (6, 12, 1)), ("x", ())],
)
def test_the_numbers_of_a_release(release: str, numbers: tuple[int, ...]) -> None:
    assert release_numbers(release) == numbers


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_a_text_says_only_a_format_error_comes_of_it(data: st.DataObject) -> None:
    text = WEB
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        cut = data.draw(st.integers(0, 3))
        new = data.draw(
            st.sampled_from(["", '"', "'", "[", "]", "{", "=", "9", "-", "é", "\n", "("])
        )
        text = text[:at] + new + text[at + cut :]
    try:
        policy = parse_policy(text, others({}))
    except FormatError:
        return
    assert parse_policy(encode_policy(policy)) == policy


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab01.,:?!()[]{}'\"\\+-*/%<>=&| é\n", max_size=40))
def test_whatever_an_expression_says_it_is_cel_or_refused(text: str) -> None:
    try:
        rule = Expression("r", text or "true")
    except ValueError:
        return
    with contextlib.suppress(FormatError):
        assert evaluate(rule.expect, {"findings": {}, "every": [], "guest": "g"}) in (True, False)

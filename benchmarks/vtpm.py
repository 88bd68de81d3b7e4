"""The TPM multiplexer: what it costs the guest, and how fast the secure kernel can quote.

``quote_rate_ratio`` compares with the same TPM commands straight to swtpm;
``quote_rate_ratio_one_command`` with TPM2_Quote alone, its key loaded and open to anyone.
``challenge_ms`` is a whole deep quote: guest quote with the log of 100 records, host quote and
counter, and the evidence with logs of 1 MiB; the secure kernel's look at the guest is not in it.

Two swtpm processes with the same state: one reached directly, one through the multiplexer (as its
own process, as in production).  Samples alternate between the two, so that the machine's noise
falls on both.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.figures import Against, Figure, from_samples
from undercroft.base import HashAlgorithm, Nonce
from undercroft.formats.evidence import Evidence, QuoteItem, encode_evidence, qualifying_data
from undercroft.securekernel.vtpm import KeyType, LaunchConfig, VtpmClient, commands
from undercroft.securekernel.vtpm.batch import BatchRunner
from undercroft.securekernel.vtpm.keys import SECURE_KERNEL_LOCALITY, ak_template
from undercroft.securekernel.vtpm.protocol import Batch
from undercroft.securekernel.vtpm.upstream import Upstream
from undercroft.securekernel.vtpm.wire import (
    RH_PLATFORM,
    Auth,
    Command,
    CommandCode,
    HandleOf,
    build,
)
from undercroft.service.hosttpm import HostTpm, open_host_tpm
from undercroft.testing.vtpm import HypervisorSide, SwtpmProcess, wait_for

SELECTION = {HashAlgorithm.SHA256: tuple(range(24))}
NONCE = bytes(32)
ENCODED = commands.encode_selection(SELECTION)
COMMANDS: dict[str, Command] = {
    "GetRandom": build(CommandCode.GET_RANDOM, parameters=b"\0\x10"),
    "PCR_Read": commands.pcr_read({HashAlgorithm.SHA256: range(8)}),
    "PCR_Extend": commands.pcr_extend(16, {HashAlgorithm.SHA256: bytes(32)}),
    "GetCapability": commands.get_handles(0x80000000),
}
ROUNDS = 400
BLOCKS, QUOTES = 30, 20
"""Quotes are timed in blocks, for it is their rate that is compared."""


@contextmanager
def _machines() -> Iterator[tuple[SwtpmProcess, Path, Path]]:
    """Yield a bare swtpm, and the two sockets of a multiplexer before another one."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folders = [root / "manufactured", root / "bare", root / "behind"]
        for folder in folders:
            folder.mkdir()
        manufactured = SwtpmProcess(folders[0])
        manufactured.stop()
        bare = SwtpmProcess(folders[1], like=manufactured)
        behind = SwtpmProcess(folders[2], like=manufactured)
        listen, kernel, pid_file = (root / each for each in ("qemu", "kernel", "pid"))
        multiplexer = subprocess.Popen(
            [
                sys.executable, "-m", "undercroft.securekernel.vtpm", "--upstream",
                str(behind.path), "--listen", str(listen), "--control", str(kernel),
                "--pidfile", str(pid_file),
            ],
        )  # fmt: skip
        try:
            wait_for(pid_file)
            yield bare, listen, kernel
        finally:
            multiplexer.terminate()
            multiplexer.wait()
            bare.stop()
            behind.stop()


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _quote_seconds(quote: Callable[[], object]) -> float:
    def block() -> None:
        for _ in range(QUOTES):
            quote()

    return _seconds(block) / QUOTES


def _guest_latency(bare: HypervisorSide, behind: HypervisorSide) -> list[float]:
    """Microseconds that each command took longer, pair by pair."""
    added = []
    for number in range(ROUNDS):
        for command in COMMANDS.values():
            pair = [
                lambda: bare.command(command.data),  # noqa: B023 - called at once
                lambda: behind.command(command.data),  # noqa: B023
            ]
            took = [_seconds(each) for each in (pair if number % 2 else reversed(pair))]
            direct, through = took if number % 2 else reversed(took)
            added.append((through - direct) * 1e6)
    return added


class _Alone:
    """Quotes by the same commands, straight to swtpm: load the key, authorize, quote."""

    def __init__(self, path: Path) -> None:
        self._upstream = Upstream(path)
        self._upstream.connect()
        runner = self._runner = BatchRunner(self._upstream.execute)
        self._upstream.control(bytes.fromhex("0000000200000000"))
        self._upstream.execute(commands.startup(state=False).data, 0)
        create = commands.create_primary(RH_PLATFORM, ak_template(KeyType.ECC))
        save = commands.context_save(HandleOf(0))
        saved = runner.run(Batch.of(0, [create, save]))[1]
        self._batch = Batch.of(
            SECURE_KERNEL_LOCALITY,
            [
                commands.context_load(commands.parse_context_save(save, saved)),
                commands.start_policy_session(),
                commands.policy_locality(HandleOf(1), 1 << SECURE_KERNEL_LOCALITY),
                commands.quote(HandleOf(0), Auth(HandleOf(1), last=True), NONCE, ENCODED),
            ],
        )

        self._bare = self._bare_quote()

    def _bare_quote(self) -> Command:
        """Leave a key for the empty password in the TPM; return one TPM2_Quote with it."""
        signing = bytes.fromhex("0023000b00050472 0000 0010 0018000b 0003 0010 0000 0000")
        create = commands.create_primary(RH_PLATFORM, signing)
        response = self._upstream.execute(create.data, 0)
        handle = commands.parse_create_primary(create, response).handle
        return commands.quote(handle, Auth(), NONCE, ENCODED)

    def quote(self) -> None:
        """Make one quote."""
        assert self._runner.run(self._batch)[-1][6:10] == bytes(4)

    def bare_quote(self) -> None:
        """Run TPM2_Quote and nothing else."""
        assert self._upstream.execute(self._bare.data, 0)[6:10] == bytes(4)

    def close(self) -> None:
        """Hang up."""
        self._upstream.close()


def run() -> list[Figure]:
    """Measure; needs swtpm."""
    with _machines() as (bare, listen, kernel):
        direct, through = HypervisorSide(bare.path), HypervisorSide(listen)
        direct.power_on()
        through.power_on()
        added = _guest_latency(direct, through)
        direct.close()
        alone = _Alone(bare.path)
        with VtpmClient(kernel) as client:
            client.quote(NONCE, SELECTION)
            alone.quote()
            ours, theirs, bare_quotes = [], [], []
            for _ in range(BLOCKS):
                ours.append(_quote_seconds(lambda: client.quote(NONCE, SELECTION)))
                theirs.append(_quote_seconds(alone.quote))
                bare_quotes.append(_quote_seconds(alone.bare_quote))
            client.launch(LaunchConfig(bytes(4096), (("vm", bytes(4096)),)))
            for _ in range(100):
                client.record("epoch", bytes(200))
            challenge = [_seconds(lambda: _challenge(client)) for _ in range(50)]
            with tempfile.TemporaryDirectory() as folder, open_host_tpm(Path(folder)) as host:
                deep = [_seconds(lambda: _deep_challenge(client, host)) for _ in range(20)]
        alone.close()
        through.close()
    return [
        from_samples("added_latency_us", "us", added, against=Against("at most", 150)),
        from_samples("quote_ms", "ms", [each * 1e3 for each in ours]),
        _rate_ratio("quote_rate_ratio", ours, theirs, Against("at least", 0.8)),
        _rate_ratio("quote_rate_ratio_one_command", ours, bare_quotes, None),
        from_samples("guest_quote_and_log_ms", "ms", [each * 1e3 for each in challenge]),
        from_samples(
            "challenge_ms", "ms", [each * 1e3 for each in deep], against=Against("at most", 300)
        ),
    ]


def _rate_ratio(
    name: str, ours: list[float], theirs: list[float], against: Against | None
) -> Figure:
    """Compare the fastest blocks: other work on the machine only ever adds time."""
    pairs = from_samples(name, "", [b / a for a, b in zip(ours, theirs, strict=True)])
    return replace(pairs, value=min(theirs) / min(ours), against=against)


def _deep_challenge(client: VtpmClient, host: HostTpm) -> bytes:
    """Answer a whole challenge: guest quote, launch log, host layer, evidence bundle (ECC keys)."""
    eventlog, ima_list, log = bytes(64 << 10), bytes(1 << 20), client.current_launch_log()
    nonce = Nonce(NONCE)
    bound = qualifying_data(
        nonce, record=None, eventlog=eventlog, ima_list=ima_list, launch_log=log
    )
    quote = client.quote(bound, SELECTION)
    if client.launch_log(quote) != log:
        raise RuntimeError("the log grew meanwhile")
    item = QuoteItem(quote.attest, quote.signature, quote.ak_public, quote.pcrs)
    evidence = Evidence(item, eventlog, ima_list, None, log)
    layer = host.vouch(evidence, nonce)
    return encode_evidence(replace(evidence, host_layer=layer))


def _challenge(client: VtpmClient) -> bytes:
    """What a challenge needs of the guest's TPM: one quote of 24 PCRs, and the launch log."""
    return client.launch_log(client.quote(NONCE, SELECTION))

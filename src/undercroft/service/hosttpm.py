"""The host's own TPM, which vouches for the guests on it.

``/dev/tpmrm0`` where there is one, with the boot log and the IMA list of the host's kernel beside
it.  Elsewhere a second swtpm stands in, started for one quote and
ended after it: its counter goes on from one to the next, its PCRs hold nothing, and the evidence
says what it is.
"""

from __future__ import annotations

import datetime as dt
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from undercroft.base import EnvironmentFault, Nonce
from undercroft.formats.descriptor import descriptor_digest
from undercroft.formats.evidence import Evidence, QuoteItem, Trust, parse_record
from undercroft.formats.evidence.hostlayer import (
    NO_DESCRIPTOR,
    HostClaims,
    HostLayer,
    HostTpmKind,
    deep_qualifying_data,
    encode_host_layer,
    guest_quote_digest,
    last_modified_of,
    log_head,
    parse_host_layer,
)
from undercroft.formats.tpm import parse_public
from undercroft.guests import tpm
from undercroft.guests.processes import end, spawn
from undercroft.securekernel.vtpm import commands
from undercroft.securekernel.vtpm.client import NV_CHUNK
from undercroft.securekernel.vtpm.keys import EkType, KeyType, ek_template, host_ak_template
from undercroft.securekernel.vtpm.pcrs import PcrReads
from undercroft.securekernel.vtpm.rc import RC_SUCCESS
from undercroft.securekernel.vtpm.wire import (
    HEADER,
    RH_ENDORSEMENT,
    Auth,
    Command,
    parse_response,
    response_code,
)
from undercroft.service.authorities import read_authorities
from undercroft.service.enrol import activate
from undercroft.service.machine import measured_descriptor
from undercroft.verify.ak import verify_ak
from undercroft.verify.deepquote import HOST_SELECTION

DEVICE = Path("/dev/tpmrm0")
SECURITY = Path("/sys/kernel/security")
"""Where the host's kernel shows its boot log and IMA list (securityfs)."""
TRIES = 8
"""How often the host may measure a file between reading its list and quoting it."""
AUTHORITIES = "authorities"
"""Folder with the roots of the makers of the host's TPM, under ``<home>/host-tpm``."""
EK_CERTIFICATE = "ek.der"
COUNTER_INDEX = 0x0180_5543
"""NV index of the monotonic counter, in the owner's range (TCG Registry of Reserved Handles)."""
COUNTER_SIZE = 8
TIMEOUT_S = 60.0
_MAX_RESPONSE = 8192


class Transport(Protocol):
    """Something that runs TPM commands."""

    def execute(self, command: bytes) -> bytes:
        """Run one command and return its response."""


class _Device:
    def __init__(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise EnvironmentFault(
                f"cannot be opened: {error.strerror}", where=str(path), remedy="join the group tss"
            ) from error

    def execute(self, command: bytes) -> bytes:
        os.write(self._file, command)
        return os.read(self._file, _MAX_RESPONSE)

    def close(self) -> None:
        os.close(self._file)


class _Socket:
    def __init__(self, path: Path) -> None:
        self._peer = socket.socket(socket.AF_UNIX)
        self._peer.settimeout(TIMEOUT_S)
        self._peer.connect(str(path))

    def execute(self, command: bytes) -> bytes:
        self._peer.sendall(command)
        response = b""
        while len(response) < HEADER.size or len(response) < _size(response):
            part = self._peer.recv(_MAX_RESPONSE)
            if not part:
                raise EnvironmentFault("the host's TPM closed the connection")
            response += part
        return response

    def close(self) -> None:
        self._peer.close()


def _size(response: bytes) -> int:
    (size,) = struct.unpack_from(">I", response, 2)
    return int(size)


@contextmanager
def open_host_tpm(home: Path) -> Iterator[HostTpm]:
    """Open the TPM of this machine, or its stand-in under ``home``.  Raises EnvironmentFault."""
    if DEVICE.exists():
        device = _Device(DEVICE)
        try:
            yield HostTpm(device, HostTpmKind.HARDWARE, HostLogs.of_this_machine())
        finally:
            device.close()
        return
    with _stand_in(home) as peer:
        yield HostTpm(peer, HostTpmKind.STAND_IN)


@contextmanager
def _stand_in(home: Path) -> Iterator[Transport]:
    folder = home / "host-tpm"
    state = folder / "tpm"
    if not (state / "tpm2-00.permall").is_file():
        tpm.manufacture(state, home / "vtpm-ca", name="host")
    server, log = folder / "tpm.sock", folder / "swtpm.log"
    server.unlink(missing_ok=True)
    process = spawn(
        [
            "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}",
            "--server", f"type=unixio,path={server}", "--flags", "not-need-init,startup-clear",
        ],
        pid_file=folder / "swtpm.pid",
        log=log,
    )  # fmt: skip
    try:
        tpm.wait_for_socket(server, process, log)
        peer = _Socket(server)
        try:
            yield peer
        finally:
            peer.close()
    finally:
        end(process)
        server.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class HostLogs:
    """Where the host's own logs are; those that are not there are left out of the evidence."""

    eventlog: Path
    ima_list: Path

    @classmethod
    def of_this_machine(cls) -> HostLogs:
        """Return the files of the kernel that runs here."""
        return cls(
            SECURITY / "tpm0" / "binary_bios_measurements",
            SECURITY / "ima" / "binary_runtime_measurements",
        )


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EnvironmentFault(
            f"cannot be read: {error.strerror}", where=str(path), remedy="run as root"
        ) from error


@dataclass(frozen=True, slots=True)
class _Key:
    handle: int
    public: bytes


class HostTpm:
    """The TPM of this host: its attestation key, its monotonic counter, its endorsement key."""

    def __init__(
        self, transport: Transport, kind: HostTpmKind, logs: HostLogs | None = None
    ) -> None:
        self._transport = transport
        self._logs = logs
        self.kind = kind

    def _run(self, command: Command) -> bytes:
        return self._transport.execute(command.data)

    @contextmanager
    def _ak(self) -> Iterator[_Key]:
        """Hold the attestation key: a primary key, the same one every time."""
        create = commands.create_primary(RH_ENDORSEMENT, host_ak_template(KeyType.ECC))
        created = commands.parse_create_primary(create, self._run(create))
        try:
            yield _Key(created.handle, created.public)
        finally:
            self._run(commands.flush_context(created.handle))

    def ak_public(self) -> bytes:
        """Return the attestation key's TPMT_PUBLIC."""
        with self._ak() as key:
            return key.public

    # --- the endorsement key (see enrol.Endorsed) -------------------------------------------------

    @contextmanager
    def _ek(self) -> Iterator[_Key]:
        create = commands.create_primary(RH_ENDORSEMENT, ek_template(EkType.RSA_2048))
        created = commands.parse_create_primary(create, self._run(create))
        try:
            yield _Key(created.handle, created.public)
        finally:
            self._run(commands.flush_context(created.handle))

    def ek_public(self) -> bytes:
        """Return the endorsement key's TPMT_PUBLIC."""
        with self._ek() as key:
            return key.public

    def ek_certificate(self) -> bytes | None:
        """Return the EK certificate (DER) from NV memory, or None if this TPM has none."""
        index = EkType.RSA_2048.certificate_index
        ask = commands.nv_read_public(index)
        response = self._run(ask)
        if response_code(response) != RC_SUCCESS:
            return None
        size = commands.parse_nv_read_public(ask, response)
        parts = []
        for offset in range(0, size, NV_CHUNK):
            read = commands.nv_read(index, min(NV_CHUNK, size - offset), offset)
            parts.append(commands.parse_nv_read(read, self._run(read)))
        return b"".join(parts)

    def activate_credential(self, blob: bytes, secret: bytes) -> bytes:
        """Open a credential made for our attestation key and the EK of this TPM."""
        start = commands.start_policy_session()
        with self._ak() as ak, self._ek() as ek:
            session = commands.parse_start_policy_session(start, self._run(start))
            try:
                policy = commands.policy_secret(RH_ENDORSEMENT, session)
                parse_response(policy, self._run(policy))
                activate = commands.activate_credential(
                    ak.handle, Auth(), ek.handle, Auth(session), blob, secret
                )
                return commands.parse_activate_credential(activate, self._run(activate))
            finally:
                self._run(commands.flush_context(session))

    # --- vouching ---------------------------------------------------------------------------------

    def _advance(self) -> tuple[bytes, int]:
        """Count one up; return the counter's TPMS_NV_PUBLIC and value."""
        ask = commands.nv_read_public(COUNTER_INDEX)
        if response_code(self._run(ask)) != RC_SUCCESS:
            define = commands.nv_define_counter(COUNTER_INDEX)
            commands.empty(define, self._run(define))
        increment = commands.nv_increment(COUNTER_INDEX)
        commands.empty(increment, self._run(increment))
        public = commands.parse_nv_public_area(ask, self._run(ask))
        read = commands.nv_read(COUNTER_INDEX, COUNTER_SIZE, 0)
        return public, int.from_bytes(commands.parse_nv_read(read, self._run(read)), "big")

    def vouch(self, evidence: Evidence, nonce: Nonce) -> bytes:
        """Return the host layer for ``evidence``, encoded.

        Raises TpmError where the TPM refuses, FormatError for a launch log that is none,
        EnvironmentFault if the host's logs cannot be read, or its list does not stop growing.
        """
        descriptor = measured_descriptor(evidence.launch_log or b"")
        nv_public, counter = self._advance()
        claims = HostClaims(
            guest_quote_digest(evidence.quote),
            NO_DESCRIPTOR if descriptor is None else descriptor_digest(descriptor),
            log_head(evidence.launch_log),
            last_modified_of(parse_record(evidence.record) if evidence.record else None),
            counter,
        )
        logs = self._logs
        eventlog = _read(logs.eventlog if logs else None)
        for _ in range(TRIES):
            ima_list = _read(logs.ima_list if logs else None)
            layer = self._sign(claims, nonce, nv_public, eventlog, ima_list)
            if _read(logs.ima_list if logs else None) == ima_list:
                return encode_host_layer(layer)
        raise EnvironmentFault(
            "the host measures new files all the time",
            expected=f"a quiet moment in {TRIES} tries",
            remedy="try again",
        )

    def _sign(
        self,
        claims: HostClaims,
        nonce: Nonce,
        nv_public: bytes,
        eventlog: bytes | None,
        ima_list: bytes | None,
    ) -> HostLayer:
        bound = deep_qualifying_data(nonce, claims, eventlog, ima_list)
        with self._ak() as key:
            ask = commands.quote(
                key.handle, Auth(), bound, commands.encode_selection(HOST_SELECTION)
            )
            attest, signature = commands.parse_quote(ask, self._run(ask))
            reads = PcrReads(HOST_SELECTION)
            pcrs = reads.parse([self._run(read) for read in reads.commands])
            certify = commands.nv_certify(key.handle, COUNTER_INDEX, bound, COUNTER_SIZE)
            nv_attest, nv_signature = commands.parse_quote(certify, self._run(certify))
            item = QuoteItem(attest, signature, key.public, pcrs)
        return HostLayer(
            self.kind, item, claims, nv_public, nv_attest, nv_signature, eventlog, ima_list
        )


def trust_host(trust: Trust, host: HostTpm, home: Path, now: dt.datetime) -> Trust:
    """Return ``trust`` with the host's key, pinned under ``home`` when it is first seen.

    Where there are authorities to check it by (:func:`_authorities`), the host's EK must be
    certified by them and the key activated against it.  Raises EnvironmentFault if the key is
    another one since: then this is another TPM; VerificationError if the EK is not certified.
    """
    pin, public = home / "host-tpm" / "ak.pub", host.ak_public()
    if not pin.is_file():
        pin.parent.mkdir(parents=True, exist_ok=True)
        pin.write_bytes(public)
        (pin.parent / EK_CERTIFICATE).unlink(missing_ok=True)
    elif pin.read_bytes() != public:
        raise EnvironmentFault(
            "the host's TPM has another key than it had",
            where=str(pin),
            remedy="if this machine has a new TPM, remove that file",
        )
    return replace(
        trust,
        host_ak_public=public,
        host_counter=_last_counter(home),
        host_ek_certificate=_endorsed(host, public, home, now),
    )


def _authorities(host: HostTpm, home: Path) -> Path:
    """Return the folder of those who may certify the host's EK: of a stand-in, we ourselves."""
    stand_in = host.kind is HostTpmKind.STAND_IN
    return home / "vtpm-ca" if stand_in else home / "host-tpm" / AUTHORITIES


def _endorsed(host: HostTpm, public: bytes, home: Path, now: dt.datetime) -> bytes:
    """Return the certificate of the EK that the host's key is tied to, empty if nobody can tell."""
    kept = home / "host-tpm" / EK_CERTIFICATE
    if kept.is_file():
        return kept.read_bytes()
    folder = _authorities(host, home)
    if not folder.is_dir():
        return b""
    ak = verify_ak(parse_public(public))
    where = "the host's TPM"
    certificate = activate(host, ak, where, authorities=read_authorities(folder), now=now)
    kept.write_bytes(certificate)
    return certificate


def accept_host(evidence: Evidence, home: Path) -> None:
    """Remember the counter of a host layer that was verified: older ones are refused from now."""
    if evidence.host_layer is not None:
        counter = parse_host_layer(evidence.host_layer).claims.counter
        _counter_file(home).write_text(f"{max(counter, _last_counter(home))}\n")


def _counter_file(home: Path) -> Path:
    return home / "host-tpm" / "last-counter"


def _last_counter(home: Path) -> int:
    path = _counter_file(home)
    return int(path.read_text()) if path.is_file() else 0

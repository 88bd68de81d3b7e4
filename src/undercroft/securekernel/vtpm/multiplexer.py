"""One TPM, two users: what happens to each guest command, control request and batch.

No sockets here but swtpm's own (:class:`Upstream`); ``interposer`` listens and calls.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from undercroft.base import EnvironmentFault, FormatError, JsonValue
from undercroft.securekernel.vtpm import commands, control, rc
from undercroft.securekernel.vtpm.arbiter import Arbiter, Busy, Cancelled, Side
from undercroft.securekernel.vtpm.batch import BatchRunner, StateLost
from undercroft.securekernel.vtpm.control import Control, Request
from undercroft.securekernel.vtpm.keyfile import KeyFile
from undercroft.securekernel.vtpm.keys import KeyType
from undercroft.securekernel.vtpm.launch import Launcher
from undercroft.securekernel.vtpm.launchlog import LaunchConfig
from undercroft.securekernel.vtpm.protocol import Batch, Done
from undercroft.securekernel.vtpm.rc import VtpmUnavailable
from undercroft.securekernel.vtpm.resident import Resident
from undercroft.securekernel.vtpm.state import Counters, GuestState, Startup
from undercroft.securekernel.vtpm.upstream import Upstream
from undercroft.securekernel.vtpm.wire import (
    HEADER,
    MAX_SIZE,
    CommandCode,
    error_response,
    response_code,
)

_GUEST_TAGS = frozenset({0x8001, 0x8002, 0x00C1, 0x00C2, 0x00C3})
"""TPM 2.0 commands, and TPM 1.2 ones, with which QEMU probes the version.

Anything else is refused here: a command that starts with 00 00 00 08 would be taken by swtpm as
a TPM2_SEND_COMMAND header, with a locality of the guest's choice in it.
"""
_VENDOR_SET_LOCALITY = 0x2000_1000
"""swtpm's vendor command TPM2_CC_SetLocality (``--locality allow-set-locality``)."""

_KEEPS_ORDERLY = frozenset(
    {
        CommandCode.GET_CAPABILITY,
        CommandCode.GET_TEST_RESULT,
        CommandCode.PCR_READ,
        CommandCode.READ_CLOCK,
        CommandCode.READ_PUBLIC,
        CommandCode.NV_READ_PUBLIC,
    }
)
"""Commands after which a TPM2_Shutdown still holds."""

_STARTUP_SIZE = 12
_RC_STARTUP_TYPE = 0x1C4
"""TPM_RC_VALUE for parameter 1: Startup(STATE) where no state was saved."""
_SU_STATE = b"\0\1"

_LAST_SESSION = 63
"""Index of the last of MAX_ACTIVE_SESSIONS (64) session handles."""

COURTESY = 1.0
"""Longest wait of a record for the guest to use a policy session that depends on PCRs, in s."""

SECURE_KERNEL_WAIT = 30.0
"""Longest wait of a batch for its slot, in seconds."""


class Multiplexer:
    """Arbitrates one swtpm.  Every method may be called from any thread."""

    def __init__(
        self,
        upstream: Upstream,
        launch: LaunchConfig | None = None,
        keys: KeyFile | None = None,
    ) -> None:
        self.upstream = upstream
        self.confined_by: list[str] = []
        self.arbiter = Arbiter()
        self.counters = Counters()
        self._runner = BatchRunner(upstream.execute)
        self.launcher = Launcher(upstream, self._runner, launch, keys)
        self._resident = Resident(upstream.execute)
        self._guest = GuestState()
        self._settled = threading.Event()
        self._settled.set()

    # --- the guest's commands -------------------------------------------------------------

    def guest_command(self, command: bytes) -> bytes:
        """Run a guest's command and return the response; always a TPM response, never an error."""
        self.counters.guest_commands += 1
        refusal = self._refusal(command)
        if refusal is not None:
            return error_response(refusal)
        code = HEADER.unpack_from(command)[2]
        try:
            with self.arbiter.slot(Side.GUEST):
                if self._guest.startup is Startup.OURS and command[0] == 0x80:
                    return error_response(self._before_startup(code, command))
                self._resident.evict()
                response = self.upstream.execute(command, 0)
                return self._watch(code, command, response)
        except Cancelled:
            return error_response(rc.RC_CANCELED)
        except (VtpmUnavailable, Busy, FormatError) as fault:
            self._lost(fault)
            return error_response(rc.RC_FAILURE)

    def _refusal(self, command: bytes) -> int | None:
        """Return the TPM_RC with which we, not the TPM, answer a command; None to pass it on."""
        if len(command) < HEADER.size or len(command) > MAX_SIZE:
            self.counters.refused_commands += 1
            return rc.RC_COMMAND_SIZE
        tag, _, code = HEADER.unpack_from(command)
        if tag not in _GUEST_TAGS:
            self.counters.refused_commands += 1
            return rc.RC_BAD_TAG
        if code == _VENDOR_SET_LOCALITY:
            self.counters.refused_localities += 1
            return rc.RC_COMMAND_CODE
        if self._guest.locality != 0:
            self.counters.refused_localities += 1
            return rc.RC_LOCALITY
        return None

    def _before_startup(self, code: int, command: bytes) -> int:
        """Return the TPM_RC of a command that comes before or is the guest's TPM2_Startup."""
        tag, size, _ = HEADER.unpack_from(command)
        if len(command) != size:
            return rc.RC_COMMAND_SIZE
        if code != CommandCode.STARTUP:
            return rc.RC_INITIALIZE
        if tag != 0x8001 or size != _STARTUP_SIZE:
            return rc.RC_COMMAND_SIZE
        if command[10:] != b"\0\0":
            return _RC_STARTUP_TYPE
        self._guest.startup = Startup.DONE
        return rc.RC_SUCCESS

    def _watch(self, code: int, command: bytes, response: bytes) -> bytes:
        """Note what a guest command changes for us; return the response for the guest."""
        if code in _KEEPS_ORDERLY:
            return response
        succeeded = response[6:10] == b"\0\0\0\0"
        self._guest.orderly = command if code == CommandCode.SHUTDOWN and succeeded else None
        if code == CommandCode.STARTUP and succeeded:
            self._guest.startup = Startup.DONE
            self._launch("resume" if command[10:12] == _SU_STATE else "reset")
        if code == CommandCode.POLICY_PCR and succeeded:
            self._settled.clear()
        elif response[:2] == b"\x80\x02":
            self._settled.set()
        if code == CommandCode.START_AUTH_SESSION and succeeded:
            return self._keep_one_session_free(response)
        return response

    def _keep_one_session_free(self, response: bytes) -> bytes:
        """Take the guest's 64th active session back: we need one, and none can be moved away.

        The TPM hands out the lowest free handle, so the last index means that all are taken.
        """
        handle = response[HEADER.size : HEADER.size + 4]
        if handle[3] != _LAST_SESSION or handle[1:3] != b"\0\0":
            return response
        flush = commands.flush_context(int.from_bytes(handle, "big"))
        self.upstream.execute(flush.data, 0)
        self.counters.refused_commands += 1
        return error_response(rc.RC_SESSION_HANDLES)

    # --- the secure kernel --------------------------------------------------------------------

    @contextmanager
    def _our_slot(self) -> Iterator[None]:
        with self.arbiter.slot(Side.SECURE_KERNEL, timeout=SECURE_KERNEL_WAIT):
            try:
                if not self.upstream.fault and not self._guest.running:
                    raise VtpmUnavailable("the guest's TPM is not running")
                yield
                if self._guest.orderly is not None:
                    # The guest has shut its TPM down; what we did since has ended that.
                    self._resident.evict()
                    self.upstream.execute(self._guest.orderly, 0)
            except StateLost as fault:
                self.note(str(fault))
                raise
            except VtpmUnavailable as fault:
                self._lost(fault)
                raise

    def run_batch(self, batch: Batch) -> Done:
        """Run a batch in one slot.  Raises VtpmUnavailable, Busy, FormatError or StateLost."""
        with self._our_slot():
            self.counters.batches += 1
            self._resident.evict()
            responses = tuple(self._runner.run(batch))
            return Done(self.launcher.number, self.launcher.log_size, responses)

    def quote(self, key_type: KeyType, qualifying_data: bytes, selection: bytes) -> Done:
        """Quote with the launch's key; Done without a response if only a batch can do it.

        Raises VtpmUnavailable or Busy.
        """
        with self._our_slot():
            self.counters.batches += 1
            key = self.launcher.keys.get(key_type)
            response = (
                self._resident.quote(key.context, qualifying_data, selection) if key else None
            )
            responses = () if response is None else (response,)
            return Done(self.launcher.number, self.launcher.log_size, responses)

    def record(self, name: str, data: bytes) -> None:
        """Extend PCR 19 with a record.  Raises EnvironmentFault (VtpmUnavailable, Busy).

        An extend changes pcrUpdateCounter, and that ends every policy session that has gone
        through TPM2_PolicyPCR (part 3, 23.7).  So if the guest has such a session that it has not
        used yet, it gets :data:`COURTESY` seconds to do so, whatever it does, and no more.
        """
        deadline = time.monotonic() + COURTESY
        while True:
            self._settled.wait(max(0.0, deadline - time.monotonic()))
            with self._our_slot():
                if self._settled.is_set() or time.monotonic() >= deadline:
                    self._settled.set()
                    self.launcher.record(name, data)
                    return

    def launch(self, config: LaunchConfig) -> None:
        """Launch with this configuration at every start from now on, and at once if the TPM runs.

        Raises EnvironmentFault (VtpmUnavailable, Busy) where the TPM refuses.
        """
        if not self._guest.running:
            self.launcher.config = config
            return
        with self._our_slot():
            self.launcher.config = config
            self._resident.evict()
            self.launcher.perform("attach")

    def log(self, launch: int) -> bytes:
        """Return the log of the launch of this number; EnvironmentFault if another one holds."""
        if launch != self.launcher.number:
            raise EnvironmentFault(
                "the TPM was started again", expected=launch, got=self.launcher.number
            )
        return self.launcher.log()

    def keys(self) -> dict[str, JsonValue]:
        """Return the attestation keys that the launch made, by type."""
        return {kind.value: key.as_json() for kind, key in self.launcher.keys.items()}

    # --- the hypervisor's control requests ----------------------------------------------------

    def hypervisor_connected(self) -> None:
        """Note that a hypervisor has connected: what follows is a power-on."""
        self.counters.guest_connections += 1
        self._guest.powered_on = False
        self._guest.locality = 0

    def control_request(self, request: Request) -> bytes:
        """Answer one control request (all but SET_DATAFD, which the interposer answers)."""
        try:
            number = Control(request.number)
        except ValueError:
            self.counters.refused_control += 1
            return control.result(control.TPM_BAD_ORDINAL)
        try:
            response = self._control(number, request)
        except (VtpmUnavailable, Busy, FormatError) as fault:
            self._lost(fault)
            response = self._control_without_tpm(number)
        return control.padded(number, response)

    def _control_without_tpm(self, number: Control) -> bytes:
        """Let the guest run with a TPM in failure mode: QEMU exits if a reset is refused."""
        match number:
            case Control.STOP | Control.SHUTDOWN | Control.INIT:
                self._guest.running = False
                self._guest.startup = Startup.DONE
                return control.result(control.TPM_SUCCESS)
            case Control.SET_BUFFERSIZE:
                size = MAX_SIZE.to_bytes(4, "big")
                return control.result(control.TPM_SUCCESS, size * 3)
            case _:
                return control.result(control.TPM_FAIL)

    def _control(self, number: Control, request: Request) -> bytes:
        match number:
            case Control.SET_LOCALITY:
                return self._set_locality(request.body[0])
            case Control.HASH_START | Control.HASH_DATA | Control.HASH_END:
                self.counters.refused_localities += 1
                return control.result(control.TPM_BAD_ORDINAL)
            case Control.GET_CAPABILITY:
                return self._capability(request)
            case Control.CANCEL_TPM_CMD:
                return self._cancel()
            case Control.RESET_TPMESTABLISHED:
                return self._exclusively(control.request(number, bytes(4)))
            case Control.INIT:
                return self._init(request)
            case Control.STOP:
                self._reconnect()  # QEMU's power-on and reset start with STOP
                return self._stop()
            case Control.SHUTDOWN:
                self._guest.powered_on = False
                return self._stop()
            case _:
                return self._exclusively(request.data)

    def _exclusively(self, request: bytes) -> bytes:
        with self.arbiter.slot(Side.GUEST):
            self._resident.evict()
            return self.upstream.control(request)

    def _set_locality(self, locality: int) -> bytes:
        """Accept any locality that exists; commands at another one than 0 are then refused.

        So the guest gets a well-formed TPM_RC_LOCALITY; were this request refused, QEMU would
        make up a TPM 1.2 error.
        """
        if locality > 4:
            return control.result(control.TPM_BAD_LOCALITY)
        self._guest.locality = locality
        return control.result(control.TPM_SUCCESS)

    def _capability(self, request: Request) -> bytes:
        reply = self.upstream.control(request.data)
        capabilities = int.from_bytes(reply[4:8], "big")
        hidden = control.CAP_HASHING | control.CAP_SEND_COMMAND_HEADER
        return reply[:4] + (capabilities & ~hidden).to_bytes(4, "big")

    def _cancel(self) -> bytes:
        """Cancel a guest command that still waits.  swtpm itself reads its control channel only
        between commands, so that a command that has started cannot be cancelled."""
        self.arbiter.cancel(Side.GUEST)
        return control.result(control.TPM_SUCCESS)

    def _init(self, request: Request) -> bytes:
        """_TPM_Init: power on, or reset.  Here, too, a lost swtpm is looked for again."""
        with self.arbiter.slot(Side.GUEST):
            self._reconnect()
            self._resident.forget()
            self.launcher.forget()
            reply = self.upstream.control(request.data)
            self.counters.inits += 1
            self._guest.running = control.result_code(reply) == control.TPM_SUCCESS
            if self._guest.running:
                self._start()
            return reply

    def _reconnect(self) -> None:
        if self.upstream.fault:
            self.upstream.connect()
            self.note("connected to swtpm again")

    def _start(self) -> None:
        """Start the TPM before the guest does, or leave that to a guest that has state saved."""
        guest = self._guest
        saved = guest.orderly is not None and guest.orderly[10:12] == _SU_STATE
        reason = "reset" if guest.powered_on else "power-on"
        guest.orderly, guest.powered_on = None, True
        guest.startup = Startup.TO_TPM
        if saved:
            return
        code = response_code(self.upstream.execute(commands.startup(state=False).data, 0))
        if code == rc.RC_SUCCESS:
            guest.startup = Startup.OURS
            self._launch(reason)
        elif code == rc.RC_INITIALIZE:  # its volatile state was loaded: a snapshot or migration
            guest.startup = Startup.DONE
            self._launch("restore")
        else:
            self.note(f"TPM2_Startup: {rc.rc_name(code)}")

    def _launch(self, reason: str) -> None:
        """Launch; a TPM that refuses is noted, and is the guest's TPM all the same."""
        try:
            self.launcher.perform(reason)
        except VtpmUnavailable:
            raise
        except (EnvironmentFault, FormatError) as fault:
            self.launcher.forget()
            self.note(f"the launch failed: {fault}")

    def _stop(self) -> bytes:
        """STOP, and SHUTDOWN too: swtpm would exit, and a hypervisor that comes back would find
        nothing."""
        with self.arbiter.slot(Side.GUEST):
            self._resident.forget()
            reply = self.upstream.control(control.request(Control.STOP))
            self._guest.running = False
            self.launcher.forget()
            return reply

    # --- what happened --------------------------------------------------------------------

    def note(self, event: str) -> None:
        """Remember an event, with the time in ns since the epoch."""
        self._guest.events.append((time.time_ns(), event))

    def _lost(self, fault: VtpmUnavailable | Busy | FormatError) -> None:
        """Note why the TPM could not be asked, once for every loss."""
        newest = self._guest.events[-1][1] if self._guest.events else ""
        what = self.upstream.fault or str(fault)
        if newest != what:
            self.counters.upstream_losses += bool(self.upstream.fault)
            self.note(what)

    def status(self) -> dict[str, JsonValue]:
        """Return state and counters, for the secure kernel's record."""
        counters = self.counters
        return {
            "running": self._guest.running,
            "fault": self.upstream.fault,
            "guest_locality": self._guest.locality,
            "startup": self._guest.startup.value,
            "evictions": self._runner.evictions,
            "launch": self.launcher.number,
            "launch_reason": self.launcher.reason,
            "log_size": self.launcher.log_size,
            "confined_by": list(self.confined_by),
            **{name: getattr(counters, name) for name in Counters.__slots__},
            "events": [[when, what] for when, what in self._guest.events],
        }

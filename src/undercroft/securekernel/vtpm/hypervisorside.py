"""What happens to each control request of the hypervisor: power, reset, state, localities."""

from __future__ import annotations

from undercroft.base import FormatError
from undercroft.securekernel.vtpm import commands, control, rc
from undercroft.securekernel.vtpm.arbiter import Busy, Side
from undercroft.securekernel.vtpm.control import Control, Request
from undercroft.securekernel.vtpm.guestside import SU_STATE
from undercroft.securekernel.vtpm.rc import VtpmUnavailable
from undercroft.securekernel.vtpm.shared import SharedTpm
from undercroft.securekernel.vtpm.state import Startup
from undercroft.securekernel.vtpm.wire import MAX_SIZE, response_code


class HypervisorSide:
    """The hypervisor's control requests.  May be called from any thread."""

    def __init__(self, tpm: SharedTpm) -> None:
        self._tpm = tpm

    def connected(self) -> None:
        """Note that a hypervisor has connected: what follows is a power-on."""
        self._tpm.counters.guest_connections += 1
        self._tpm.guest.powered_on = False
        self._tpm.guest.locality = 0

    def request(self, request: Request) -> bytes:
        """Answer one control request (all but SET_DATAFD, which the interposer answers)."""
        try:
            number = Control(request.number)
        except ValueError:
            self._tpm.counters.refused_control += 1
            return control.result(control.TPM_BAD_ORDINAL)
        try:
            response = self._answer(number, request)
        except (VtpmUnavailable, Busy, FormatError) as fault:
            self._tpm.lost(fault)
            response = self._without_tpm(number)
        return control.padded(number, response)

    def _without_tpm(self, number: Control) -> bytes:
        """Let the guest run with a TPM in failure mode: QEMU exits if a reset is refused."""
        match number:
            case Control.STOP | Control.SHUTDOWN | Control.INIT:
                self._tpm.guest.running = False
                self._tpm.guest.startup = Startup.DONE
                return control.result(control.TPM_SUCCESS)
            case Control.SET_BUFFERSIZE:
                size = MAX_SIZE.to_bytes(4, "big")
                return control.result(control.TPM_SUCCESS, size * 3)
            case _:
                return control.result(control.TPM_FAIL)

    def _answer(self, number: Control, request: Request) -> bytes:
        match number:
            case Control.SET_LOCALITY:
                return self._set_locality(request.body[0])
            case Control.HASH_START | Control.HASH_DATA | Control.HASH_END:
                self._tpm.counters.refused_localities += 1
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
                self._tpm.guest.powered_on = False
                return self._stop()
            case _:
                return self._exclusively(request.data)

    def _exclusively(self, request: bytes) -> bytes:
        with self._tpm.arbiter.slot(Side.GUEST):
            self._tpm.resident.evict()
            return self._tpm.upstream.control(request)

    def _set_locality(self, locality: int) -> bytes:
        """Accept any locality that exists; commands at another one than 0 are then refused.

        So the guest gets a well-formed TPM_RC_LOCALITY; were this request refused, QEMU would
        make up a TPM 1.2 error.
        """
        if locality > 4:
            return control.result(control.TPM_BAD_LOCALITY)
        self._tpm.guest.locality = locality
        return control.result(control.TPM_SUCCESS)

    def _capability(self, request: Request) -> bytes:
        reply = self._tpm.upstream.control(request.data)
        capabilities = int.from_bytes(reply[4:8], "big")
        hidden = control.CAP_HASHING | control.CAP_SEND_COMMAND_HEADER
        return reply[:4] + (capabilities & ~hidden).to_bytes(4, "big")

    def _cancel(self) -> bytes:
        """Cancel a guest command that still waits.  swtpm itself reads its control channel only
        between commands, so that a command that has started cannot be cancelled."""
        self._tpm.arbiter.cancel(Side.GUEST)
        return control.result(control.TPM_SUCCESS)

    def _init(self, request: Request) -> bytes:
        """_TPM_Init: power on, or reset.  Here, too, a lost swtpm is looked for again."""
        tpm = self._tpm
        with tpm.arbiter.slot(Side.GUEST):
            self._reconnect()
            tpm.resident.forget()
            tpm.launcher.forget()
            reply = tpm.upstream.control(request.data)
            tpm.counters.inits += 1
            tpm.guest.running = control.result_code(reply) == control.TPM_SUCCESS
            if tpm.guest.running:
                self._start()
            return reply

    def _reconnect(self) -> None:
        if self._tpm.upstream.fault:
            self._tpm.upstream.connect()
            self._tpm.note("connected to swtpm again")

    def _start(self) -> None:
        """Start the TPM before the guest does, or leave that to a guest that has state saved."""
        tpm, guest = self._tpm, self._tpm.guest
        saved = guest.orderly is not None and guest.orderly[10:12] == SU_STATE
        reason = "reset" if guest.powered_on else "power-on"
        guest.orderly, guest.powered_on = None, True
        guest.startup = Startup.TO_TPM
        if saved:
            return
        code = response_code(tpm.upstream.execute(commands.startup(state=False).data, 0))
        if code == rc.RC_SUCCESS:
            guest.startup = Startup.OURS
            tpm.launch(reason)
        elif code == rc.RC_INITIALIZE:  # its volatile state was loaded: a snapshot or migration
            guest.startup = Startup.DONE
            tpm.launch("restore")
        else:
            tpm.note(f"TPM2_Startup: {rc.rc_name(code)}")

    def _stop(self) -> bytes:
        """STOP, and SHUTDOWN too: swtpm would exit, and a hypervisor that comes back would find
        nothing."""
        tpm = self._tpm
        with tpm.arbiter.slot(Side.GUEST):
            tpm.resident.forget()
            reply = tpm.upstream.control(control.request(Control.STOP))
            tpm.guest.running = False
            tpm.launcher.forget()
            return reply

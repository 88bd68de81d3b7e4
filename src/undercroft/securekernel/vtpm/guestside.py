"""What happens to each command of the guest: passed on at locality 0, or refused here."""

from __future__ import annotations

from undercroft.base import FormatError
from undercroft.securekernel.vtpm import commands, rc
from undercroft.securekernel.vtpm.arbiter import Busy, Cancelled, Side
from undercroft.securekernel.vtpm.rc import VtpmUnavailable
from undercroft.securekernel.vtpm.shared import SharedTpm
from undercroft.securekernel.vtpm.state import Startup
from undercroft.securekernel.vtpm.wire import HEADER, MAX_SIZE, CommandCode, error_response

_TAGS = frozenset({0x8001, 0x8002, 0x00C1, 0x00C2, 0x00C3})
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
SU_STATE = b"\0\1"

_LAST_SESSION = 63
"""Index of the last of MAX_ACTIVE_SESSIONS (64) session handles."""


class GuestSide:
    """The guest's commands.  May be called from any thread."""

    def __init__(self, tpm: SharedTpm) -> None:
        self._tpm = tpm

    def command(self, command: bytes) -> bytes:
        """Run a guest's command and return the response; always a TPM response, never an error."""
        tpm = self._tpm
        tpm.counters.guest_commands += 1
        refusal = self._refusal(command)
        if refusal is not None:
            return error_response(refusal)
        code = HEADER.unpack_from(command)[2]
        try:
            with tpm.arbiter.slot(Side.GUEST):
                if tpm.guest.startup is Startup.OURS and command[0] == 0x80:
                    return error_response(self._before_startup(code, command))
                tpm.resident.evict()
                response = tpm.upstream.execute(command, 0)
                return self._watch(code, command, response)
        except Cancelled:
            return error_response(rc.RC_CANCELED)
        except (VtpmUnavailable, Busy, FormatError) as fault:
            tpm.lost(fault)
            return error_response(rc.RC_FAILURE)

    def _refusal(self, command: bytes) -> int | None:
        """Return the TPM_RC with which we, not the TPM, answer a command; None to pass it on."""
        counters = self._tpm.counters
        if len(command) < HEADER.size or len(command) > MAX_SIZE:
            counters.refused_commands += 1
            return rc.RC_COMMAND_SIZE
        tag, _, code = HEADER.unpack_from(command)
        if tag not in _TAGS:
            counters.refused_commands += 1
            return rc.RC_BAD_TAG
        if code == _VENDOR_SET_LOCALITY:
            counters.refused_localities += 1
            return rc.RC_COMMAND_CODE
        if self._tpm.guest.locality != 0:
            counters.refused_localities += 1
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
        self._tpm.guest.startup = Startup.DONE
        return rc.RC_SUCCESS

    def _watch(self, code: int, command: bytes, response: bytes) -> bytes:
        """Note what a guest command changes for us; return the response for the guest."""
        if code in _KEEPS_ORDERLY:
            return response
        tpm = self._tpm
        succeeded = response[6:10] == b"\0\0\0\0"
        tpm.guest.orderly = command if code == CommandCode.SHUTDOWN and succeeded else None
        if code == CommandCode.STARTUP and succeeded:
            tpm.guest.startup = Startup.DONE
            tpm.launch("resume" if command[10:12] == SU_STATE else "reset")
        tpm.courtesy.watch(code, command, succeeded=succeeded)
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
        self._tpm.upstream.execute(flush.data, 0)
        self._tpm.counters.refused_commands += 1
        return error_response(rc.RC_SESSION_HANDLES)

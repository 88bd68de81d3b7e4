"""TPM_RC: response codes as TPM 2.0 part 2 (rev 1.59), clause 6.6 numbers them; typed errors."""

from __future__ import annotations

from undercroft.base import EnvironmentFault

RC_SUCCESS = 0x000
RC_INITIALIZE = 0x100
RC_FAILURE = 0x101
RC_COMMAND_SIZE = 0x142
RC_COMMAND_CODE = 0x143
RC_BAD_TAG = 0x01E
RC_CONTEXT_GAP = 0x901
RC_OBJECT_MEMORY = 0x902
RC_SESSION_MEMORY = 0x903
RC_MEMORY = 0x904
RC_SESSION_HANDLES = 0x905
RC_OBJECT_HANDLES = 0x906
RC_LOCALITY = 0x907
RC_YIELDED = 0x908
RC_CANCELED = 0x909
RC_TESTING = 0x90A
RC_RETRY = 0x922

# Format zero, TPM 2.0 errors (bit 8 set) and warnings (bits 8 and 11 set), part 2 table 16.
_FORMAT_ZERO = {
    0x100: "INITIALIZE",
    0x101: "FAILURE",
    0x103: "SEQUENCE",
    0x10B: "PRIVATE",
    0x119: "HMAC",
    0x120: "DISABLED",
    0x121: "EXCLUSIVE",
    0x124: "AUTH_TYPE",
    0x125: "AUTH_MISSING",
    0x126: "POLICY",
    0x127: "PCR",
    0x128: "PCR_CHANGED",
    0x12D: "UPGRADE",
    0x12E: "TOO_MANY_CONTEXTS",
    0x12F: "AUTH_UNAVAILABLE",
    0x130: "REBOOT",
    0x131: "UNBALANCED",
    0x142: "COMMAND_SIZE",
    0x143: "COMMAND_CODE",
    0x144: "AUTHSIZE",
    0x145: "AUTH_CONTEXT",
    0x146: "NV_RANGE",
    0x147: "NV_SIZE",
    0x148: "NV_LOCKED",
    0x149: "NV_AUTHORIZATION",
    0x14A: "NV_UNINITIALIZED",
    0x14B: "NV_SPACE",
    0x14C: "NV_DEFINED",
    0x150: "BAD_CONTEXT",
    0x151: "CPHASH",
    0x152: "PARENT",
    0x153: "NEEDS_TEST",
    0x154: "NO_RESULT",
    0x155: "SENSITIVE",
    0x901: "CONTEXT_GAP",
    0x902: "OBJECT_MEMORY",
    0x903: "SESSION_MEMORY",
    0x904: "MEMORY",
    0x905: "SESSION_HANDLES",
    0x906: "OBJECT_HANDLES",
    0x907: "LOCALITY",
    0x908: "YIELDED",
    0x909: "CANCELED",
    0x90A: "TESTING",
    0x920: "NV_RATE",
    0x921: "LOCKOUT",
    0x922: "RETRY",
    0x923: "NV_UNAVAILABLE",
}
_FORMAT_ZERO |= {0x910 + n: f"REFERENCE_H{n}" for n in range(7)}
_FORMAT_ZERO |= {0x918 + n: f"REFERENCE_S{n}" for n in range(7)}

# Format one: the low six bits, with a handle, session or parameter number beside them.
_FORMAT_ONE = {
    0x01: "ASYMMETRIC",
    0x02: "ATTRIBUTES",
    0x03: "HASH",
    0x04: "VALUE",
    0x05: "HIERARCHY",
    0x07: "KEY_SIZE",
    0x08: "MGF",
    0x09: "MODE",
    0x0A: "TYPE",
    0x0B: "HANDLE",
    0x0C: "KDF",
    0x0D: "RANGE",
    0x0E: "AUTH_FAIL",
    0x0F: "NONCE",
    0x10: "PP",
    0x12: "SCHEME",
    0x15: "SIZE",
    0x16: "SYMMETRIC",
    0x17: "TAG",
    0x18: "SELECTOR",
    0x1A: "INSUFFICIENT",
    0x1B: "SIGNATURE",
    0x1C: "KEY",
    0x1D: "POLICY_FAIL",
    0x1F: "INTEGRITY",
    0x20: "TICKET",
    0x21: "RESERVED_BITS",
    0x22: "BAD_AUTH",
    0x23: "EXPIRED",
    0x24: "POLICY_CC",
    0x25: "BINDING",
    0x26: "CURVE",
    0x27: "ECC_POINT",
}


def rc_name(rc: int) -> str:
    """Return the specification's name, with the handle, session or parameter a code speaks of."""
    if rc == RC_SUCCESS:
        return "TPM_RC_SUCCESS"
    if rc == RC_BAD_TAG:
        return "TPM_RC_BAD_TAG"
    if rc & 0x80 and not rc & ~0xFFF:
        name = _FORMAT_ONE.get(rc & 0x3F)
        number = rc >> 8 & 0xF
        if name is not None:
            if rc & 0x40:
                return f"TPM_RC_{name} (parameter {number})" if number else f"TPM_RC_{name}"
            if number & 0x8:
                return f"TPM_RC_{name} (session {number & 7})"
            return f"TPM_RC_{name} (handle {number})" if number else f"TPM_RC_{name}"
    name = _FORMAT_ZERO.get(rc)
    return f"TPM_RC_{name}" if name is not None else f"response code {rc:#x}"


class TpmError(EnvironmentFault):
    """The TPM refused a command: ``rc`` is its TPM_RC, ``name`` the specification's name for it."""

    def __init__(self, command: str, rc: int) -> None:
        self.rc = rc
        self.name = rc_name(rc)
        self.command = command
        super().__init__(
            "the TPM refused the command", where=command, expected="TPM_RC_SUCCESS", got=self.name
        )

    @property
    def base_rc(self) -> int:
        """The code without the number of the handle, session or parameter it speaks of."""
        return self.rc & 0xBF if self.rc & 0x80 else self.rc


class VtpmUnavailable(EnvironmentFault):
    """The guest's TPM cannot be reached at all: swtpm or the multiplexer is gone or stalled."""

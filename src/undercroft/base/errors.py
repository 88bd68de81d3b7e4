"""The errors of the whole project.  Whose fault it is, is the class.

===================== ======================================================= ===========
class                 whose fault                                             exit status
===================== ======================================================= ===========
FormatError           the bytes: they are not what their format says          5
VerificationError     the evidence: well formed, not authentic or not fresh   5
MemoryFault           the guest: it has no such memory                        (caught)
EnvironmentFault      this machine: something is missing or broke             1
===================== ======================================================= ===========

Anything else that escapes is a bug of ours.
"""

from __future__ import annotations


class UndercroftError(Exception):
    """Base of every error we raise on purpose.

    ``what`` went wrong, ``where``, what was ``expected``, what was ``got`` and the ``remedy``;
    empty where there is nothing to say.  Details are attributes, not prose.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        expected: object = "",
        got: object = "",
        remedy: str = "",
    ) -> None:
        self.what = what
        self.where = where
        self.expected = str(expected)
        self.got = str(got)
        self.remedy = remedy
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.expected or self.got:
            text += f" (expected {self.expected or 'nothing'}, got {self.got or 'nothing'})"
        return text


class FormatError(UndercroftError):
    """Bytes that do not follow their format.

    ``format_name`` names the structure as its specification does (``TPMS_ATTEST``) and
    ``offset`` is where in the input, in bytes, the fault stands.
    """

    def __init__(
        self,
        format_name: str,
        offset: int,
        reason: str,
        *,
        expected: object = "",
        got: object = "",
    ) -> None:
        self.format_name = format_name
        self.offset = offset
        self.reason = reason
        super().__init__(
            reason, where=f"{format_name} at offset {offset}", expected=expected, got=got
        )


class VerificationError(UndercroftError):
    """Well-formed evidence that is not authentic or not fresh.

    ``check`` is the stable id of the one check that said no (``quote.signature``).
    """

    def __init__(
        self,
        check: str,
        what: str,
        *,
        expected: object = "",
        got: object = "",
        remedy: str = "",
    ) -> None:
        self.check = check
        super().__init__(what, where=check, expected=expected, got=got, remedy=remedy)


class MemoryFault(UndercroftError):  # noqa: N818 - the architectural term
    """Guest memory that cannot be read.  ``address`` is where; ``kind`` physical or virtual."""

    def __init__(self, address: int, *, kind: str = "physical", why: str = "not present") -> None:
        self.address = address
        self.kind = kind
        super().__init__(f"{kind} address {address:#x} cannot be read: {why}")


class EnvironmentFault(UndercroftError):  # noqa: N818 - a fault of this machine, not a bug
    """This machine lacks something, or a program that we run failed; ``remedy`` says what to do."""

"""PKCS#7 SignedData, as kernels and modules carry it: who signed what, by which key.

Source: RFC 2315 (PKCS#7 1.5) and RFC 5652 (CMS) for the structure; Microsoft's "Windows
Authenticode Portable Executable Signature Format" for SpcIndirectDataContent.  Strict DER, one
signer, and only what is needed to verify: nothing is verified here.
"""

from __future__ import annotations

from dataclasses import dataclass

from undercroft.base import FormatError

_FORMAT = "PKCS#7 SignedData"
_MAX_SIZE = 1 << 20
INTEGER, OCTET_STRING, NULL, OID, SEQUENCE, SET = 0x02, 0x04, 0x05, 0x06, 0x30, 0x31
CONTEXT_0, CONTEXT_1 = 0xA0, 0xA1
KEY_IDENTIFIER = 0x80

OID_SIGNED_DATA = bytes.fromhex("2a864886f70d010702")
OID_DATA = bytes.fromhex("2a864886f70d010701")
OID_SPC_INDIRECT_DATA = bytes.fromhex("2b060104018237020104")
OID_CONTENT_TYPE = bytes.fromhex("2a864886f70d010903")
OID_MESSAGE_DIGEST = bytes.fromhex("2a864886f70d010904")
_DIGESTS = {
    bytes.fromhex("2b0e03021a"): "sha1",
    bytes.fromhex("608648016503040201"): "sha256",
    bytes.fromhex("608648016503040202"): "sha384",
    bytes.fromhex("608648016503040203"): "sha512",
}


@dataclass(frozen=True, slots=True)
class SignedData:
    """One signer's SignedData.

    ``content`` is the value (without tag and length) of the signed content, b"" if it is
    detached.  ``attributes`` is what the signature covers instead of the content: the DER of
    the authenticated attributes as a SET, b"" if there are none; then ``message_digest`` is the
    digest of the content.  ``issuer`` is the DER Name and ``serial`` the number of the signer's
    certificate, or both are empty and ``key_id`` is its subject key identifier (RFC 5652, 5.3);
    ``certificates`` are the DER certificates that came along.
    """

    content_type: bytes
    content: bytes
    digest: str
    issuer: bytes
    serial: int
    attributes: bytes
    message_digest: bytes
    signature: bytes
    certificates: tuple[bytes, ...]
    key_id: bytes = b""


@dataclass(frozen=True, slots=True)
class _Element:
    tag: int
    value: bytes
    raw: bytes


def _element(data: bytes, at: int, where: int) -> tuple[_Element, int]:
    """Return the DER element at ``at`` and the offset behind it."""
    if at + 2 > len(data):
        raise FormatError(_FORMAT, where + at, "an element is cut short")
    tag, length, start = data[at], data[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        raw = data[start : start + count]
        length = int.from_bytes(raw, "big")
        if not 1 <= count <= 4 or len(raw) != count or raw[0] == 0 or length < 0x80:
            raise FormatError(_FORMAT, where + at, "a length that is not DER")
        start += count
    if start + length > len(data):
        raise FormatError(_FORMAT, where + at, "an element is longer than what holds it")
    return _Element(tag, data[start : start + length], data[at : start + length]), start + length


def _elements(data: bytes) -> list[_Element]:
    found = []
    at = 0
    while at < len(data):
        element, at = _element(data, at, 0)
        found.append(element)
    return found


class _Reader:
    """Takes the elements of a constructed value one after the other."""

    def __init__(self, value: bytes, what: str) -> None:
        self._elements = _elements(value)
        self._what = what

    def peek(self) -> int | None:
        """Return the next tag, or None at the end."""
        return self._elements[0].tag if self._elements else None

    def take(self, tag: int) -> _Element:
        """Take the next element, which must have this tag."""
        if not self._elements or self._elements[0].tag != tag:
            raise FormatError(
                _FORMAT,
                0,
                f"{self._what} has another element",
                expected=f"tag {tag:#x}",
                got="nothing" if not self._elements else f"{self._elements[0].tag:#x}",
            )
        return self._elements.pop(0)

    def finish(self) -> None:
        """Refuse leftovers."""
        if self._elements:
            raise FormatError(_FORMAT, 0, f"{self._what} has more elements than it should")


def parse_signed_data(data: bytes) -> SignedData:
    """Parse a ContentInfo that holds SignedData with exactly one signer."""
    if len(data) > _MAX_SIZE:
        raise FormatError(_FORMAT, 0, "the signature is too large", expected=_MAX_SIZE)
    outer, end = _element(data, 0, 0)
    if outer.tag != SEQUENCE or data[end:].strip(b"\0"):
        raise FormatError(_FORMAT, end, "not one ContentInfo")
    info = _Reader(outer.value, "ContentInfo")
    if info.take(OID).value != OID_SIGNED_DATA:
        raise FormatError(_FORMAT, 0, "the content is not SignedData")
    body = _Reader(_only(info.take(CONTEXT_0).value, SEQUENCE).value, "SignedData")
    info.finish()
    body.take(INTEGER)
    body.take(SET)
    content_type, content = _content(body.take(SEQUENCE).value)
    certificates: tuple[bytes, ...] = ()
    if body.peek() == CONTEXT_0:
        certificates = tuple(each.raw for each in _elements(body.take(CONTEXT_0).value))
    if body.peek() == CONTEXT_1:
        body.take(CONTEXT_1)
    signer = _Reader(_only(body.take(SET).value, SEQUENCE).value, "SignerInfo")
    body.finish()
    return _signer(signer, content_type, content, certificates)


def _content(value: bytes) -> tuple[bytes, bytes]:
    reader = _Reader(value, "the signed ContentInfo")
    content_type = reader.take(OID).value
    if reader.peek() is None:
        return content_type, b""
    inner = _elements(reader.take(CONTEXT_0).value)
    reader.finish()
    if len(inner) != 1:
        raise FormatError(_FORMAT, 0, "the signed content is not one element")
    return content_type, inner[0].value


def _signer(
    signer: _Reader, content_type: bytes, content: bytes, certificates: tuple[bytes, ...]
) -> SignedData:
    signer.take(INTEGER)
    issuer, serial, key_id = _identity(signer)
    oid = _elements(signer.take(SEQUENCE).value)
    digest = _DIGESTS.get(oid[0].value) if oid and oid[0].tag == OID else None
    if digest is None:
        raise FormatError(_FORMAT, 0, "the digest algorithm is not known")
    attributes, message_digest = b"", b""
    if signer.peek() == CONTEXT_0:
        element = signer.take(CONTEXT_0)
        attributes = bytes((SET,)) + element.raw[1:]
        message_digest = _message_digest(element.value, content_type)
    signer.take(SEQUENCE)
    signature = signer.take(OCTET_STRING).value
    if signer.peek() == CONTEXT_1:  # unauthenticated: a countersignature, which we do not use
        signer.take(CONTEXT_1)
    signer.finish()
    return SignedData(
        content_type,
        content,
        digest,
        issuer,
        serial,
        attributes,
        message_digest,
        signature,
        certificates,
        key_id,
    )


def _identity(signer: _Reader) -> tuple[bytes, int, bytes]:
    """Return who the signer is: issuer and serial number, or a subject key identifier."""
    if signer.peek() == KEY_IDENTIFIER:
        return b"", 0, signer.take(KEY_IDENTIFIER).value
    identity = _Reader(signer.take(SEQUENCE).value, "IssuerAndSerialNumber")
    issuer = identity.take(SEQUENCE).raw
    serial = int.from_bytes(identity.take(INTEGER).value, "big")
    identity.finish()
    return issuer, serial, b""


def _message_digest(attributes: bytes, content_type: bytes) -> bytes:
    """Return the messageDigest; the contentType attribute must be the content's type."""
    found: dict[bytes, bytes] = {}
    for attribute in _elements(attributes):
        parts = _Reader(attribute.value, "an attribute")
        oid = parts.take(OID).value
        values = _elements(parts.take(SET).value)
        if oid in found or len(values) != 1:
            raise FormatError(_FORMAT, 0, "an attribute stands twice or has several values")
        found[oid] = values[0].value
    if found.get(OID_CONTENT_TYPE) != content_type or OID_MESSAGE_DIGEST not in found:
        raise FormatError(_FORMAT, 0, "the attributes do not name content type and digest")
    return found[OID_MESSAGE_DIGEST]


def _only(value: bytes, tag: int) -> _Element:
    found = _elements(value)
    if len(found) != 1 or found[0].tag != tag:
        raise FormatError(_FORMAT, 0, "expected exactly one element", expected=f"{tag:#x}")
    return found[0]


def authenticode_digest(content: bytes) -> tuple[str, bytes]:
    """Return (algorithm, digest) of a SpcIndirectDataContent's value: what the PE must hash to."""
    parts = _Reader(content, "SpcIndirectDataContent")
    parts.take(SEQUENCE)
    info = _Reader(parts.take(SEQUENCE).value, "DigestInfo")
    parts.finish()
    algorithm = _elements(info.take(SEQUENCE).value)
    name = _DIGESTS.get(algorithm[0].value) if algorithm else None
    if name is None:
        raise FormatError(_FORMAT, 0, "the image's digest algorithm is not known")
    return name, info.take(OCTET_STRING).value


def split_certificates(data: bytes) -> tuple[bytes, ...]:
    """Split DER certificates that stand one behind the other, as in a kernel's key list."""
    return tuple(element.raw for element in _elements(data))

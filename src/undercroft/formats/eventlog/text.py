"""Text in event data: ASCII or UTF-8 with or without an end, and UTF-16.

Every decoding here is strict, so that encoding the text again gives the same bytes.
"""

from __future__ import annotations

from undercroft.formats.eventlog.value import EventValue
from undercroft.formats.reader import BoundedReader


class AsciiText(EventValue, frozen=True, gc=False):
    """Text in one-byte characters (UTF-8 where it is not ASCII); ``end`` is its NUL, if any."""

    text: str
    end: bytes = b""

    def encode(self) -> bytes:
        """Return the bytes."""
        return self.text.encode() + self.end


class Utf16Text(EventValue, frozen=True, gc=False):
    """Text in UTF-16LE; ``end`` is its 16-bit NUL, if any."""

    text: str
    end: bytes = b""

    def encode(self) -> bytes:
        """Return the bytes."""
        return self.text.encode("utf-16-le") + self.end


def utf16(reader: BoundedReader, size: int, what: str) -> str:
    """Read ``size`` bytes of UTF-16LE.  Raises FormatError."""
    start = reader.offset
    raw = reader.take(size, what)
    try:
        return raw.decode("utf-16-le")
    except UnicodeDecodeError as error:
        reader.offset = start + error.start
        raise reader.fail(f"{what} is not UTF-16", got=error.reason) from None


def ascii_text(data: bytes) -> AsciiText | None:
    """Return ``data`` as printable text with at most one NUL, at its end; else None."""
    body = data[:-1] if data[-1:] == b"\0" else data
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    return AsciiText(text, data[len(body) :]) if text and is_readable(text) else None


def utf16_text(data: bytes) -> Utf16Text | None:
    """Return ``data`` as printable UTF-16LE text with at most one NUL, at its end; else None."""
    if len(data) % 2:
        return None
    body = data[:-2] if data[-2:] == b"\0\0" else data
    try:
        text = body.decode("utf-16-le")
    except UnicodeDecodeError:
        return None
    # Any two ASCII characters make one CJK character: text has mostly small code units.
    likely = 2 * body[1::2].count(0) > len(text)
    return Utf16Text(text, data[len(body) :]) if likely and is_readable(text) else None


def is_readable(text: str) -> bool:
    """Has the text no control characters but white space?"""
    return text.isprintable() or text.translate(_WHITE).isprintable()


_WHITE = dict.fromkeys(map(ord, "\t\r\n"), " ")


def plain(text: str, limit: int = 400) -> str:
    """Return text of unknown origin fit for a terminal: no control characters, bounded.

    What is not printable is escaped as Python would; a long text is cut and says so.
    """
    shown = text if len(text) <= limit else text[:limit]
    escaped = "".join(
        [c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown]
    )
    more = len(text) - len(shown)
    return f"{escaped}… ({more} characters more)" if more else escaped

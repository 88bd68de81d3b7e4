"""What a launch measures: parsed strictly, and written back to the byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError
from undercroft.formats.launch import (
    REASONS,
    TAG_IDENTITY,
    LaunchEvent,
    launch_text,
    parse_launch_event,
    parse_launch_text,
    tagged_event,
)


@given(st.integers(0, 2**32 - 1), st.from_regex(r"[a-z-]{1,20}", fullmatch=True), st.binary())
def test_an_event_is_read_as_it_was_written(tag: int, name: str, data: bytes) -> None:
    event = parse_launch_event(tagged_event(tag, name, data))
    assert event == LaunchEvent(tag, name, data)
    assert parse_launch_event(event.encode()) == event


@given(st.binary(max_size=64))
def test_any_bytes_are_an_event_or_a_format_error(data: bytes) -> None:
    try:
        event = parse_launch_event(data)
    except FormatError:
        return
    assert event.encode() == data


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (tagged_event(TAG_IDENTITY, "x", b"")[:-1], "longer"),
        (tagged_event(TAG_IDENTITY, "x", b"") + b"\0", "left"),
        (tagged_event(TAG_IDENTITY, "", b"data"), "no name"),
        (tagged_event(TAG_IDENTITY, "x" * 257, b""), "no name"),
        (b"\1\0\0\0\2\0\0\0\xff\0", "UTF-8"),
    ],
)
def test_refused(field: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_launch_event(field)


@pytest.mark.parametrize("reason", REASONS)
def test_the_launchs_own_text(reason: str) -> None:
    assert parse_launch_text(launch_text(reason, 7)) == (reason, 7)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"reason: reset",
        b"reason: reset\nlaunch: 01\n",
        b"reason: reset\nlaunch: -1\n",
        b"reason: reset\nlaunch: 99999999999\n",
        b"reason: mood\nlaunch: 1\n",
        b"reason: reset\nlaunch: 1\n\n",
        b"Reason: reset\nlaunch: 1\n",
    ],
)
def test_another_text_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_launch_text(data)

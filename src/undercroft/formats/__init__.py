"""Bytes to frozen values and back.

Every parser here reads through :class:`undercroft.formats.reader.BoundedReader`, raises
:class:`undercroft.base.FormatError` and nothing else on bad input, refuses leftovers, and gives
back its input when its value is encoded again.  Nothing here decides whether a value is
authentic (``verify``) or acceptable (``appraise``).
"""

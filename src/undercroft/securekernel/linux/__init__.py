"""Facts about a Linux kernel that runs in a guest, read from outside it.

Each module collects one kind of fact and is named after what it looks at.  A fact is a Finding:
an id, PASS, FAIL or UNKNOWN, and details.  Guest memory is hostile: symbols and types come from
the signed package, every walk is bounded, and what cannot be read is UNKNOWN, never fine.
"""

"""drgn on a live guest: symbols and types from its signed kernel package, read-only.

A tool for a person who wants to look closer.  It is no part of the secure kernel: what it shows
is what the guest's memory holds, and nothing here says whether that is good.
"""

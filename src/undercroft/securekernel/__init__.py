"""The secure kernel: the small trusted process beside one guest.

It reads the guest's memory and registers from outside and reports facts.  It never judges:
``verify``, ``appraise``, ``policy``, ``service`` and ``store`` are not imported here, and a
check enforces that.
"""

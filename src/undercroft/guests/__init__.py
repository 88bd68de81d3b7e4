"""Builds and runs measured guests from distribution packages.

``build`` makes a guest's files out of verified packages and says where each came from; ``run``
starts one under QEMU with a vTPM.  Nothing here looks inside a guest or judges it.
"""

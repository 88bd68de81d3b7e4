"""Builds a bootable Debian disk from verified packages, and says what its boot will measure.

``recipe`` is what goes in, ``tree`` the installed system, ``disk`` the image, ``build`` joins them.
"""

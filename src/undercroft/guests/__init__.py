"""Builds and runs measured guests from distribution packages."""

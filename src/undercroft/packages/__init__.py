"""Fetches distribution packages along their signature chain and derives reference values."""

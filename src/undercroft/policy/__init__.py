"""Typed policy and its parser.  What must hold for a machine to be called good."""

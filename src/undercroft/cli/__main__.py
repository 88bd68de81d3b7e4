"""``python -m undercroft.cli`` is ``undercroft``."""

from undercroft.cli.main import main

main()

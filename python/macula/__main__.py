"""``python -m macula`` is the command."""

from ._command import main

main()

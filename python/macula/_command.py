"""The command ``macula``, run within the interpreter."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Runs the command line of this process and ends it."""
    from . import _macula

    # The interpreter only takes note of Ctrl-C, and nobody here would look: let it end the process, as it ends the command.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    code = _macula.main(["macula", *sys.argv[1:]])
    sys.stdout.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()

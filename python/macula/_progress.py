"""One line on stderr that says how far work is."""

from __future__ import annotations

import sys
import time


class Progress:
    """Writes its line at most twice a second."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.last = 0.0
        self.begun = time.monotonic()

    def __call__(self, done: int, of: int) -> None:
        now = time.monotonic()
        if now - self.last < 0.5 and done < of:
            return
        self.last = now
        rate = done / max(now - self.begun, 1e-9)
        print(f"\r{done}/{of} {self.what}, {rate:.1f}/s ", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the line."""
        print(file=sys.stderr, flush=True)

"""One line on the terminal that says how far long work is and how long it will take."""

import sys
import time
from typing import TextIO


class Progress:
    """A progress bar with time left; where the output is not a terminal, a plain line every ten seconds.

    **Arguments:** `label`: what is being done. `total`: how many units of work. `begun`: how many of them were done before.
    `enabled`: `False` prints nothing.

    ```python
    with Progress("fit AWM", 1000) as progress:
        progress.update(50, "loss 0.12")
    ```
    """

    def __init__(self, label: str, total: int, *, begun: int = 0, enabled: bool = True, stream: TextIO | None = None):
        self._label = label
        self._total = total
        self._begun = begun
        self._enabled = enabled
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._start = self._printed = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._enabled and self._live:
            self._stream.write("\n")

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` units are done, and `note`."""
        now = time.monotonic()
        finished = done >= self._total
        if not self._enabled or not (self._live or finished or now - self._printed > 10):
            return
        self._printed = now
        elapsed = now - self._start
        left = elapsed * (self._total - done) / max(done - self._begun, 1)
        filled = 20 * done // self._total
        clock = f"took {elapsed:.0f} s" if finished else f"{left:.0f} s left"
        line = f"{self._label:<24} [{'#' * filled}{'.' * (20 - filled)}] {done}/{self._total}  {clock}  {note}"
        self._stream.write(f"\r{line:<110}" if self._live else line + "\n")
        self._stream.flush()

"""One line on the terminal that says how far long work is and how long it will take."""

import sys
import time
from typing import TextIO

from ._checks import check_counts


class Progress:
    """A progress bar with time left; where the output is not a terminal, a plain line every ten seconds.

    Time left is reckoned from the first update on: what came before it compiled, or was done by an earlier run.

    **Arguments:** `label`: what is being done. `total`: how many units of work, at least 1. `enabled`: `False` prints nothing.
    `stream`: where to, stderr by default.

    **Raises:** `ValueError` for a `total` below 1.

    ```python
    with Progress("fit AWM", 1000) as progress:
        progress.update(50, "loss 0.12")
    ```
    """

    def __init__(self, label: str, total: int, *, enabled: bool = True, stream: TextIO | None = None):
        check_counts("Progress", total=total)
        self._label = label
        self._total = total
        self._first: tuple[float, int] | None = None
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
        moment, before = self._first = self._first or (now, done)
        finished = done >= self._total
        if not self._enabled or not (self._live or finished or now - self._printed > 10):
            return
        self._printed = now
        filled = 20 * done // self._total
        clock = f"{now - self._start:.0f} s so far"
        if finished:
            clock = f"took {now - self._start:.0f} s"
        elif done > before:
            clock = f"{(now - moment) * (self._total - done) / (done - before):.0f} s left"
        line = f"{self._label:<24} [{'#' * filled}{'.' * (20 - filled)}] {done}/{self._total}  {clock}  {note}"
        self._stream.write(f"\r{line:<110}" if self._live else line + "\n")
        self._stream.flush()

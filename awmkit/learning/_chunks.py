"""Long loops of updates in chunks, between which the host shows progress and hears Ctrl-C."""

import time
from collections.abc import Iterator

import jax


def chunks(total: int, done: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the first and the last update of each chunk, `(start, stop)`, until `total` updates are done.

    A chunk takes about half a second, measured from one yield to the next. The first has one update, because it compiles.
    """
    size, first = 1, True
    while done < total:
        began, stop = time.monotonic(), min(done + size, total)
        yield done, stop
        if jax.process_count() > 1:  # Processes must agree on the chunks, and their clocks differ.
            size = 1 + total // 50
        elif not first:
            size = max(1, round(0.5 * (stop - done) / max(time.monotonic() - began, 1e-9)))
        done, first = stop, False

"""Count the programs that are compiled."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

_COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(lambda event, seconds, **_: _COMPILED.append(event))


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Give a list that has one entry for each program compiled in the block, also if it came from a cache on disk."""
    found, before = [], len(_COMPILED)
    yield found
    found += [event for event in _COMPILED[before:] if event == "/jax/core/compile/backend_compile_duration"]

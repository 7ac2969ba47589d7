"""Progress meters: what a long computation shows while it runs."""

import abc
import shutil
import sys
from io import TextIOBase
from time import monotonic
from typing import Any, TextIO

import equinox as eqx
from tqdm import tqdm

from ._checks import check_counts, kind


class AbstractMeter(abc.ABC):
    """The meter of one running computation, returned by `AbstractProgress.start`. A context manager that closes itself.

    A subclass defines `update` and, if it has something to release, `close`.
    """

    @abc.abstractmethod
    def update(self, done: int, note: str = "", *, phase: str | None = None) -> None:
        """Show the progress so far.

        **Arguments**

        - `done`: the amount of work done since the computation began, from 0 to the total.
        - `note`: the latest numbers, such as `"loss 0.12"`.
        - `phase`: what the computation does now, such as `"compiling"`; `None` keeps the last phase.
        """

    def close(self) -> None:
        """Finish. Called once, by the `with` statement."""
        return

    def __enter__(self) -> "AbstractMeter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class AbstractProgress(eqx.Module):
    """How `fit`, `train` and the other long computations show their progress: `TqdmProgress()` or `NoProgress()`.

    To show it elsewhere, subclass this and `AbstractMeter`, and pass an instance as `progress=`:

    ```python
    class LogMeter(AbstractMeter):
        def __init__(self, label, total):
            self.label, self.total = label, total

        def update(self, done, note="", *, phase=None):
            logging.info("%s: %d of %d, %s", self.label, done, self.total, note)

    class LogProgress(AbstractProgress):
        def start(self, label, total):
            return LogMeter(label, total)
    ```
    """

    @abc.abstractmethod
    def start(self, label: str, total: int) -> AbstractMeter:
        """Start showing a computation.

        **Arguments:** `label`: what is computed, such as `"fit AWM"`. `total`: the amount of work, at least 1.

        **Returns:** its meter.
        """


class TqdmProgress(AbstractProgress):
    """A tqdm bar with the phase and the time left. If the stream is not a terminal: a line at each new phase and every 10 s.

    The time left is estimated from the second update on, because the first one usually compiles.

    ```python
    with TqdmProgress().start("fit AWM", 1000) as meter:
        meter.update(0, phase="compiling")
        ...
        meter.update(50, "loss 0.12", phase="fitting")
    ```

    **Arguments:** `stream`: where to write; stderr by default.

    **Raises:** `ValueError` from `start` if `total` is below 1.
    """

    stream: TextIO | TextIOBase | None = eqx.field(static=True, default=None, repr=False)

    def start(self, label, total):
        check_counts("TqdmProgress", total=total)
        return _TqdmMeter(label, total, sys.stderr if self.stream is None else self.stream)


class _TqdmMeter(AbstractMeter):
    def __init__(self, label: str, total: int, stream: Any):
        self._label, self._total, self._stream = label, total, stream
        self._terminal = stream.isatty()
        self._write = tqdm.status_printer(stream) if self._terminal else self._write_line
        self._phases: list[str] = []
        self._began = monotonic()
        self._shown = -float("inf")
        # The update from which the time left is estimated: when it came, and how much was done by then.
        self._first: int | None = None
        self._base: tuple[float, int] | None = None

    def update(self, done, note="", *, phase=None):
        now = monotonic()
        self._first = done if self._first is None else self._first
        if self._base is None and done > self._first:
            self._base = now, done
        news = phase is not None and phase not in self._phases
        if phase is not None:
            self._phases = [*(p for p in self._phases if p != phase), phase]
        if done >= self._total or news or now - self._shown >= (0.1 if self._terminal else 10):
            self._shown = now
            self._write(self._text(now, done, note))

    def close(self):
        if self._terminal:
            self._stream.write("\n")

    def _text(self, now: float, done: int, note: str) -> str:
        moment, before = self._base or (now, done)
        bar = "{percentage:3.0f}%|{bar}| " if self._terminal else ""
        return tqdm.format_meter(
            done,
            self._total,
            now - self._began,
            rate=(done - before) / (now - moment) if done > before and now > moment else 0,  # 0: unknown.
            prefix=", ".join([self._label, *self._phases[-1:]]),
            postfix=note,
            ncols=shutil.get_terminal_size().columns if self._terminal else None,
            bar_format="{desc}: " + bar + "{n_fmt}/{total_fmt} [{elapsed} elapsed, {remaining} left{postfix}]",
        )

    def _write_line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class NoProgress(AbstractProgress):
    """Show no progress: `fit(..., progress=NoProgress())`."""

    def start(self, label, total):
        return _NoMeter()


class _NoMeter(AbstractMeter):
    def update(self, done, note="", *, phase=None):
        return


def check_progress(progress: Any) -> None:
    """Raise if `progress` is not a progress meter."""
    if not isinstance(progress, AbstractProgress):
        raise ValueError(f"progress is {kind(progress)}; pass TqdmProgress(), or NoProgress() to show nothing.")

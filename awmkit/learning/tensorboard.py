"""A log of a training run for TensorBoard, by tensorboardX (`pip install "awmkit[tensorboard]"`)."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ._metrics import Metrics

try:
    from tensorboardX import SummaryWriter
except ImportError as error:
    raise ImportError(
        f'awmkit.learning.tensorboard needs tensorboardX ({error}); run pip install "awmkit[tensorboard]".'
    ) from error

__all__ = ["TensorBoard"]


class TensorBoard:
    """A callback of `awmkit.train` that writes every number of an epoch as a scalar over environment steps.

    ```python
    train(task, model, policy, key=key, callbacks=[TensorBoard("runs/cancer")])  # then: tensorboard --logdir runs
    ```

    Each seed has its own curve: `true_return/0`, `true_return/1`. In a sweep each setting has: `true_return/0`, or with several
    seeds `true_return/0/0`. A run that resumes from a checkpoint continues its curves:
    points of epochs that run again are hidden. A new run in the same folder hides the points of earlier ones.

    **Arguments:** `folder`: the folder of the event files; it is created if it does not exist.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        self._writer: SummaryWriter | None = None
        self._purge: int | None = None  # The first step of the points to hide.

    def begin_run(self, epochs: Sequence[Metrics]) -> None:
        """Open a new file of events at the first epoch that is still to be done. `awmkit.train` calls this."""
        if self._writer is not None:
            self._writer.close()
        self._writer, self._purge = None, _step(epochs[-1].row()) + 1 if epochs else 0

    def __call__(self, metrics: Metrics) -> None:
        row = metrics.row()
        step = _step(row)
        del row["steps"]
        if self._writer is None:
            purge = step if self._purge is None else self._purge
            # File names have a resolution of seconds, so that two files could have one name without the suffix.
            suffix = f".{time.time_ns()}"
            self._writer = SummaryWriter(str(self._folder), purge_step=purge, flush_secs=1, filename_suffix=suffix)
        for name, value in row.items():
            for run, x in np.ndenumerate(value):
                self._writer.add_scalar("/".join([name, *map(str, run)]), float(x), step)


def _step(row) -> int:
    return int(np.ravel(row["steps"])[0])

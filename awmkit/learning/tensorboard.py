"""A log of a training run for TensorBoard, by tensorboardX (`pip install "awmkit[tensorboard]"`)."""

from pathlib import Path

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

    Each seed has its own curve: `true_return/0`, `true_return/1`. A run that resumes from a checkpoint continues its curves:
    points of epochs that run again are hidden.

    **Arguments:** `folder`: the folder of the event files; it is created if it does not exist.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        self._writer: SummaryWriter | None = None

    def __call__(self, metrics: Metrics) -> None:
        row = metrics.row()
        steps = row.pop("steps")
        step = steps[0] if isinstance(steps, list) else steps
        if self._writer is None:
            # File names have a resolution of seconds, so that two files could have one name without the suffix.
            self._writer = SummaryWriter(str(self._folder), purge_step=step, flush_secs=1, filename_suffix=f".{step}")
        for name, value in row.items():
            curves = {f"{name}/{seed}": x for seed, x in enumerate(value)} if isinstance(value, list) else {name: value}
            for curve, x in curves.items():
                self._writer.add_scalar(curve, x, step)

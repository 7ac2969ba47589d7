"""The numbers of a run as TensorBoard shows them, by tensorboardX (`pip install "awmkit[tensorboard]"`).

Apart from the other logs because it brings protobuf, which nothing else needs.
"""

from pathlib import Path

from ._train_state import Metrics

try:
    from tensorboardX import SummaryWriter
except ImportError as error:
    raise ImportError(f'awmkit.tensorboard needs tensorboardX ({error}); pip install "awmkit[tensorboard]".') from error


class TensorBoard:
    """A callback of `awmkit.train` that writes every number of an epoch as a scalar, over environment steps.

    Of several seeds, a curve each: `true_return/0`, `true_return/1`. A run that goes on from a checkpoint goes on with its
    curves: what an earlier run wrote of epochs that are run again is hidden.

    **Arguments:** `folder`: of the event files, made if it is not there; look at it with `tensorboard --logdir folder`.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        self._writer: SummaryWriter | None = None

    def __call__(self, metrics: Metrics) -> None:
        row = metrics.row()
        steps = row.pop("steps")
        step = steps[0] if isinstance(steps, list) else steps
        if self._writer is None:
            # The files' names tell seconds only, and a second file of one name would overwrite the first.
            self._writer = SummaryWriter(str(self._folder), purge_step=step, flush_secs=1, filename_suffix=f".{step}")
        for name, value in row.items():
            curves = {f"{name}/{seed}": x for seed, x in enumerate(value)} if isinstance(value, list) else {name: value}
            for curve, x in curves.items():
                self._writer.add_scalar(curve, x, step)

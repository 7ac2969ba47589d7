"""A log of a training run as a file of JSON lines."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .._files import check_folder, replacing, strict_json
from ._metrics import Metrics


class JSONLines:
    """A callback of `awmkit.train` that appends one line of JSON to a file after each epoch.

    ```python
    train(task, model, policy, key=key, callbacks=[JSONLines("log.jsonl")])
    pandas.read_json("log.jsonl", lines=True)
    ```

    JSON has no infinities and no NaN: they are the strings "inf", "-inf" and "nan", which `float` and pandas read.

    A new run starts the file again. A run that resumes from a checkpoint continues it: the file always has the epochs of one run,
    each once, whatever it had before.

    **Arguments:** `path`: the file; its folder must exist.

    **Raises:** `ValueError` if the folder does not exist.
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)
        check_folder(self._path)
        self._started = False

    def begin_run(self, epochs: Sequence[Metrics]) -> None:
        """Start the file again with the epochs that a resumed run has already done. `awmkit.train` calls this."""
        self._write([strict_json(metrics.row()) for metrics in epochs])

    def __call__(self, metrics: Metrics) -> None:
        row = metrics.row()
        if not self._started:  # Called by a function of the user, which `train` does not tell that a run begins.
            lines = self._path.read_text().splitlines() if self._path.exists() else []
            self._write([line for line in lines if line.endswith("}") and _steps(json.loads(line)) < _steps(row)])
        with self._path.open("a") as file:
            file.write(strict_json(row) + "\n")

    def _write(self, lines: list[str]) -> None:
        with replacing(self._path) as file:
            file.write("".join(line + "\n" for line in lines).encode())
        self._started = True


def _steps(row) -> int:
    return int(np.ravel(row["steps"])[0])

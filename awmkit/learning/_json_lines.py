"""A log of a training run as a file of JSON lines."""

import json
import os
from pathlib import Path

from ._checkpoint import check_folder
from ._metrics import Metrics


class JSONLines:
    """A callback of `awmkit.train` that appends one line of JSON to a file after each epoch.

    ```python
    train(task, model, policy, key=key, callbacks=[JSONLines("log.jsonl")])
    pandas.read_json("log.jsonl", lines=True)
    ```

    A run that resumes from a checkpoint continues its log: lines of epochs that run again are replaced.

    **Arguments:** `path`: the file; its folder must exist.

    **Raises:** `ValueError` if the folder does not exist.
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)
        check_folder(self._path)
        self._started = False

    def __call__(self, metrics: Metrics) -> None:
        row = metrics.row()
        if not self._started:
            lines = self._path.read_text().splitlines() if self._path.exists() else []
            kept = [line + "\n" for line in lines if line.endswith("}") and _steps(json.loads(line)) < _steps(row)]
            part = self._path.with_name(f"{self._path.name}.part")
            part.write_text("".join(kept))
            os.replace(part, self._path)
            self._started = True
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _steps(row) -> int:
    steps = row["steps"]
    return steps[0] if isinstance(steps, list) else steps

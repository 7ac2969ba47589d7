"""What a run leaves behind as it goes, for tools and for people who come later.

Apart from the algorithm, which knows of callbacks only.
"""

import json
import os
from pathlib import Path

from ._checkpoint import check_folder
from ._train_state import Metrics


class JSONLines:
    """A callback of `awmkit.train` that writes one line of JSON an epoch, flushed at once.

    A run that goes on from a checkpoint goes on with its log: lines of epochs that are run again are replaced.

    **Arguments:** `path`: the file; its folder must exist.

    **Raises:** `ValueError` where it does not.
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)
        check_folder(self._path)
        self._begun = False

    def __call__(self, metrics: Metrics) -> None:
        row = metrics.row()
        if not self._begun:
            lines = self._path.read_text().splitlines() if self._path.exists() else []
            kept = [line + "\n" for line in lines if line.endswith("}") and _steps(json.loads(line)) < _steps(row)]
            beside = self._path.with_name(f"{self._path.name}.part")
            beside.write_text("".join(kept))
            os.replace(beside, self._path)
            self._begun = True
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _steps(row) -> int:
    steps = row["steps"]
    return steps[0] if isinstance(steps, list) else steps

"""Replace a file atomically, and write numbers as strict JSON."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


def check_folder(path: Path) -> None:
    """Raise if `path` is a folder, or its folder does not exist."""
    path = path.resolve()
    if path.is_dir() or not path.parent.is_dir():
        wrong = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise ValueError(f"{path} {wrong}; pass the path of a file in an existing folder.")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` at the end, unless an error is raised.

    If `path` is a symbolic link, its target is replaced. The permissions of an existing file are kept.
    """
    path = path.resolve()
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            if path.exists():
                shutil.copymode(path, part)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def strict_json(x: Any) -> str:
    """Dicts, lists and numbers as JSON. It has no number for infinities and NaN, which become "inf", "-inf" and "nan"."""
    return json.dumps(_finite(x), allow_nan=False)


def _finite(x: Any) -> Any:
    if isinstance(x, dict):
        return {name: _finite(y) for name, y in x.items()}
    if isinstance(x, list | tuple):
        return [_finite(y) for y in x]
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x

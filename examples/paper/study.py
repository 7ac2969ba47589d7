"""Run the cells of an experiment, keep their raw values, and write its table and figure.

An experiment is a grid of cells, for example one method on one task. All its raw values are in one file, a gzipped JSON object
per line and cell:

    pandas.read_json("examples/paper/results/myriad.jsonl.gz", lines=True, precise_float=True)

A row has the cell's `name`, its `config`, the `command`, the `host` (device, versions, commit), the time it took (`seconds` of
wall-clock time, `cpu_seconds` of all cores, `compile_seconds`), and the values. A cell in the file is never run again, so a run
can be stopped at any time: Ctrl-C loses at most the cell that is running. Several processes may work on one file.

A row also has a `fingerprint` of what decides its values: the code of the function that runs the cell, with its arguments and all
hyper-parameters that it uses. A row with another fingerprint is not taken for the cell. The published rows are older and have
none; they are only read with `--from-raw`. Infinities and NaN, which JSON has not, are the strings "inf", "-inf" and "nan".
"""

import argparse
import fcntl
import gzip
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from awmkit import plot, versions
from awmkit.learning import fingerprint

plt.rcParams.update(plot.STYLE)

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
Cell = tuple[str, dict[str, Any], Callable[[], dict[str, Any]]]  # its name, its config, and the function that runs it

_compiling = [0.0]  # seconds in total


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiling[0] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_listen)


class Study:
    """The raw values, table and figure of one experiment.

    **Arguments**

    - `options`: what `arguments` parsed: the output folder, and whether to read the published values instead of running cells.
    - `raw`: the name of the file of raw values, without `.jsonl.gz`.
    - `title`: the name of the table and the figure; by default `raw`.
    """

    def __init__(self, options: argparse.Namespace, raw: str, *, title: str | None = None):
        options.out.mkdir(parents=True, exist_ok=True)
        if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
            jax.config.update("jax_compilation_cache_dir", str(options.out / ".cache"))
        self._out = options.out
        self._title = title or raw
        self._from_raw = options.from_raw
        self._path = (RESULTS if options.from_raw else options.out) / f"{raw}.jsonl.gz"

    def collect(self, cells: Mapping[Any, Cell], figure: Callable[[dict[Any, Row]], Figure] | None = None) -> dict[Any, Row]:
        """Return the row of each cell, running those that are not in the file.

        `figure` draws the rows so far; its picture is saved after each new cell and at the end.

        **Raises:** `ValueError` if the file has a cell of the same name and another config or fingerprint, or, with `--from-raw`,
        if it lacks a cell.
        """
        rows, found, spent = {}, read(self._path), []
        for i, (key, (name, config, run)) in enumerate(cells.items()):
            if name not in found and not self._from_raw:
                found = read(self._path)  # Another process may have finished the cell since.
            if name in found:
                _check_config(self._path, found[name], config)
                if not self._from_raw:
                    _check_fingerprint(self._path, found[name], run)
                rows[key] = found[name]
                continue
            if self._from_raw:
                raise ValueError(f"{self._path} has no cell {name!r}; run it without --from-raw.")
            print(f"[{i + 1}/{len(cells)}] {name}", file=sys.stderr, flush=True)
            rows[key] = found[name] = add(self._path, self._run(name, config, run))
            spent.append(rows[key]["seconds"])
            missing = sum(label not in found for label, *_ in cells.values())
            left = missing * np.mean(spent) / 60
            print(f"    took {spent[-1]:.0f} s; at most {left:.0f} minutes left", file=sys.stderr, flush=True)
            if figure is not None:
                self.save(figure(rows))
        if figure is not None and not spent:
            self.save(figure(rows))
        return rows

    def save(self, figure: Figure, title: str | None = None) -> None:
        """Save a figure in the output folder."""
        figure.savefig(self._out / f"{title or self._title}.png", dpi=110)
        plt.close(figure)

    def write(self, text: str) -> None:
        """Print the table and save it in the output folder."""
        path = self._out / f"{self._title}.md"
        path.write_text(text.rstrip() + "\n")
        print(f"\n{text}\n\nTable, figure and raw values: {self._out}/{self._title}.*")

    def _run(self, name: str, config: dict[str, Any], run: Callable[[], dict[str, Any]]) -> Row:
        started, processor, compiling = time.monotonic(), time.process_time(), _compiling[0]
        try:
            values = jax.tree_util.tree_map(_plain, run())
        except KeyboardInterrupt:
            again = command() if "--out" in sys.argv else f"{command()} --out {shlex.quote(str(self._out))}"
            print(f"\nInterrupted. Finished cells are in {self._path}. To continue: {again}", file=sys.stderr)
            sys.exit(130)
        times = {
            "seconds": time.monotonic() - started,
            "cpu_seconds": time.process_time() - processor,
            "compile_seconds": _compiling[0] - compiling,
        }
        labels = {"name": name, "command": command(), "config": config, "fingerprint": identity(run)}
        return {**labels, **times, "host": host(), **values}


def read(path: Path) -> dict[str, Row]:
    """Return the rows of a file of raw values by name; none if there is no such file."""
    if not path.exists():
        return {}
    with gzip.open(path, "rt") as lines:
        return {row["name"]: row for row in map(loads, lines)}


def dumps(x: Any) -> str:
    """Return `x` as strict JSON."""
    return json.dumps(_each(lambda y: str(y) if isinstance(y, float) and not math.isfinite(y) else y, x), allow_nan=False)


def loads(text: str) -> Any:
    """Return what `dumps` wrote."""
    return _each(lambda y: float(y) if y in ("inf", "-inf", "nan") else y, json.loads(text))


def _each(fn: Callable[[Any], Any], x: Any) -> Any:
    if isinstance(x, dict):
        return {key: _each(fn, y) for key, y in x.items()}
    return [_each(fn, y) for y in x] if isinstance(x, list | tuple) else fn(x)


def identity(run: Callable[[], dict[str, Any]]) -> dict[str, str]:
    """Return what decides the values of a cell, line by line. A cell with more seeds than asked for will do."""
    lines = fingerprint(run) | {"jax_enable_x64": str(jax.config.read("jax_enable_x64"))}
    return {path: line for path, line in lines.items() if path != "seeds"}


def add(path: Path, row: Row) -> Row:
    """Add a row to a file of raw values, unless it has one of that name; return the row that the file has now.

    The file is complete at any moment. Processes that add rows at the same time wait for each other: they lock the folder.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        rows = read(path)
        if row["name"] not in rows:
            rows[row["name"]] = loads(dumps(row))
            _replace(path, rows.values())
            os.fsync(folder)
        return rows[row["name"]]
    finally:
        os.close(folder)  # This releases the lock.


def _replace(path: Path, rows: Iterable[Row]) -> None:
    path = path.resolve()  # If it is a link, its target is replaced.
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:  # Without name and time, equal rows give equal bytes.
            packed.write("".join(dumps(row) + "\n" for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def _check_config(path: Path, row: Row, config: dict[str, Any]) -> None:
    """A cell with more seeds than asked for will do."""
    config, kept = loads(dumps(config)), dict(row["config"])
    if kept.get("seeds", 0) > config.get("seeds", 0):
        config["seeds"] = kept["seeds"]
    if kept != config:
        raise ValueError(
            f"cell {row['name']!r} of {path} has the config {kept}, not {config}; choose another folder with --out"
        )


def _check_fingerprint(path: Path, row: Row, run: Callable[[], dict[str, Any]]) -> None:
    if (kept := row.get("fingerprint")) is None:
        raise ValueError(
            f"cell {row['name']!r} of {path} has no fingerprint; read it with --from-raw, or choose another folder with --out."
        )
    given, kept = identity(run), {name: str(line) for name, line in kept.items()}  # A bound of "-inf" is read as a number.
    for name in (name for name in {**kept, **given} if kept.get(name) != given.get(name)):
        raise ValueError(
            f"cell {row['name']!r} of {path} was run by Python {row['host']['python']} with other hyper-parameters or other code: its "
            f"{name} is {kept.get(name)}, not {given.get(name)}; choose another folder with --out."
        )


def arguments(doc: str | None, name: str, *, seeds: int = 5) -> argparse.ArgumentParser:
    """Return a parser with the options that all drivers have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run, to see that everything works")
    parser.add_argument("--seeds", type=int, default=seeds, help=f"number of seeds, {seeds} by default")
    parser.add_argument("--from-raw", action="store_true", help="draw the published values again; nothing is run")
    default = Path("examples/out") / name
    parser.add_argument("--out", type=Path, default=default, help=f"output folder, {default} by default; its cells are kept")
    return parser


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    """Return a Markdown table."""
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def command() -> str:
    """Return the command that is running."""
    return shlex.join(["python", "examples/paper/" + Path(sys.argv[0]).name, *sys.argv[1:]])


def host() -> dict[str, Any]:
    """Return the device, the versions and the commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {"device": jax.devices()[0].device_kind, "commit": commit.stdout.strip(), **versions()}


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist() if hasattr(value, "shape") else value

"""Raw values of the benchmarks: one file per benchmark, a gzipped JSON object per line and row.

    pandas.read_json("examples/benchmarks/results/speed.jsonl.gz", lines=True, precise_float=True)

A row has its `name`, its `config`, the `command`, the `host` (device and versions), and the measured values. A row in the file
is not measured again, so a benchmark can be stopped and continued. Infinities and NaN, which JSON
has not, are the strings "inf", "-inf" and "nan".
"""

import argparse
import gzip
import json
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from tabulate import tabulate

from awmkit import versions

BEGUN = time.monotonic()
RESULTS = Path(__file__).parent / "results"


class Raw:
    """The rows of a benchmark, read from the output folder, or with `--from-raw` from the published values."""

    def __init__(self, options: argparse.Namespace, name: str):
        options.out.mkdir(parents=True, exist_ok=True)
        self._path = (RESULTS if options.from_raw else options.out) / f"{name}.jsonl.gz"
        self._report = options.out / f"{name}.md"
        self._from_raw = options.from_raw
        self.rows: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            with gzip.open(self._path, "rt") as lines:
                self.rows = {row["name"]: row for row in map(loads, lines)}

    def run(self, name: str, config: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a row, measuring it unless the file has it.

        **Raises:** `ValueError` if the file has a row of the same name and another config, or, with `--from-raw`, no such row.
        """
        if name not in self.rows:
            if self._from_raw:
                raise ValueError(f"{self._path} has no row {name!r}; measure it without --from-raw")
            print(name, file=sys.stderr, flush=True)
            self.add({name: (config, measure())})
        found = self.find(name, config)
        assert found is not None
        return found

    def find(self, name: str, config: dict[str, Any]) -> dict[str, Any] | None:
        """Return a row, or `None` if the file has none of that name.

        **Raises:** `ValueError` if it has another config.
        """
        row = self.rows.get(name)
        if row is not None and row["config"] != loads(dumps(config)):
            raise ValueError(
                f"row {name!r} of {self._path} has the config {row['config']}, not {config}; choose another folder with --out"
            )
        return row

    def add(self, rows: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> None:
        """Add rows, each a config and values, and save the file."""
        command = shlex.join(["python", "examples/benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]])
        shared = {"command": command, "host": {"device": jax.devices()[0].device_kind, **versions()}}
        self.rows |= {name: {"name": name, "config": config, **shared, **values} for name, (config, values) in rows.items()}
        path = self._path.resolve()  # If it is a link, its target is replaced.
        beside = path.with_name(path.name + ".part")
        with beside.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            packed.write("".join(dumps(row) + "\n" for row in self.rows.values()).encode())
        os.replace(beside, path)

    def write(self, text: str) -> None:
        """Print the table and save it in the output folder."""
        self._report.write_text(text.rstrip() + "\n")
        print(f"\n{text}\n\nTable: {self._report}. Raw values: {self._path}")


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


def arguments(doc: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run, to see that everything works")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after these minutes and keep what was measured")
    parser.add_argument("--from-raw", action="store_true", help="write the published table again; nothing is measured")
    default = Path("examples/out") / name
    parser.add_argument("--out", type=Path, default=default, help=f"output folder, {default} by default; its rows are kept")
    return parser


@contextmanager
def until_stopped(options: argparse.Namespace) -> Iterator[Callable[[], float]]:
    """Run a block of measurements. Ctrl-C, or the end of `--minutes` since the script began, leaves it when the program that is
    being compiled or run has ended, and the script goes on with what was measured. Gives a function that returns the seconds left.
    """
    end = BEGUN + 60 * options.minutes
    left = lambda: end - time.monotonic()
    try:
        if options.minutes < math.inf:
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, max(left(), 1e-3))
        yield left
    except KeyboardInterrupt:
        print("Stopped. The same command continues.", file=sys.stderr)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    """Return a Markdown table."""
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)

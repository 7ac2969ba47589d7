"""What the examples that learn share: a folder of runs that can be stopped at any time and gone on with, one JSON file a run.

    study = Study(Path("out"), "myriad", total=54)
    cell = study.run("CancerTreatment-AWM", {"task": ...}, lambda: {"returns": [...]})

A run that is there already is read and not repeated. Each file holds the raw values of each seed, what the run was, versions,
the commit, and the seconds it took: by the clock, of all cores, and of compiling by itself.
"""

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from awmkit import versions

_compiling = [0.0]  # seconds in all


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiling[0] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_listen)


class Study:
    """A folder of runs.

    **Arguments:** `out`: the folder. `total`: how many runs there will be, for the progress line.
    """

    def __init__(self, out: Path, *, total: int):
        out.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(out / ".cache"))
        self.out = out
        self._total = total
        self._done = 0
        self._ran = 0.0
        self._fresh = 0

    def run(self, name: str, config: dict[str, Any], fn: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `fn` returns, by name, from the file of an earlier run of the same `config` or from running it now.

        A kept run of more seeds will do.

        **Raises:** `ValueError` where the file is of another `config`.
        """
        path = self.out / f"{name.replace(' ', '_').replace(',', '')}.json"
        config = json.loads(json.dumps(config))
        self._done += 1
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["config"].get("seeds", 0) > config.get("seeds", 0):
                config["seeds"] = kept["config"]["seeds"]
            if kept["config"] != config:
                raise ValueError(f"{path} is of {kept['config']}, and asked for is {config}; choose another folder with --out.")
            return kept
        started, processor, compiling = time.monotonic(), time.process_time(), _compiling[0]
        print(f"[{self._done}/{self._total}] {name}", file=sys.stderr, flush=True)
        with resumable(self.out):
            values = jax.tree_util.tree_map(_plain, fn())
        seconds = time.monotonic() - started
        self._ran, self._fresh = self._ran + seconds, self._fresh + 1
        left = (self._total - self._done) * self._ran / self._fresh
        compiling = _compiling[0] - compiling
        print(
            f"    took {seconds:.0f} s, {compiling:.0f} of them to compile; at most {left / 60:.0f} minutes left",
            file=sys.stderr,
            flush=True,
        )
        times = {"seconds": seconds, "cpu_seconds": time.process_time() - processor, "compile_seconds": compiling}
        record = {"command": command(), "config": config, **times, "host": host(), **values}
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(record, indent=1))
        os.replace(beside, path)
        return record


@contextlib.contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Ctrl-C ends the program with one line that says how to go on with what `out` holds."""
    try:
        yield
    except KeyboardInterrupt:
        again = command() if "--out" in sys.argv else f"{command()} --out {shlex.quote(str(out))}"
        print(f"\nInterrupted; what is done is kept in {out}. To go on: {again}", file=sys.stderr)
        sys.exit(130)


def arguments(doc: str | None, name: str, *, seeds: int = 5) -> argparse.ArgumentParser:
    """The options that all examples have: --quick, --seeds and --out."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute or two, to see that it works")
    parser.add_argument("--seeds", type=int, default=seeds, help=f"how many, {seeds} by default")
    parser.add_argument(
        "--out", type=Path, default=Path("examples/out") / name, help="a folder; runs found there are not repeated"
    )
    return parser


def command() -> str:
    """The command that is running."""
    return shlex.join(["python", "examples/" + Path(sys.argv[0]).name, *sys.argv[1:]])


def host() -> dict[str, Any]:
    """The device, versions and commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {"device": jax.devices()[0].device_kind, "commit": commit.stdout.strip(), **versions()}


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist() if hasattr(value, "shape") else value

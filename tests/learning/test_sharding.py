"""Many devices, and many processes, learn what one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from awmkit.learning._sharding import split


def _learn(*runs: tuple[int, list[str]]) -> list[dict]:
    """What each run prints, side by side, each with so many devices and options of its own."""
    processes = []
    for devices, options in runs:
        flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
        command = [sys.executable, str(Path(__file__).parent.parent / "helpers" / "sharded.py"), *options]
        processes.append(subprocess.Popen(command, env={**os.environ, "XLA_FLAGS": flags}, stdout=subprocess.PIPE, text=True))
    texts = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(runs)
    return [json.loads(text.splitlines()[-1]) for text in texts]


def test_eight_devices_and_two_processes_learn_what_one_device_does():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    one, *others = _learn((1, []), (8, []), (1, [address, "2", "0"]), (1, [address, "2", "1"]))
    assert [one["devices"], *(other["devices"] for other in others)] == [1, 8, 2, 2]
    for other in others:
        assert other["split"]
        for name in ("losses", "held_out", "policy", "metrics"):
            np.testing.assert_allclose(other[name], one[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_episodes_that_cannot_be_split_evenly_are_an_error():
    mesh = jax.sharding.Mesh(np.array(jax.devices() * 3), ("episodes",))
    with pytest.raises(ValueError, match="batch_size is 16, which cannot be split evenly over 3 devices"):
        split(np.zeros((16, 2)), mesh, "batch_size")

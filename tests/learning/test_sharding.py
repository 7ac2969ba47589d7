"""Several devices, or several processes, give the same result as one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import sharded

from awmkit.learning._sharding import split


def _start(devices: int, *arguments: str) -> subprocess.Popen:
    """Run sharded.py in a process that has this number of devices."""
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, sharded.__file__, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_eight_devices_and_two_processes_give_the_same_result_as_one_device():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [_start(8), *(_start(1, address, "2", number) for number in ("0", "1"))]
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes, which the tests forbid.
        one = sharded.learn()
    texts = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    others = [json.loads(text.splitlines()[-1]) for text in texts]
    assert [one["devices"], *(other["devices"] for other in others)] == [1, 8, 2, 2]
    for other in others:
        assert other["split"]
        for name in ("losses", "held_out", "policy", "metrics"):
            np.testing.assert_allclose(other[name], one[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_an_uneven_split_is_an_error():
    mesh = jax.sharding.Mesh(np.array(jax.devices() * 3), ("episodes",))
    with pytest.raises(ValueError, match="batch_size must be a multiple of 3, the number of devices, .* got 16"):
        split(np.zeros((16, 2)), mesh, "batch_size")

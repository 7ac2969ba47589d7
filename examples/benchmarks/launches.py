"""Count the kernels that a GPU launches for a JAX program. The program is compiled, not run, and the GPU need not exist.

    from launches import plan                  # before anything asks JAX for its devices
    plan(jax.grad(loss), weights, batch)       # Plan(launches=..., waits=..., compile_s=..., memory_MiB=...)

Small kernels take a GPU about 1.6 us each, whatever they compute (measured on an H100), so 1.6 us times `launches` is the time of a
program that is bound by them. On a machine with a GPU the program is compiled for it. Elsewhere it is compiled for an H100 by
XLA's CUDA compiler, which needs a description of the chip only. Install it beside JAX in an environment of its own, with V the
version of JAX:

    pip install jax-cuda12-plugin==V jax-cuda12-pjrt==V nvidia-cuda-nvcc-cu12
"""

# A compiled program may lack a memory analysis.
# pyright: reportOptionalMemberAccess=false

import os
import re
import time
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

# JAX reads both when it is first asked for its devices. Without the first, the plugin needs a GPU to be loaded.
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Sizes of an H100 SXM (NVIDIA's data sheet, and the CUDA guide's table of compute capability 9.0), as XLA's GpuTargetConfigProto.
H100 = """
device_description_str: "NVIDIA H100 80GB HBM3" platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 9 }
gpu_device_info {
  cuda_compute_capability { major: 9 } clock_rate_ghz: 1.98 core_count: 132 fpus_per_core: 128
  device_memory_size: 84978434048 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472 shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}
"""
# Autotuning runs kernels, so it needs the chip.
WITHOUT_CHIP = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
# Instructions that launch no kernel. Loops, branches and calls launch what their computations launch.
FREE = set("parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id copy-done async-done".split())
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = .*? ([a-z][a-z0-9\-]*)\(")


class Plan(NamedTuple):
    """What a GPU is given to do.

    **Fields**

    - `launches`: number of kernels.
    - `waits`: how often the host waits for a value, in loops of unknown length and in branches.
    - `compile_s`: seconds of compiling.
    - `memory_MiB`: temporary memory.
    """

    launches: float
    waits: float
    compile_s: float
    memory_MiB: float


@cache
def gpu() -> Any:
    """Return this machine's GPU, else the description of an H100, or `None` without a compiler for it."""
    if jax.default_backend() == "gpu":
        return jax.devices()[0]
    try:
        described = topologies.get_topology_desc(platform="cuda", topology_name="", target_config=H100, topology="1x1x1")
    except NotImplementedError:
        return None
    return described.devices[0]


def plan(fn: Callable, *args: Any, turns: float = 5) -> Plan | None:
    """Compile `fn(*args)` for a GPU and count its launches.

    **Arguments**

    - `args`: as for `equinox.filter_jit`. The shapes and dtypes of their arrays matter, not their values.
    - `turns`: the number of turns that a loop of unknown length takes, such as the sweeps of `Picard`.

    **Returns:** `None` if no compiler for a GPU is installed.
    """
    if gpu() is None:
        return None
    compiled, seconds = compile_for_gpu(fn, *args)
    return Plan(*launches(compiled.as_text(), turns), seconds, compiled.memory_analysis().temp_size_in_bytes / 2**20)


def compile_for_gpu(fn: Callable, *args: Any) -> tuple[jax.stages.Compiled, float]:
    """Return the compiled program and the seconds that it took. There must be a `gpu()`."""
    device = gpu()
    arrays, rest = eqx.partition(args, eqx.is_array)
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(device))
    run = jax.jit(lambda arrays: eqx.filter(fn(*eqx.combine(arrays, rest)), eqx.is_array))
    lowered = run.lower(jax.tree.map(place, arrays))
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The cache of compiled programs cannot read programs for another machine.
        compiled = lowered.compile(compiler_options=None if jax.default_backend() == "gpu" else WITHOUT_CHIP)
    return compiled, time.perf_counter() - start


def launches(program: str | None, turns: float, outer: float | None = None) -> tuple[float, float]:
    """Return the number of kernels that a compiled program launches, and the number of times that the host waits.

    Loops of unknown length take `turns` turns. Those inside which such loops are nested most deeply take `outer`, if it is given: the
    sweeps of `Newton`, around the loop of MuJoCo's solver.
    """
    assert program is not None
    bodies, entry = {}, ""
    for line in program.splitlines():
        if head := COMPUTATION.match(line):
            lines = bodies[head[2]] = []
            entry = head[2] if head[1] else entry
        elif name := INSTRUCTION.match(line):
            lines.append((name[1], line))

    def called(line: str, *roles: str) -> list[str]:
        return [name for role in roles for name in re.findall(rf"\b{role}=%?([\w.\-]+)", line)]

    def inside(name: str, line: str) -> list[str]:
        """The computations that an instruction runs."""
        if name == "while":
            return called(line, "body", "condition")
        if name == "conditional" and (listed := re.search(r"branch_computations=\{(.*?)\}", line)):
            return [branch.strip(" %") for branch in listed[1].split(",")]
        if name == "conditional":
            return called(line, "true_computation", "false_computation")
        return called(line, "to_apply", "calls") if name in ("call", "async-start") else []

    known = lambda line: re.search(r'"known_trip_count":\{"n":"(\d+)"', line)

    @cache
    def depth(computation: str) -> int:
        """How deeply loops of unknown length are nested."""
        each = lambda name, line: max(map(depth, inside(name, line)), default=0) + (name == "while" and not known(line))
        return max((each(name, line) for name, line in bodies[computation]), default=0)

    deepest, sweeps = depth(entry), turns if outer is None else outer

    @cache
    def of(computation: str) -> tuple[float, float]:
        kernels = waits = 0.0
        for name, line in bodies[computation]:
            times, more, found = 1.0, 0.0, [of(part) for part in inside(name, line)]
            if name == "while" and (length := known(line)):
                times = float(length[1])
            elif name == "while":
                times = more = sweeps if 1 + max(map(depth, inside(name, line))) == deepest else turns
            elif name == "conditional":
                more, found = 1.0, [max(found)]
            elif name not in ("call", "async-start") and name not in FREE:
                found = [(1.0, 0.0)]
            kernels += times * sum(k for k, _ in found)
            waits += more + times * sum(w for _, w in found)
        return kernels, waits

    return of(entry)

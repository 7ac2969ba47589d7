"""Settings of all tests: float64, no implicit dtype promotion, and few hypothesis examples by default."""

import gc
import itertools
import os
from pathlib import Path

import hypothesis
import jax
import pytest

# On a GPU, workers share its memory, and equal programs give equal bits.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
# Tests spend most of their time compiling. XLA's older emitters compile twice as fast as its fusion emitters, but JAX 0.11
# removed them.
if jax.__version_info__ < (0, 11):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "jax-tests"))
jax.config.update("jax_compilation_cache_dir", compiled)

common = {"deadline": None, "derandomize": True, "suppress_health_check": list(hypothesis.HealthCheck)}
hypothesis.settings.register_profile("quick", max_examples=5, **common)
# For tests/mutate.py, which needs any failure and not the smallest failing example.
hypothesis.settings.register_profile("unshrunk", max_examples=5, phases=[hypothesis.Phase.generate], **common)
hypothesis.settings.register_profile(
    "deep", max_examples=1000, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("quick")  # `pytest --hypothesis-profile=deep` runs 1,000 examples

# Tracing allocates millions of objects, few of them in cycles; Python's thresholds collect after every 700.
gc.set_threshold(50_000, 10, 10)

MAPS = Path("/proc/self/maps")
TESTS = itertools.count()


@pytest.fixture(autouse=True)
def limited_memory_maps():
    """Clear compiled programs before the process reaches Linux's limit of 65,530 memory maps, where XLA crashes."""
    yield
    if next(TESTS) % 10 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()

"""Are the deviations that a world model learns those of the data?

    python examples/benchmarks/calibration.py               15 minutes on two cores; each row is printed when it is measured
    python examples/benchmarks/calibration.py --quick       one seed, few updates: 1 minute, learns little
    python examples/benchmarks/calibration.py --from-raw    the published table

The system is linear, s_{t+1} = A s_t + B a_t + noise, with A a rotation that shrinks by 2 % a step and noise of deviation 0.2. The
deviation of s_t given s_0 and the actions is known: its variance is the diagonal of 0.04 sum_{k<t} A^k A^kT, which grows from
0.2^2 to 0.94^2 within 50 steps.

- Markov predicts the next state, so its deviation should be 0.2 at every step.
- An AWM predicts s_t from s_0 and the actions, so its deviation at step t should be that of s_t.

Both have a `GaussianHead`. The table has, at steps 1, 10 and 50 of held-out episodes: the learned deviation, its root mean square
over states and entries, divided by the truth; the share of entries within central 90 % intervals of 100 samples of the
model, with the smallest lower and largest upper end of the 95 % intervals of the entries; and the root mean square error of the
mean, open loop, divided by the deviation of s_t given s_0 and the actions, which no prediction can go below: near 1, so the
likelihood does not under-fit the mean. AWMs without a head, trained by the mean square error, are measured last.

Expected: deviations within 5 % of the truth, and shares between 0.85 and 0.95.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from raw import arguments, markdown, Raw, until_stopped

from awmkit import AWM, fit, GaussianHead, GRU, Markov, NoProgress, prediction_error, Trajectory, unroll
from awmkit.tasks import LinearQuadratic

HORIZON, NOISE = 50, 0.2
STEPS = np.array([1, 10, 50])
COS, SIN = np.cos(0.3), np.sin(0.3)
A = 0.98 * np.array([[COS, -SIN], [SIN, COS]])
MODELS, PLAIN = ("Markov", "AWM"), "AWM without a head"


def episodes(count: int, key: Array) -> Trajectory:
    """Return episodes of the linear system under actions drawn uniformly."""
    task = LinearQuadratic(jnp.asarray(A, float), jnp.array([[0.0], [0.3]]), noise=NOISE)
    keys = jax.random.split(key, 3)
    starts = jax.random.normal(keys[0], (count, 2))
    actions = jax.random.uniform(keys[1], (count, HORIZON, 1), minval=-1.0)
    run = lambda s, a, k: unroll(task, a, s, HORIZON, key=k)
    return jax.jit(jax.vmap(run))(starts, actions, jax.random.split(keys[2], count))


def true_deviations() -> np.ndarray:
    """Return the deviation of each entry of s_1 ... s_H given s_0 and the actions, shape (H, 2)."""
    powers = np.stack([np.linalg.matrix_power(A, k) for k in range(HORIZON)])
    return NOISE * np.sqrt(np.cumsum(np.sum(powers**2, axis=2), axis=0))


def measure(name: str, seed: int, updates: int, count: int) -> dict[str, Any]:
    """Fit a model and measure its deviations and their coverage on held-out episodes."""
    head = None if name == PLAIN else GaussianHead
    began, keys = time.monotonic(), jax.random.split(jax.random.key(seed), 6)
    options: dict[str, Any] = {"updates": updates, "holdout": 0.0, "progress": NoProgress()}
    options["optimiser"] = optax.adam(optax.cosine_decay_schedule(3e-3, updates))
    if name == "Markov":
        model = Markov(2, 1, head=head, key=keys[0])
        options |= {"window": 1, "batch_size": 256}
    else:
        model = AWM(2, 1, GRU(64, key=keys[1]), head=head, key=keys[0])
        options |= {"batch_size": 64}
    result = fit(model, episodes(count, keys[2]), key=keys[3], **options)
    held_out = episodes(500, keys[4])
    error = prediction_error(result.model, held_out, key=keys[5] if head else None, samples=100)
    excess = np.sqrt(np.mean((error.rmse / true_deviations()) ** 2, axis=1))
    measured = {"excess": excess.tolist(), "loss": float(result.losses[-100:].mean())}
    if head is None:
        return measured | {"seconds": time.monotonic() - began}
    learned = jax.jit(jax.vmap(result.model.teacher_forced))(held_out.states, held_out.actions).deviation
    truth = np.full((HORIZON, 2), NOISE) if name == "Markov" else true_deviations()
    ratio = np.sqrt(np.mean((np.asarray(learned) / truth) ** 2, axis=(0, 2)))
    assert error.coverage is not None and error.coverage_low is not None and error.coverage_high is not None
    return measured | {
        "ratio": ratio.tolist(),
        "coverage": error.coverage.mean(axis=1).tolist(),
        "coverage_low": error.coverage_low.min(axis=1).tolist(),
        "coverage_high": error.coverage_high.max(axis=1).tolist(),
        "seconds": time.monotonic() - began,
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return one row per model and seed."""
    lines = []
    for name, row in rows.items():
        three = lambda key, row=row: ", ".join(f"{row[key][n - 1]:.3f}" for n in STEPS) if key in row else ""
        ends = lambda n, row=row: f"[{row['coverage_low'][n - 1]:.3f}, {row['coverage_high'][n - 1]:.3f}]"
        intervals = ", ".join(map(ends, STEPS)) if "coverage" in row else ""
        lines.append([name, three("ratio"), three("coverage"), intervals, three("excess"), f"{row['seconds']:.0f}"])
    heads = "run", "deviation / truth", "coverage", "its intervals", "error / least error", "seconds"
    return markdown(list(heads), lines)


def main() -> None:
    parser = arguments(__doc__, "calibration")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    options = parser.parse_args()
    raw, few = Raw(options, "calibration"), options.quick
    found: dict[str, dict[str, Any]] = {}
    seeds = range(1 if few else options.seeds)
    size = {"updates": 100 if few else 3000, "count": 500 if few else 4000}
    with until_stopped(options):
        for name, seed in [*((name, seed) for seed in seeds for name in MODELS), *((PLAIN, seed) for seed in seeds)]:
            config, row = {"model": name, "seed": seed, **size}, f"{name}, seed {seed}"
            if options.from_raw and row not in raw.rows:
                continue
            found[row] = raw.run(row, config, lambda name=name, seed=seed: measure(name, seed, **size))
            print(table({row: found[row]}).splitlines()[-1], flush=True)
    raw.write(table(dict(sorted(found.items(), key=lambda item: (MODELS + (PLAIN,)).index(item[0].split(",")[0])))))


if __name__ == "__main__":
    main()

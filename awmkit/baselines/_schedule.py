"""When a baseline warms up, learns and is evaluated."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._checks import check_counts, check_key, describe, kind
from .._dynamics import AbstractTask


class Schedule(NamedTuple):
    """Numbers of episodes and iterations in a baseline's run.

    - `warmup_episodes`: episodes of the warm-up.
    - `steps_per_iteration`: environment steps in an iteration of learning.
    - `first`: iterations before the first evaluation.
    - `interval`: iterations between evaluations.
    - `intervals`: number of intervals. Each ends with an evaluation.
    """

    warmup_episodes: int
    steps_per_iteration: int
    first: int
    interval: int
    intervals: int


def make_schedule(
    name: str, horizon: int, *, steps: int, warmup: int, evaluate_every: int, steps_per_iteration: int
) -> Schedule:
    """Convert numbers of environment steps to episodes and iterations.

    **Raises:** `ValueError` if `steps` leaves no iteration after the warm-up.
    """
    episodes = max(2, -(-warmup // horizon))  # The spread of returns needs two episodes.
    iterations = (steps - episodes * horizon) // steps_per_iteration
    if iterations < 1:
        least = episodes * horizon + steps_per_iteration
        taken = f"{episodes * horizon} for the warm-up and {steps_per_iteration} for one iteration"
        raise ValueError(f"{name} needs at least {least} steps, {taken}, got steps={steps}; raise steps or lower warmup.")
    interval = max(1, evaluate_every // steps_per_iteration)
    return Schedule(episodes, steps_per_iteration, iterations % interval, interval, iterations // interval)


def check_task(name: str, task: Any, key: Any, **counts: Any) -> None:
    """Raise `ValueError` if JAX cannot trace `task`, `key` is not one key, or one of `counts` is below 1."""
    if not isinstance(task, AbstractTask):
        raise ValueError(f"{name} needs a task, got {kind(task)}; pass an instance of awmkit.AbstractTask.")
    if task.on_host:
        raise ValueError(
            f"{name} needs a task that JAX can trace, got {kind(task)}; write the task in JAX, or train on the Gymnasium "
            "environment with a library such as Stable-Baselines3."
        )
    check_key(name, key)
    check_counts(name, **counts)


def check_numbers(name: str, **numbers: Any) -> None:
    """Raise `ValueError` unless each of `numbers` is one real number, which may be traced."""
    for what, number in numbers.items():
        if (
            not isinstance(number, float | int | np.number | np.ndarray | Array)
            or jnp.shape(number) != ()
            or jnp.iscomplexobj(number)
        ):
            raise ValueError(f"{name} got {what}={describe(number)}; give one real number, or vmap over several.")

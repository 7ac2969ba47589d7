"""`evaluate`: the true returns of a policy, with an interval."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
import scipy.stats
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .._checks import check_call, check_counts, check_key, kind
from .._dynamics import AbstractTask
from ._collect import call_compiled, collect
from ._exploration import ModePolicy


class Evaluation(eqx.Module):
    """Returns and lengths of the episodes of a policy, from `awmkit.evaluate`. Print it for a summary.

    - `returns`: the return of each episode, shape (N,).
    - `lengths`: the number of steps of each episode, shape (N,).
    - `terminated`: whether the task ended each episode, shape (N,); otherwise it ran into its time limit.
    """

    returns: Float[np.ndarray, " N"]
    lengths: Int[np.ndarray, " N"]
    terminated: Bool[np.ndarray, " N"]

    @property
    def mean(self) -> float:
        """The mean return."""
        return float(self.returns.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """A 95 % interval of the mean return over episodes, by the bias-corrected bootstrap."""
        return _interval(self.returns)

    def __str__(self) -> str:
        (low, high), (short, long) = self.interval, _interval(self.lengths)
        return (
            f"return {self.mean:.5g} [{low:.5g}, {high:.5g}], length {self.lengths.mean():.5g} [{short:.5g}, {long:.5g}], "
            f"{self.terminated.mean():.0%} terminated ({self.returns.size} episodes, 95 % intervals)"
        )


def evaluate(
    task: Any, policy: Callable[..., Array], *, episodes: int = 20, key: PRNGKeyArray | None = None, stochastic: bool = False
) -> Evaluation:
    """Run a policy on the true task, and return its returns and the lengths of its episodes.

    ```python
    print(evaluate(task, result.policy))  # return 982.1 [955.3, 1000], length ...
    ```

    **Arguments**

    - `task`: an `awmkit.AbstractTask`; or a Gymnasium environment, once `awmkit.gym` is imported.
    - `policy`: called as `policy(state, t, *, key)`, returns an action in [-1, 1], shape (A,). JAX traces it, so it draws random
      numbers from `key`.
    - `episodes`: number of episodes N, 20 by default.
    - `key`: for the initial states, and for the noise and the end of a task that has them; `jax.random.key(0)` by default.
    - `stochastic`: whether a stochastic policy is sampled. By default it takes its mode.

    **Returns:** an `Evaluation`.

    **Raises:** `ValueError` if an argument has the wrong type, and as `unroll` or `awmkit.gym.collect` do.
    """
    task = as_task(task)
    check_counts("evaluate", episodes=episodes)
    check_call("policy", "policy(state, t, *, key)", "write it so, or pass a GaussianPolicy", policy, None, 0, key=None)
    key = jax.random.key(0) if key is None else key
    check_key("evaluate", key, several="call evaluate once for each key")
    acting = policy if stochastic else ModePolicy(policy)
    collected = call_compiled(task, collect, task, acting, episodes, key)
    lengths = np.sum(np.asarray(collected.mask), axis=-1)
    ended = np.zeros(episodes, bool) if collected.terminated is None else np.asarray(collected.terminated)
    return Evaluation(np.asarray(collected.returns()), lengths, ended)


@functools.singledispatch
def as_task(task: Any) -> AbstractTask:
    """Return the task, or the task that an environment is."""
    raise ValueError(
        f"The task is {kind(task)}; pass an awmkit.AbstractTask, or a Gymnasium environment after `import awmkit.gym`."
    )


@as_task.register
def _(task: AbstractTask) -> AbstractTask:
    return task


def _interval(values: np.ndarray) -> tuple[float, float]:
    if values.min() == values.max():
        return float(values[0]), float(values[0])
    found = scipy.stats.bootstrap((values,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    return float(found.low), float(found.high)

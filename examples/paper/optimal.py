"""Optimal returns of a simulated task that is deterministic, by its exact gradient."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from awmkit import AbstractTask, held_actions, unroll


def return_of(task: AbstractTask, actions) -> jax.Array:
    """Return the return of an array of actions (H, A)."""
    return unroll(task, actions, task.reset(jax.random.key(0)), task.horizon, reward=task.reward).returns()


def random_returns(task: AbstractTask, episodes: int = 200) -> np.ndarray:
    """Return the returns of uniformly random actions, in float64."""
    with jax.enable_x64(True):
        plans = np.random.default_rng(0).uniform(-1, 1, (episodes, task.horizon, task.action_size))
        return np.asarray(jax.jit(jax.vmap(functools.partial(return_of, task)))(plans))


def solve(task: AbstractTask, starts: int = 16) -> dict[str, Any]:
    """Return the optimal return, that of the best constant action and the mean return of random actions.

    L-BFGS-B with the exact gradient through the simulator, in float64, from constant and from random actions; the best of all
    starts counts.
    """
    shape = task.horizon, task.action_size
    with jax.enable_x64(True):
        rewards = random_returns(task)
        scale = float(np.ptp(rewards)) or 1.0
        ascent = jax.jit(jax.value_and_grad(lambda plan: -return_of(task, plan) / scale))
        constant = jax.jit(jax.value_and_grad(lambda a: -return_of(task, jnp.broadcast_to(a, shape)) / scale))

        def best(value, begin):
            """Return the largest return from a start, and where it is."""
            fun = lambda x: tuple(np.asarray(y, float).ravel() for y in value(x.reshape(begin.shape)))
            flat = lambda x: (fun(x)[0].item(), fun(x)[1])
            options = {"maxiter": 20_000, "maxfun": 40_000, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-10}
            found = minimize(flat, begin.ravel(), jac=True, method="L-BFGS-B", bounds=[(-1, 1)] * begin.size, options=options)
            return -found.fun * scale, found.x.reshape(begin.shape)

        keys = jax.random.split(jax.random.key(0), starts // 2)
        levels = np.linspace(-0.95, 0.95, starts - starts // 2)
        constants = [best(constant, np.full(task.action_size, level)) for level in levels]
        level = max(constants, key=lambda found: found[0])
        begins = [*(np.full(shape, a) for a in levels), np.tile(level[1], (shape[0], 1))]
        plans = [best(ascent, begin) for begin in [*begins, *(np.asarray(held_actions(k, shape)) for k in keys)]]
    optimal = max(plans, key=lambda found: found[0])
    return {
        "optimal": optimal[0],
        "best_constant": level[0],
        "random": float(np.mean(rewards)),
        "actions": optimal[1],
        "best_constant_action": level[1],
        "starts": sorted(found[0] for found in plans),
    }

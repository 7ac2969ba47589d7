"""Run a rejax learner with evaluations, and return its policy as one of awmkit's."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._policies import GaussianPolicy
from .._unroll import unroll
from ._environment import FunctionalEnv
from ._schedule import Schedule


class Baseline(eqx.Module):
    """What a baseline learned. Under `jax.vmap` over keys every array has a leading axis of seeds.

    - `steps`: the number of environment steps before each evaluation, including the warm-up, shape (E,).
    - `returns`: the mean true return of the policy's mode at each evaluation, shape (E,).
    - `policy`: the last policy, an `awmkit.GaussianPolicy`. Call it without a key for its mode.
    """

    steps: Int[Array, "*batch E"]
    returns: Float[Array, "*batch E"]
    policy: GaussianPolicy


def learn(learner, ts, schedule: Schedule, *, evaluations: int, key: PRNGKeyArray) -> Baseline:
    """Train `learner` from its train state `ts` as `schedule` says, on the same initial states at every evaluation."""
    start_key, key = jax.random.split(key)
    env = learner.env
    starts, keys = jax.vmap(env.task.reset)(jax.random.split(start_key, evaluations)), jax.random.split(key, evaluations)

    def evaluate(learner, ts, key):
        policy = to_gaussian_policy(ts.actor_ts.params["params"], env)
        mode = lambda state, t, *, key: policy.mode(state, t)
        run = lambda state, key: unroll(env.task, mode, state, env.task.horizon, reward=env.task.reward, key=key)
        return jnp.mean(jax.vmap(run)(starts, keys).returns())

    interval = schedule.interval * schedule.steps_per_iteration
    learner = learner.replace(eval_callback=evaluate, eval_freq=interval, total_timesteps=schedule.intervals * interval)
    if schedule.first:
        ts = lax.fori_loop(0, schedule.first, lambda _, ts: learner.train_iteration(ts), ts)
    ts, returns = learner.train(train_state=ts)
    before = schedule.warmup_episodes * env.task.horizon + schedule.first * schedule.steps_per_iteration
    steps = before + interval * jnp.arange(schedule.intervals + 1)
    return Baseline(steps, returns, to_gaussian_policy(ts.actor_ts.params["params"], env))


def to_gaussian_policy(actor: dict, env: FunctionalEnv) -> GaussianPolicy:
    """The weights of rejax's actor, a Flax module, as an awmkit policy.

    Only one thing is lost: rejax clips the log standard deviation of SAC to [-10, 2].
    """
    mean, log_std = actor["action_mean"], actor["action_log_std"]
    constant = jnp.zeros(env.task.action_size)
    if eqx.is_array(log_std):  # PPO's does not depend on the state.
        log_std, constant = jtu.tree_map(jnp.zeros_like, mean), log_std
    hidden = [actor["features"][f"Dense_{n}"] for n in range(len(actor["features"]))]
    dense = [*hidden, jtu.tree_map(lambda *x: jnp.concatenate(x, axis=-1), mean, log_std)]
    sizes = {"width": mean["kernel"].shape[0], "depth": len(hidden), "horizon": env.task.horizon}
    policy = GaussianPolicy(env.task.state_size, env.task.action_size, **sizes, key=jax.random.key(0))
    weights = lambda p: [p.log_std, *(layer.weight for layer in p.network.layers), *(layer.bias for layer in p.network.layers)]
    new = [constant, *(layer["kernel"].T for layer in dense), *(layer["bias"] for layer in dense)]
    policy = eqx.tree_at(weights, policy, [jnp.asarray(x, float) for x in new])
    rest = lambda p: (p.input_norm, p.network.activation, p.network.final_activation)
    return eqx.tree_at(rest, policy, (env.input_norm, Swish(), Identity()))


# Modules and not functions, because `jax.vmap` can return a policy that contains them.
class Swish(eqx.Module):
    """The activation function x sigmoid(x)."""

    def __call__(self, x):
        return jax.nn.swish(x)


class Identity(eqx.Module):
    """Return the input."""

    def __call__(self, x):
        return x

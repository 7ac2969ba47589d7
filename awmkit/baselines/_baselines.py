"""Soft actor-critic and PPO, the model-free baselines, by rejax (`pip install "awmkit[baselines]"`).

Apart because rejax brings flax and distrax, which nothing else needs; what is here hands it a task and takes back a policy.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Scalar, ScalarLike

from .._dynamics import AbstractTask
from .._normaliser import Normaliser
from .._policies import features, GaussianPolicy
from .._reward import with_next_state
from .._trajectory import Trajectory
from .._unroll import unroll
from ..learning._train_state import uniform_actions, warm_up

try:
    import rejax
    from gymnax.environments.spaces import Box
    from rejax.buffers import Minibatch
except ImportError as error:
    raise ImportError(f'awmkit.baselines needs rejax ({error}); pip install "awmkit[baselines]".') from error


class Baseline(eqx.Module):
    """What a baseline learnt. Under `jax.vmap` over keys, several seeds: every array gains a leading axis.

    - `steps`: the environment steps taken before each evaluation, warm-up included, shape (E,).
    - `returns`: the true return of the policy's mode at each of them, the mean over the episodes, shape (E,).
    - `policy`: the last one, as an `awmkit.GaussianPolicy`: called without a key it takes its mode.
    """

    steps: Int[Array, "*batch E"]
    returns: Float[Array, "*batch E"]
    policy: GaussianPolicy


def sac(
    task: AbstractTask,
    *,
    key: PRNGKeyArray,
    steps: int = 5_000,
    evaluate_every: int = 500,
    evaluations: int = 1,
    warmup: int = 1_000,
    actions: Callable[..., Array] = uniform_actions,
    reward_scale: ScalarLike | None = None,
    gamma: ScalarLike = 0.99,
    learning_rate: ScalarLike = 1e-3,
    width: int = 64,
    depth: int = 2,
    batch: int = 128,
    updates: int = 2,
    polyak: ScalarLike = 0.99,
    temperature: ScalarLike = 0.01,
    entropy: ScalarLike = -4.0,
) -> Baseline:
    """Soft actor-critic: off-policy, with two critics and a temperature that is tuned. Haarnoja et al. (2018).

    One compiled program, evaluations included; several seeds are one program too:

    ```python
    runs = jax.vmap(lambda key: sac(task, key=key))(jax.random.split(jax.random.key(0), 5))
    ```

    A policy and critics see what our policies with a horizon see. An episode is H = `task.horizon` steps and then
    a new one begins; since H is known and t is seen, step H is terminal, and nothing is bootstrapped from s_H. The mean reward
    of the warm-up at each t is subtracted from the rewards: that changes the return by a constant, whatever is done.

    **Arguments**

    - `task`: any task written in JAX.
    - `key`: a `jax.random.key`, for everything.
    - `steps`: environment steps in all, warm-up included.
    - `evaluate_every`: environment steps between evaluations, which are counted back from the last step.
    - `evaluations`: episodes of each evaluation on the true task; 1 will do where starts and dynamics are deterministic.
    - `warmup`: environment steps with random actions, rounded up to whole episodes, at least two; all of them are put into the
      replay buffer, which forgets nothing.
    - `actions`: draws an episode's actions of the warm-up, as that of `awmkit.Warmup`.
    - `reward_scale`: factor of the rewards; by default one over the standard deviation of the warm-up's rewards-to-go, which
      are summed without discount.
    - `gamma`: the discount of learning; the returns reported have none.
    - `learning_rate`: of policy, critics and temperature, by Adam.
    - `width`, `depth`: of the hidden layers of policy and critics, with swish between them.
    - `batch`, `updates`: transitions in a minibatch, and minibatches after each environment step.
    - `polyak`: how much of the target critics is kept at each environment step.
    - `temperature`: of the entropy, before tuning, in units of scaled reward.
    - `entropy`: what it is tuned to, in nats for each entry of the action; uniform actions have log 2.

    **Returns:** a `awmkit.baselines.Baseline`.

    **Raises:** `ValueError` for a task that is not in JAX, counts below 1, no more steps than the warm-up takes, and a `batch`
    that is larger than the warm-up.
    """
    _check("sac", task, steps=steps, warmup=warmup, evaluate_every=evaluate_every, evaluations=evaluations)
    _check("sac", task, width=width, depth=depth, batch=batch, updates=updates)
    schedule = _schedule("sac", task.horizon, steps=steps, warmup=warmup, evaluate_every=evaluate_every, iteration=1)
    stored = schedule.warmup * task.horizon
    if batch > stored:
        raise ValueError(f"sac got batch={batch}, and its warm-up stores {stored} transitions; lower batch or raise warmup.")
    config = {"learning_rate": learning_rate, "gamma": gamma, "polyak": polyak, "num_epochs": updates, "batch_size": batch}
    config |= {"buffer_size": steps, "hidden_layer_sizes": (width,) * depth}
    options = {
        "actions": actions,
        "evaluations": evaluations,
        "reward_scale": reward_scale,
        "temperature": temperature,
        "entropy": entropy,
    }
    with jax.numpy_dtype_promotion("standard"):  # Flax has weights of 32 bits, whatever the task has.
        return _sac(task, key, schedule, config=config, **options)


def ppo(
    task: AbstractTask,
    *,
    key: PRNGKeyArray,
    steps: int = 100_000,
    evaluate_every: int = 5_000,
    evaluations: int = 1,
    warmup: int = 1_000,
    actions: Callable[..., Array] = uniform_actions,
    reward_scale: ScalarLike | None = None,
    gamma: ScalarLike = 0.99,
    learning_rate: ScalarLike = 1e-3,
    width: int = 64,
    depth: int = 2,
    envs: int = 10,
    epochs: int = 10,
    gae: ScalarLike = 0.95,
    clip: ScalarLike = 0.2,
    entropy: ScalarLike = 0.0,
) -> Baseline:
    """Proximal policy optimisation, which is on-policy and takes far more steps. Schulman et al. (2017).

    Its policy is Gaussian before a tanh, with one standard deviation for all states. Inputs, episodes and rewards are as for
    `awmkit.baselines.sac`.

    **Arguments:** as for `sac`, but for what follows, and

    - `warmup`: gives the statistics of states and rewards only.
    - `envs`: how many episodes an iteration is made of; in each epoch its transitions are shuffled into as many minibatches.
    - `epochs`: passes over an iteration's transitions.
    - `gae`: lambda of the generalised advantage estimate. `clip`: of the probability ratio and of the value.
    - `entropy`: weight of the entropy before the tanh.

    **Returns:** a `awmkit.baselines.Baseline`; whole iterations are counted, never beyond `steps`.

    **Raises:** `ValueError` as `sac` does.
    """
    _check("ppo", task, steps=steps, warmup=warmup, evaluate_every=evaluate_every, evaluations=evaluations)
    _check("ppo", task, width=width, depth=depth, envs=envs, epochs=epochs)
    iteration = envs * task.horizon
    schedule = _schedule("ppo", task.horizon, steps=steps, warmup=warmup, evaluate_every=evaluate_every, iteration=iteration)
    config = {"learning_rate": learning_rate, "gamma": gamma, "gae_lambda": gae, "clip_eps": clip, "ent_coef": entropy}
    config |= {"num_envs": envs, "num_steps": task.horizon, "num_minibatches": envs, "num_epochs": epochs}
    options = {"actions": actions, "evaluations": evaluations, "reward_scale": reward_scale, "layers": (width,) * depth}
    with jax.numpy_dtype_promotion("standard"):  # Flax has weights of 32 bits, whatever the task has.
        return _ppo(task, key, schedule, config=config, **options)


class EnvState(NamedTuple):
    """Where an episode is: the dynamics' carry, s_t and t."""

    carry: PyTree
    state: Float[Array, " S"]
    t: Int[Array, ""]


class FunctionalEnv(eqx.Module):
    """A task as the functional environment that rejax asks for, with five values from a step; it resets itself.

    - `input_norm`: normalises the state. `reward_shift`, `reward_scale`: the reward seen is (r_t - shift_t) scale.
    - `squash`: from the learner's actions, which are within `limit`, to [-1, 1].

    Its `params` are those of the calling convention, and unused.
    """

    task: AbstractTask
    input_norm: Normaliser
    reward_shift: Float[Array, " H"]
    reward_scale: Float[Array, ""]
    squash: Callable = eqx.field(static=True)
    limit: float = eqx.field(static=True)
    default_params: ClassVar[None] = None

    def reset(self, key: PRNGKeyArray, params: Any = None) -> tuple[Float[Array, " O"], EnvState]:
        """The first observation of an episode, and its state."""
        state = self.task.reset(key)
        return self.observe(state, 0), EnvState(self.task.init(state, self.task.horizon), state, jnp.asarray(0))

    def step(
        self, key: PRNGKeyArray, state: EnvState, action: Float[Array, " A"], params: Any = None
    ) -> tuple[Float[Array, " O"], EnvState, Scalar, Bool[Array, ""], dict]:
        """Observation, state, reward, whether step H was made, and no more to say; after step H, those of a new episode."""
        (carry, s, t), (step_key, reset_key) = state, jr.split(key)
        action = self.squash(action)
        carry, next_s = self.task.step(carry, s, action, t, key=step_key)
        reward = with_next_state(self.task.reward)(s, action, t, next_s)
        done = t + 1 == self.task.horizon
        going = self.observe(next_s, t + 1), EnvState(carry, next_s, t + 1)
        observation, state = jtu.tree_map(lambda new, old: jnp.where(done, new, old), self.reset(reset_key), going)
        return observation, state, (reward - self.reward_shift[t]) * self.reward_scale, done, {}

    def observe(self, state: Float[Array, " S"], t: ScalarLike) -> Float[Array, " O"]:
        """What is learnt from: what a policy with a horizon reads."""
        return features(self.input_norm(state), t, self.task.horizon)

    def transitions(self, episodes: Trajectory) -> Minibatch:
        """Every step of whole episodes, (N, H), as rejax keeps them: N H rows, in [-1, 1] as the actions are."""
        times = jnp.arange(self.task.horizon + 1)
        observations = jax.vmap(jax.vmap(self.observe), in_axes=(0, None))(episodes.states, times)
        assert episodes.rewards is not None
        rewards = (episodes.rewards - self.reward_shift) * self.reward_scale
        done = jnp.broadcast_to(times[1:] == self.task.horizon, rewards.shape)
        rows = Minibatch(observations[:, :-1], episodes.actions, rewards, done, observations[:, 1:])
        return jtu.tree_map(lambda x: x.reshape(-1, *x.shape[2:]), rows)

    def observation_space(self, params: Any = None) -> Box:
        """Of S+2 numbers."""
        return Box(-jnp.inf, jnp.inf, (self.task.state_size + 2,), jnp.result_type(float))

    def action_space(self, params: Any = None) -> Box:
        """Of the learner's actions, before `squash`."""
        return Box(-self.limit, self.limit, (self.task.action_size,), jnp.result_type(float))


class _Elementwise(eqx.Module):
    """A function that is no leaf, so that a policy which holds it passes through `jax.vmap`."""

    fn: Callable = eqx.field(static=True)

    def __call__(self, x):
        return self.fn(x)


class _Schedule(NamedTuple):
    """In iterations of so many `steps`: `first` of them before the first evaluation, `every` between the `more` others."""

    warmup: int  # episodes
    steps: int
    first: int
    every: int
    more: int


@eqx.filter_jit
def _sac(task, key, schedule, *, actions, evaluations, reward_scale, temperature, entropy, config) -> Baseline:
    warmup_key, key, evaluation_key = jr.split(key, 3)
    episodes = warm_up(task, actions, schedule.warmup, warmup_key)
    env = _environment(task, episodes, reward_scale, squash=_identity, limit=1.0)
    learner = _targeting(entropy).create(
        env=env, env_params=None, agent_kwargs={"activation": "swish"}, fill_buffer=0, **config
    )
    ts = learner.init_state(key)
    log_alpha = jtu.tree_map(lambda x: jnp.log(temperature).astype(x.dtype), ts.alpha_ts.params)
    ts = ts.replace(
        alpha_ts=ts.alpha_ts.replace(params=log_alpha), replay_buffer=ts.replay_buffer.extend(env.transitions(episodes))
    )
    return _learn(learner, ts, schedule, evaluations=evaluations, key=evaluation_key)


@eqx.filter_jit
def _ppo(task, key, schedule, *, actions, evaluations, reward_scale, layers, config) -> Baseline:
    warmup_key, key, evaluation_key = jr.split(key, 3)
    # A Gaussian that the environment squashes has a mode and a density; one that it clips has neither.
    env = _environment(task, warm_up(task, actions, schedule.warmup, warmup_key), reward_scale, squash=jnp.tanh, limit=math.inf)
    agent = {"activation": "swish", "hidden_layer_sizes": layers}
    learner = rejax.PPO.create(env=env, env_params=None, agent_kwargs=agent, **config)
    return _learn(learner, learner.init_state(key), schedule, evaluations=evaluations, key=evaluation_key)


def _environment(task, episodes: Trajectory, reward_scale: ScalarLike | None, *, squash, limit) -> FunctionalEnv:
    assert episodes.rewards is not None
    inputs = Normaliser(task.state_size).fitted(episodes.states[:, :-1])
    shift = jnp.mean(episodes.rewards, axis=0)
    to_go = lax.cumsum(episodes.rewards - shift, axis=1, reverse=True)
    scale = 1 / Normaliser(1).fitted(to_go[..., None]).scale[0] if reward_scale is None else reward_scale
    return FunctionalEnv(task, inputs, shift, jnp.asarray(scale, shift.dtype), squash, limit)


def _targeting(entropy: ScalarLike) -> type[rejax.SAC]:
    """rejax's SAC with that target of the entropy of each entry of the action; its own is -1."""
    return type("TargetingSAC", (rejax.SAC,), {"target_entropy": property(lambda self: entropy * self.action_dim)})


def _learn(learner, ts, schedule: _Schedule, *, evaluations: int, key: PRNGKeyArray) -> Baseline:
    start_key, key = jr.split(key)
    env = learner.env
    starts, keys = jax.vmap(env.task.reset)(jr.split(start_key, evaluations)), jr.split(key, evaluations)

    def evaluate(learner, ts, key):
        policy = _policy(ts.actor_ts.params["params"], env)
        mode = lambda state, t, *, key: policy.mode(state, t)
        run = lambda state, key: unroll(env.task, mode, state, env.task.horizon, reward=env.task.reward, key=key)
        return jnp.mean(jax.vmap(run)(starts, keys).returns())

    every = schedule.every * schedule.steps
    learner = learner.replace(eval_callback=evaluate, eval_freq=every, total_timesteps=schedule.more * every)
    if schedule.first:
        ts = lax.fori_loop(0, schedule.first, lambda _, ts: learner.train_iteration(ts), ts)
    ts, returns = learner.train(train_state=ts)
    before = schedule.warmup * env.task.horizon + schedule.first * schedule.steps
    return Baseline(before + every * jnp.arange(schedule.more + 1), returns, _policy(ts.actor_ts.params["params"], env))


def _policy(actor: dict, env: FunctionalEnv) -> GaussianPolicy:
    """Flax's weights in a policy of ours; only rejax's bounds of SAC's log standard deviation, -10 and 2, are lost."""
    mean, log_std = actor["action_mean"], actor["action_log_std"]
    constant = jnp.zeros(env.task.action_size)
    if eqx.is_array(log_std):  # PPO's does not depend on the state.
        log_std, constant = jtu.tree_map(jnp.zeros_like, mean), log_std
    hidden = [actor["features"][f"Dense_{n}"] for n in range(len(actor["features"]))]
    dense = [*hidden, jtu.tree_map(lambda *x: jnp.concatenate(x, axis=-1), mean, log_std)]
    sizes = {"width": mean["kernel"].shape[0], "depth": len(hidden), "horizon": env.task.horizon}
    policy = GaussianPolicy(env.task.state_size, env.task.action_size, **sizes, key=jr.key(0))
    weights = lambda p: [p.log_std, *(layer.weight for layer in p.network.layers), *(layer.bias for layer in p.network.layers)]
    new = [constant, *(layer["kernel"].T for layer in dense), *(layer["bias"] for layer in dense)]
    policy = eqx.tree_at(weights, policy, [jnp.asarray(x, float) for x in new])
    rest = lambda p: (p.input_norm, p.network.activation, p.network.final_activation)
    return eqx.tree_at(rest, policy, (env.input_norm, _Elementwise(jax.nn.swish), _Elementwise(_identity)))


def _identity(x):
    return x


def _schedule(name: str, horizon: int, *, steps: int, warmup: int, evaluate_every: int, iteration: int) -> _Schedule:
    episodes = max(2, -(-warmup // horizon))  # One episode has no spread of returns.
    iterations = (steps - episodes * horizon) // iteration
    if iterations < 1:
        taken = f"{episodes * horizon} go to the warm-up, and an iteration takes {iteration}"
        raise ValueError(f"{name} got steps={steps}, of which {taken}; raise steps or lower warmup.")
    every = max(1, evaluate_every // iteration)
    return _Schedule(episodes, iteration, iterations % every, every, iterations // every)


def _check(name: str, task, **counts) -> None:
    if not isinstance(task, AbstractTask):
        raise ValueError(f"The task is a {type(task).__name__}; pass an instance of awmkit.AbstractTask.")
    if task.on_host:
        raise ValueError(
            f"{name} was given a {type(task).__name__}, whose steps no compiled program can make; pass a task written in JAX, "
            "or train on the environment itself with a library for Gymnasium, such as Stable-Baselines3."
        )
    for argument, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} got {argument}={count}; pass a whole number, at least 1.")

"""Does BPO work on an environment that is not awmkit's? Gymnasium's Pendulum-v1, beside soft actor-critic.

    python examples/paper/gymnasium_pendulum.py                     three seeds of 20,000 steps: 20 minutes on one core
    python examples/paper/gymnasium_pendulum.py --quick             one seed of one method, 6,000 steps: 40 seconds
    python examples/paper/gymnasium_pendulum.py --from-raw          the table and the figure again, from the published values
    python examples/paper/gymnasium_pendulum.py --reward learned    with a fitted RewardModel instead of the known reward
    python examples/paper/gymnasium_pendulum.py --methods "AWM GRU" SAC --seeds 5 --steps 10000

An episode has 200 steps. The score is the mean return of the final policy's mode over the same 20 episodes of `env.step` for
all methods. The known reward is the documented one. SAC needs a task in JAX and gets the same equations. Both are checked
against the environment first.

An AWM cannot predict 200 steps of this pendulum: near the upright, tiny differences decide which way it falls, and a hundred
episodes do not show where s_0 and the actions lead ("AWM GRU, whole episodes", right side of the figure). The other AWMs
therefore predict segments of 20 steps from any state (`Segments`), and the policy is improved over 10 imagined steps and a
critic (`ShortHorizon`), as Markov's is.

Expected medians of three seeds: AWM GRU -157 (above -200 after 5,000 steps), AWM transformer -155 (5,000), Markov -156 (5,000),
SAC -153 (4,000), AWM of whole episodes -1209 (never), random actions -1237. Seconds per run on one core: 60 to 70, transformer
190, SAC 20.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from study import arguments, markdown, Row, Study

from awmkit import (
    AbstractDynamics,
    AbstractTask,
    AWM,
    BPO,
    Critic,
    FullHorizon,
    GaussianPolicy,
    GRU,
    held_actions,
    Markov,
    ModelUpdates,
    RewardModel,
    ShortHorizon,
    TargetEntropy,
    train,
    TrainResult,
    Transformer,
    Warmup,
)
from awmkit.baselines import sac
from awmkit.gym import GymnasiumTask
from awmkit.models import AbstractWorldModel
from awmkit.plot import COLOURS

SEGMENT, AHEAD = 20, 10  # steps that an AWM predicts, and steps that a policy imagines
WARMUP, EVALUATIONS = 10, 20  # episodes


def angle_of(state):
    """The angle of a state (cos, sin, speed). Its derivative is finite at (0, 0) too, which a model may predict."""
    cosine, sine, _ = state
    return jnp.arctan2(sine, jnp.where((sine == 0) & (cosine == 0), 1, cosine))


def reward(state, action, t):
    """-(angle^2 + 0.1 speed^2 + 0.001 torque^2) for the state (cos, sin, speed) and an action of 2 N m."""
    del t
    return -(angle_of(state) ** 2 + 0.1 * state[2] ** 2 + 0.001 * (2 * action[0]) ** 2)


class Pendulum(AbstractTask):
    """Pendulum-v1 in JAX, for SAC: a rod of 1 kg and 1 m, g = 10, semi-implicit Euler steps of 0.05 s."""

    state_size: int = 3
    action_size: int = 1
    horizon: int = 200

    def reset(self, key):
        angle, speed = jax.random.uniform(key, (2,), minval=-1.0)
        return jnp.stack([jnp.cos(math.pi * angle), jnp.sin(math.pi * angle), speed])

    def init(self, state, horizon):
        del state, horizon

    def step(self, carry, state, action, t, *, key=None):
        _, sine, speed = state
        speed = jnp.clip(speed + 0.05 * (15 * sine + 3 * 2 * action[0]), -8, 8)
        angle = angle_of(state) + 0.05 * speed
        return carry, jnp.stack([jnp.cos(angle), jnp.sin(angle), speed])

    def reward(self, state, action, t):
        return reward(state, action, t)


class Segments(AbstractWorldModel):
    """An AWM that predicts s_{t+k} from s_t and a_t ... a_{t+k-1}, for any t and for k up to `length`.

    It is for dynamics that do not depend on time. Each episode is cut into many segments, which start in many states.
    """

    awm: AWM
    length: int = eqx.field(static=True)

    def __init__(self, awm: AWM, length: int):
        self.awm, self.length = awm, length

    @property
    def state_size(self):
        return self.awm.state_size

    @property
    def action_size(self):
        return self.awm.action_size

    @property
    def input_norm(self):
        return self.awm.input_norm

    @property
    def output_norm(self):
        return self.awm.output_norm

    @property
    def predict_changes(self):
        return self.awm.predict_changes

    def init(self, state, horizon):
        return self.awm.init(state, horizon), jnp.asarray(0)

    def step(self, carry, state, action, t, *, key=None):
        memory, since = carry  # steps since the segment began
        memory, state = self.awm.step(memory, state, action, since, key=key)
        return (memory, since + 1), state

    def teacher_forced(self, states, actions):
        plans = actions.reshape(-1, self.length, self.action_size)
        return jax.vmap(self.awm.open_loop)(states[: -1 : self.length], plans).reshape(-1, self.state_size)

    def prediction(self, episode):
        return self.teacher_forced(episode.states, episode.actions)

    def residual_base(self, states):
        return jnp.repeat(states[: -1 : self.length], self.length, axis=0)


def gru(key: PRNGKeyArray) -> AWM:
    """Return an AWM with a GRU."""
    backbone_key, key = jax.random.split(key)
    return AWM(3, 1, GRU(64, key=backbone_key), key=key)


def transformer(key: PRNGKeyArray) -> AWM:
    """Return an AWM with a transformer over a segment."""
    backbone_key, key = jax.random.split(key)
    return AWM(3, 1, Transformer(horizon=SEGMENT, key=backbone_key), key=key)


WHOLE = "AWM GRU, whole episodes"
MODELS: dict[str, Callable[[PRNGKeyArray], AbstractDynamics]] = {
    "AWM GRU": lambda key: Segments(gru(key), SEGMENT),
    "AWM transformer": lambda key: Segments(transformer(key), SEGMENT),
    "Markov": lambda key: Markov(3, 1, key=key),
    WHOLE: gru,
}
METHODS = (*MODELS, "SAC")
RANDOM = "random actions", 0  # the key of their cell, like the (method, seed) of the others


def learn(task: GymnasiumTask, method: str, learned: bool, *, steps: int, key: PRNGKeyArray) -> TrainResult:
    """Train a policy. All models have the same hyper-parameters, except that whole episodes allow fewer updates."""
    model_key, policy_key, critic_key, reward_key, key = jax.random.split(key, 5)
    model_updates, policy_updates = 20, 16 if method == WHOLE else 50
    episodes = steps // task.horizon - WARMUP
    adam = lambda rate, updates: optax.adam(optax.cosine_decay_schedule(rate, updates, 0.03))
    fitting = ModelUpdates(
        steps_per_update=task.horizon / model_updates,
        batch_size=16,
        initial_updates=300,
        optimiser=optax.chain(optax.clip_by_global_norm(1.0), adam(2e-3, 300 + model_updates * episodes)),
    )
    shared: dict[str, Any] = {
        "steps_per_update": task.horizon / policy_updates,
        "optimiser": adam(3e-3, policy_updates * episodes),
        "clip": 1.0,
        "entropy": TargetEntropy(optax.linear_schedule(-0.5, -2.0, episodes * task.horizon, WARMUP * task.horizon)),
        "discount": 0.98,
        "paths": BPO,
    }
    if method == WHOLE:
        ascent = FullHorizon(batch_size=16, **shared)
    else:
        ascent = ShortHorizon(critic=Critic(3, task.horizon, key=critic_key), length=AHEAD, batch_size=64, **shared)
    return train(
        task,
        MODELS[method](model_key),
        GaussianPolicy(3, 1, key=policy_key),
        key=key,
        steps=steps,
        warmup=Warmup(WARMUP * task.horizon, held_actions),
        model_updates=fitting,
        ascent=ascent,
        reward=RewardModel(3, 1, key=reward_key) if learned else None,
        evaluate_every=1_000,
        evaluations=EVALUATIONS,
    )


def cell(task: GymnasiumTask, method: str, learned: bool, *, steps: int, seed: int) -> dict:
    """Run one seed; return its curve, its final returns in Gymnasium, and the model's error by step."""
    key = jax.random.key(seed)
    if method == "SAC":
        run = jax.jit(lambda key: sac(Pendulum(), key=key, steps=steps, evaluate_every=1_000, evaluations=EVALUATIONS))
        result = run(key)
        return {"steps": result.steps, "curve": result.returns, "returns": true_returns(task, result.policy)}
    result = learn(task, method, learned, steps=steps, key=key)
    metrics = {name: x for name, x in result.metrics.row().items() if name != "true_return"}
    return {
        "steps": metrics.pop("steps"),
        "curve": result.metrics.true_return,
        "returns": true_returns(task, result.policy),
        "error_by_step": error_by_step(task, result),
        "metrics": metrics,
    }


def true_returns(task: GymnasiumTask, policy: Callable[..., Array]) -> Float[Array, " N"]:
    """Return the returns of the policy's mode in Gymnasium, from the same starts for all methods and seeds."""
    return task.collect(lambda state, t, key: policy(state, t), EVALUATIONS, key=jax.random.key(0)).returns()


def error_by_step(task: GymnasiumTask, result: TrainResult) -> Float[Array, " K"]:
    """Return the mean square error of predictions 1 to K steps ahead in new episodes, in variances of the states."""
    episodes = task.collect(result.policy, EVALUATIONS, key=jax.random.key(1))
    model, truth = result.model, episodes.states[:, 1:]
    assert isinstance(model, AbstractWorldModel)
    errors = (jax.vmap(model.prediction)(episodes) - truth) / jnp.std(truth, axis=(0, 1))
    ahead = model.length if isinstance(model, Segments) else task.horizon
    return jnp.mean(errors.reshape(-1, ahead, 3) ** 2, axis=(0, 2))


def check_equations(env: gymnasium.Env) -> None:
    """Raise `AssertionError` if the reward or the task in JAX differ from `env.step`."""
    task = Pendulum()
    plan = jax.random.uniform(jax.random.key(2), (task.horizon, 1), minval=-1.0)
    episode = GymnasiumTask(env).collect(plan, 1, key=jax.random.key(3))
    assert episode.rewards is not None
    states, rewards = episode.states[0], episode.rewards[0]
    steps = jnp.arange(task.horizon)
    after = jax.vmap(lambda s, a, t: task.step(None, s, a, t)[1])(states[:-1], plan, steps)
    paid = jax.vmap(task.reward)(states[:-1], plan, steps)
    for name, ours, theirs in (("reward", paid, rewards), ("next state", after, states[1:])):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=f"{name} differs from Gymnasium's")


def random_cell(task: GymnasiumTask) -> dict[str, Any]:
    """Return the returns of random actions."""
    act = lambda state, t, key: jax.random.uniform(key, (1,), minval=-1.0)
    return {"returns": task.collect(act, EVALUATIONS, key=jax.random.key(0)).returns()}


def by_method(cells: dict[Any, Row]) -> dict[str, list[Row]]:
    """Group the rows by method, a row per seed."""
    return {m: [row for (method, _), row in cells.items() if method == m] for m in METHODS if (m, 0) in cells}


def figure(cells: dict[Any, Row]) -> Figure:
    """Draw the return during training (each seed and the median) and the final models' errors (medians over seeds)."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    colours = COLOURS | {WHOLE: COLOURS["AWM RNN"]}
    for method, seeds in by_method(cells).items():
        steps, curves = seeds[0]["steps"], np.array([run["curve"] for run in seeds])
        left.plot(steps, curves.T, color=colours[method], lw=0.7, alpha=0.5)
        left.plot(steps, np.median(curves, axis=0), color=colours[method], lw=2, label=method)
        if "error_by_step" in seeds[0]:
            errors = np.median([run["error_by_step"] for run in seeds], axis=0)
            right.semilogy(1 + np.arange(errors.size), errors, color=colours[method])
    left.axhline(np.mean(cells[RANDOM]["returns"]), color="grey", ls=":", label="random actions")
    left.set(xlabel="environment steps", ylabel="mean return of 20 episodes", title="Gymnasium's Pendulum-v1")
    left.xaxis.set_major_locator(MaxNLocator(5))
    right.axhline(1, color="grey", ls=":")
    right.set(xlabel="steps ahead", ylabel="mean square error / variance", title="The final model's predictions")
    fig.legend(loc="outside lower center", ncols=3)
    return fig


def table(cells: dict[Any, Row]) -> str:
    """Return the median and range over seeds, and when each seed's curve first reached -200."""
    rows = []
    for method, seeds in by_method(cells).items():
        means = [np.mean(run["returns"]) for run in seeds]
        first = [next((n for n, x in zip(run["steps"], run["curve"], strict=True) if x >= -200), None) for run in seeds]
        reached = ", ".join("never" if n is None else f"{n:,}" for n in first)
        seconds = np.median([run["seconds"] for run in seeds])
        rows.append([method, f"{np.median(means):.0f} ({min(means):.0f} .. {max(means):.0f})", reached, f"{seconds:.0f}"])
    rows.append(["random actions", f"{np.mean(cells[RANDOM]['returns']):.0f}", "", ""])
    return markdown(["method", "mean return", "first -200 after", "seconds"], rows)


def main() -> None:
    parser = arguments(__doc__, "gymnasium_pendulum", seeds=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=20_000, help="number of environment steps, warm-up included")
    parser.add_argument("--reward", choices=("known", "learned"), default="known", help="the reward in imagined episodes")
    options = parser.parse_args()
    if options.quick:
        options.methods, options.steps, options.seeds = ["AWM GRU"], 6_000, 1
    env, learned = gymnasium.make("Pendulum-v1"), options.reward == "learned"
    if not options.from_raw:
        check_equations(env)
    task = GymnasiumTask(env, reward=None if learned else reward)
    cells: dict[Any, Any] = {RANDOM: ("random", {"episodes": EVALUATIONS}, partial(random_cell, task))}
    for method, seed in [(m, s) for s in range(options.seeds) for m in options.methods]:
        config = {"method": method, "reward": options.reward, "steps": options.steps, "seed": seed}
        run = partial(cell, task, method, learned, steps=options.steps, seed=seed)
        cells[method, seed] = f"{method}-{options.reward}-{options.steps}-{seed}", config, run
    study = Study(options, "gymnasium_pendulum")
    rows = study.collect(cells, figure)
    study.write(f"{options.steps} steps, {options.seeds} seeds, {options.reward} reward\n\n{table(rows)}")


if __name__ == "__main__":
    main()

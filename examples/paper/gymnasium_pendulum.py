"""BPO on an environment that is not ours: Gymnasium's Pendulum-v1, lived through `env.step`, beside soft actor-critic.

    python examples/gymnasium_pendulum.py                     three seeds of 20,000 steps: about 20 minutes of one core
    python examples/gymnasium_pendulum.py --quick             one seed of one method, 6,000 steps: 40 seconds
    python examples/gymnasium_pendulum.py --reward learned    a RewardModel in place of the known reward
    python examples/gymnasium_pendulum.py --methods "AWM GRU" SAC --seeds 5 --steps 10000

An episode has 200 steps and begins anywhere. The number reported is the mean return over the same 20 episodes of
`env.step` for all, of the last policy's mode; the reward, where it is known, is that of the documentation, checked against
the environment first. SAC needs a task in JAX and gets the same equations, checked too; curves have starts of their own.

Over 200 steps the pendulum is out of an AWM's reach: it passes near its upright, where the smallest difference decides
where it goes, so that s_0 and the actions of a hundred episodes do not tell where it is ("AWM GRU, whole episodes"; the
figure's right side). So here an AWM predicts segments of 20 steps that begin anywhere (`Segments`), and the policy climbs 10
imagined steps and a critic. That is the same algorithm with another `ascent=`, and Markov's is the same too.

Expect, medians of three seeds: AWM GRU -157 (-200 passed after 5,000 steps), AWM transformer -155 (5,000), Markov -156
(5,000), SAC -153 (4,000), the AWM of whole episodes -1209 (never), random actions -1237. A run takes, in seconds of one core:
60 to 70, the transformer 190, SAC 20.
"""

import math
from collections.abc import Callable
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
from study import arguments, Study

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

SEGMENT, AHEAD = 20, 10  # steps that an AWM predicts, and that a policy climbs
WARMUP, EVALUATIONS = 10, 20  # episodes


def reward(state, action, t):
    """-(angle^2 + 0.1 speed^2 + 0.001 torque^2), of (cos, sin, speed) and a torque of 2 N m."""
    del t
    cosine, sine, speed = state
    return -(jnp.arctan2(sine, cosine) ** 2 + 0.1 * speed**2 + 0.001 * (2 * action[0]) ** 2)


class Pendulum(AbstractTask):
    """Pendulum-v1 in JAX, for SAC alone: a rod of 1 kg and 1 m, g = 10, steps of 0.05 s, the speed before the angle."""

    state_size: int = 3
    action_size: int = 1
    horizon: int = 200

    def reset(self, key):
        angle, speed = jax.random.uniform(key, (2,), minval=-1.0)
        return jnp.stack([jnp.cos(math.pi * angle), jnp.sin(math.pi * angle), speed])

    def init(self, state, horizon):
        del state, horizon

    def step(self, carry, state, action, t, *, key=None):
        cosine, sine, speed = state
        speed = jnp.clip(speed + 0.05 * (15 * sine + 3 * 2 * action[0]), -8, 8)
        angle = jnp.arctan2(sine, cosine) + 0.05 * speed
        return carry, jnp.stack([jnp.cos(angle), jnp.sin(angle), speed])

    def reward(self, state, action, t):
        return reward(state, action, t)


class Segments(AbstractWorldModel):
    """An AWM of segments, which begin anywhere in an episode: s_{t+k} from s_t and a_t ... a_{t+k-1}, for k up to `length`.

    Cut from one episode they are many, and their starts are all over the place, for dynamics that do not depend on time.
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
    def inputs(self):
        return self.awm.input_norm

    @property
    def targets(self):
        return self.awm.output_norm

    @property
    def predict_changes(self):
        return self.awm.predict_changes

    def init(self, state, horizon):
        return self.awm.init(state, horizon), jnp.asarray(0)

    def step(self, carry, state, action, t, *, key=None):
        memory, since = carry  # the segment's own time, not the episode's
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
    """The AWM of both methods that have one."""
    backbone_key, key = jax.random.split(key)
    return AWM(3, 1, GRU(64, key=backbone_key), key=key)


def transformer(key: PRNGKeyArray) -> AWM:
    """An AWM that attends to its segment."""
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


def learn(task: GymnasiumTask, method: str, learned: bool, *, steps: int, key: PRNGKeyArray) -> TrainResult:
    """One set of hyper-parameters for all models, but for what whole episodes need: fewer and longer updates."""
    model_key, policy_key, critic_key, reward_key, key = jax.random.split(key, 5)
    fits, climbs = 20, 16 if method == WHOLE else 50
    episodes = steps // task.horizon - WARMUP
    adam = lambda rate, updates: optax.adam(optax.cosine_decay_schedule(rate, updates, 0.03))
    fitting = ModelUpdates(
        steps_per_update=task.horizon / fits,
        batch_size=16,
        initial_updates=300,
        optimiser=optax.chain(optax.clip_by_global_norm(1.0), adam(2e-3, 300 + fits * episodes)),
    )
    shared: dict[str, Any] = {
        "every": task.horizon / climbs,
        "optimiser": adam(3e-3, climbs * episodes),
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
    """One run: its curve, the returns of 20 episodes in Gymnasium at its end, and the model's error by step."""
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
    """Of the mode in Gymnasium, from starts that are the same for all methods and seeds."""
    return task.collect(lambda state, t, key: policy(state, t), EVALUATIONS, key=jax.random.key(0)).returns()


def error_by_step(task: GymnasiumTask, result: TrainResult) -> Float[Array, " K"]:
    """Mean square error of what the model predicts, 1 to K steps ahead, of new episodes; in variances of their states."""
    episodes = task.collect(result.policy, EVALUATIONS, key=jax.random.key(1))
    model, truth = result.model, episodes.states[:, 1:]
    assert isinstance(model, AbstractWorldModel)
    errors = (jax.vmap(model.prediction)(episodes) - truth) / jnp.std(truth, axis=(0, 1))
    ahead = model.length if isinstance(model, Segments) else task.horizon
    return jnp.mean(errors.reshape(-1, ahead, 3) ** 2, axis=(0, 2))


def check_equations(env: gymnasium.Env) -> None:
    """Raise where the reward or the task in JAX are not those of `env.step`."""
    task = Pendulum()
    plan = jax.random.uniform(jax.random.key(2), (task.horizon, 1), minval=-1.0)
    episode = GymnasiumTask(env).collect(plan, 1, key=jax.random.key(3))
    assert episode.rewards is not None
    states, rewards = episode.states[0], episode.rewards[0]
    steps = jnp.arange(task.horizon)
    after = jax.vmap(lambda s, a, t: task.step(None, s, a, t)[1])(states[:-1], plan, steps)
    paid = jax.vmap(task.reward)(states[:-1], plan, steps)
    for name, ours, theirs in (("reward", paid, rewards), ("next state", after, states[1:])):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=f"{name} is not Gymnasium's")
    print("reward and equations equal Gymnasium's to 1e-5 over an episode of random actions")


def random_return(task: GymnasiumTask) -> float:
    """The mean return of actions drawn at random."""
    act = lambda state, t, key: jax.random.uniform(key, (1,), minval=-1.0)
    return float(jnp.mean(task.collect(act, EVALUATIONS, key=jax.random.key(0)).returns()))


def figure(runs: dict[str, list[dict]], random: float) -> Figure:
    """Returns along the runs, each seed and their median; and the models' errors, medians over seeds."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for i, (method, seeds) in enumerate(runs.items()):
        steps, curves = seeds[0]["steps"], np.array([run["curve"] for run in seeds])
        left.plot(steps, curves.T, color=f"C{i}", lw=0.7, alpha=0.5)
        left.plot(steps, np.median(curves, axis=0), color=f"C{i}", lw=2, label=method)
        if "error_by_step" in seeds[0]:
            errors = np.median([run["error_by_step"] for run in seeds], axis=0)
            right.semilogy(1 + np.arange(errors.size), errors, color=f"C{i}", label=method)
    left.axhline(random, color="k", ls=":", label="random actions")
    left.set(xlabel="environment steps", ylabel="mean return of 20 episodes", title="Gymnasium's Pendulum-v1")
    left.legend(fontsize=8, loc="lower right")
    right.axhline(1, color="k", lw=0.5)
    right.set(xlabel="steps ahead", ylabel="mean square error / variance", title="the model after the last step")
    return fig


def table(runs: dict[str, list[dict]], random: float) -> str:
    """Median, least and greatest over seeds, in Markdown; and where each seed's curve first reached -200."""
    rows = ["| method | mean return | first -200 after | seconds |", "|---|---|---|---|"]
    for method, seeds in runs.items():
        means = [np.mean(run["returns"]) for run in seeds]
        first = [next((n for n, x in zip(run["steps"], run["curve"], strict=True) if x >= -200), None) for run in seeds]
        reached = ", ".join("never" if n is None else f"{n:,}" for n in first)
        seconds = np.median([run["seconds"] for run in seeds])
        rows.append(f"| {method} | {np.median(means):.0f} ({min(means):.0f} .. {max(means):.0f}) | {reached} | {seconds:.0f} |")
    return "\n".join([*rows, f"| random actions | {random:.0f} | | |"])


def main() -> None:
    parser = arguments(__doc__, "gymnasium_pendulum", seeds=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=20_000, help="of the environment, warm-up included")
    parser.add_argument("--reward", choices=("known", "learned"), default="known", help="what imagined episodes pay")
    options = parser.parse_args()
    if options.quick:
        options.methods, options.steps, options.seeds = ["AWM GRU"], 6_000, 1
    env = gymnasium.make("Pendulum-v1")
    check_equations(env)
    learned = options.reward == "learned"
    task = GymnasiumTask(env, reward=None if learned else reward)
    random = random_return(task)
    study = Study(options.out, total=len(options.methods) * options.seeds)
    runs = {method: [] for method in options.methods}
    for seed in range(options.seeds):
        for method in options.methods:
            config = {"method": method, "reward": options.reward, "steps": options.steps, "seed": seed}
            fn = lambda m=method, s=seed: cell(task, m, learned, steps=options.steps, seed=s)
            runs[method].append(study.run(f"{method}-{options.reward}-{options.steps}-{seed}", config, fn))
    text = f"{options.steps} steps, {options.seeds} seeds, {options.reward} reward\n\n{table(runs, random)}\n"
    (options.out / "table.md").write_text(text)
    figure(runs, random).savefig(options.out / "pendulum.png", dpi=110)
    print("\n" + text)


if __name__ == "__main__":
    main()

"""No function reads the padding of episodes: whatever it contains, results have the same bits."""

import inspect
import tempfile
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from padding import episodes
from public_names import public

from awmkit import (
    Anchored,
    AWM,
    Critic,
    Ensemble,
    fit,
    FullHorizon,
    GaussianHead,
    GaussianPolicy,
    GRU,
    HWM,
    improve,
    load_episodes,
    Markov,
    ModelUpdates,
    NoProgress,
    prediction_error,
    Replay,
    RewardModel,
    save_episodes,
    ShortHorizon,
    TerminationModel,
    train,
    Trajectory,
)
from awmkit.baselines import FunctionalEnv
from awmkit.learning.ascents import init_ascent_state
from awmkit.tasks import Bacteria, Discretised, LinearQuadratic, spiral

KEY = jax.random.key(0)
SYSTEM = spiral(0.9, 0.3)
POLICY = GaussianPolicy(2, 1, width=4, key=KEY)
MODELS = {
    "Markov": Markov(2, 1, width=4, depth=1, horizon=7, key=KEY),
    "Markov, by step": Markov(2, 1, width=4, depth=1, per_step=True, key=KEY),
    "HWM": HWM(2, 1, GRU(4, key=KEY), key=KEY),
    "HWM, Gaussian": HWM(2, 1, GRU(4, key=KEY), head=GaussianHead, key=KEY),
    "AWM": AWM(2, 1, GRU(4, key=KEY), per_step=True, key=KEY),
    "Anchored": Anchored(AWM(2, 1, GRU(4, key=KEY), per_step=True, key=KEY), every=3),
    "Ensemble": Ensemble([Markov(2, 1, width=4, depth=0, key=key) for key in jax.random.split(KEY)]),
    "RewardModel": RewardModel(2, 1, width=4, depth=1, horizon=7, key=KEY),
    "TerminationModel": TerminationModel(2, 1, width=4, depth=1, horizon=7, key=KEY),
}
ASCENTS = {
    "FullHorizon": FullHorizon(batch_size=4),
    "ShortHorizon": ShortHorizon(Critic(2, 7, width=4, key=KEY), batch_size=4),
}


@pytest.fixture
def without_executed_annotations(monkeypatch):
    """Run `improve` as users do; its infos have an axis of updates, which the annotation of one update has not."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def reward(state, action, t):
    return state[1] - action[0] ** 2


def of_model(model):
    """Everything that a model computes from episodes: statistics, targets, predictions, losses and their gradients."""

    def compute(episodes):
        normalised = model.normalised(episodes)
        weights, rest = eqx.partition(normalised, eqx.is_inexact_array)
        loss = lambda weights: jnp.sum(jax.vmap(lambda e: eqx.combine(weights, rest).loss(e))(episodes))
        predictions = jax.vmap(lambda episode: normalised.prediction(episode))(episodes)
        return weights, normalised.target(episodes), predictions, jax.value_and_grad(loss)(weights)

    return compute


def fitted(model, **options):
    options = {"updates": 2, "batch_size": 4, "optimiser": ADAM, "holdout": 0.4, "progress": NoProgress(), **options}
    return lambda episodes: eqx.tree_at(lambda r: r.seconds, fit(model, episodes, key=KEY, **options), 0.0)


ADAM = optax.adam(1e-3)


def ascended(name: str):
    def update(episodes):
        ascent = ASCENTS[name]
        state = ascent.init(POLICY, episodes, key=KEY)
        replay = Replay.empty(64, jax.tree.map(lambda x: x[0], episodes)).add(episodes)
        options = {"dynamics": SYSTEM, "reward": reward, "termination": None, "replay": replay}
        return state, ascent.update(state, POLICY, **options, steps=jnp.asarray(0), key=KEY)

    return update


def replayed(episodes):
    replay = Replay.empty(64, jax.tree.map(lambda x: x[0], episodes)).add(episodes)
    samples = replay.sample(KEY, 9).filled(), replay.sample(KEY, 9, window=3, from_start=0.5).filled()
    return samples, replay.starts(KEY, 9), replay.visited(KEY, 9)


def trained(episodes):
    options = {"steps": 0, "model_updates": ModelUpdates(batch_size=4), "ascent": ASCENTS["FullHorizon"]}
    task = LinearQuadratic(SYSTEM.A, SYSTEM.B, horizon=7)
    result = train(task, MODELS["Markov"], POLICY, key=KEY, episodes=episodes, progress=NoProgress(), **options)
    return result.model, result.policy


def improved(episodes):
    options = {"reward": reward, "updates": 2, "ascent": ASCENTS["FullHorizon"], "progress": NoProgress()}
    return improve(SYSTEM, POLICY, episodes, key=KEY, **options).policy


def of_control(episodes):
    task = Discretised(Bacteria(), 7)
    one = eqx.tree_at(lambda e: e.states, episodes, episodes.states[..., :1])
    return jax.vmap(lambda e: (task.clipped(e), task.report(e)))(one)


def of_baselines(episodes):
    task = LinearQuadratic(SYSTEM.A, SYSTEM.B, horizon=7)
    env = FunctionalEnv.from_warmup(task, episodes, None, squash=jnp.tanh, limit=1.0)
    return env.input_norm, env.reward_shift, env.reward_scale, env.transitions(episodes)


def saved_and_loaded(episodes):
    with tempfile.TemporaryDirectory() as folder:
        save_episodes(f"{folder}/data.npz", episodes)
        return load_episodes(f"{folder}/data.npz")


ON_HOST = {
    "learning.save_episodes": saved_and_loaded,
    "learning.fit": fitted(MODELS["Markov"]),
    "learning.fit, in windows": fitted(MODELS["AWM"], window=3),
    "learning.fit, a simulator": fitted(SYSTEM, window=3),
    "learning.prediction_error": lambda episodes: prediction_error(MODELS["Markov"], episodes),
    "learning.prediction_error, in windows": lambda episodes: prediction_error(MODELS["TerminationModel"], episodes, window=3),
    "learning.prediction_error, sampled": lambda episodes: prediction_error(
        MODELS["HWM, Gaussian"], episodes, window=3, key=KEY, samples=3
    ),
    "learning.train": trained,
    "learning.improve": improved,
    "Trajectory.__iter__": lambda episodes: [x.returns() for x in episodes],
    "Trajectory.from_episodes": lambda episodes: Trajectory.from_episodes(list(episodes)),
}
ROWS: dict[str, Callable[[Trajectory], Any]] = {
    **ON_HOST,
    **{name: of_model(model) for name, model in MODELS.items()},
    "FullHorizon": ascended("FullHorizon"),
    "ShortHorizon": ascended("ShortHorizon"),
    "learning.ascents.init_ascent_state": lambda episodes: init_ascent_state(FullHorizon(), POLICY, episodes).return_scale,
    "Replay": replayed,
    "Discretised": of_control,
    "FunctionalEnv": of_baselines,
    "Trajectory.returns": lambda episodes: (episodes.returns(), jax.grad(lambda g: episodes.returns(g).sum())(0.9)),
    "Trajectory.mean_over_steps": lambda episodes: episodes.mean_over_steps(episodes.rewards),
    "Trajectory.filled": lambda episodes: episodes.filled(),
    "Trajectory.concatenate": lambda episodes: Trajectory.concatenate([episodes, episodes]).filled(),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.usefixtures("without_executed_annotations")
def test_padding_of_any_value_changes_no_bit(name):
    compute = ROWS[name] if name in ON_HOST else eqx.filter_jit(ROWS[name])
    with jax.numpy_dtype_promotion("standard"):
        results = [compute(episodes(padding)) for padding in (0.0, np.nan, 1e9)]
    assert eqx.tree_equal(*results)  # NaN equals nothing.


def test_every_public_function_of_a_trajectory_has_a_row():
    covered = {name.split(",")[0].split(".")[0] for name in ROWS if not name.startswith(("learning.", "Trajectory."))}
    covered |= {"AbstractWorldModel", "AbstractTrainable"}  # Their methods are those of Markov.
    rows = {name.split(",")[0] for name in ROWS}

    def reads(function) -> bool:
        parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
        named = ("episode", "episodes", "trajectory", "replay")
        return any("Trajectory" in str(p.annotation) or p.name in named and p.annotation is p.empty for p in parameters)

    functions = {name: getattr(f, "__func__", f) for name, f in public().items() if not isinstance(f, type)}
    found = {name for name, function in functions.items() if reads(function)}
    missing = {name for name in found if name not in rows and name.split(".")[0] not in covered}
    missing -= {"learning.minari.create_dataset"}  # It gets the episodes one by one.
    assert len(found) > 20 and not missing, sorted(missing)

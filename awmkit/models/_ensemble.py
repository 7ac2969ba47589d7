"""Ensembles: several models of one kind as one dynamics, and a reward that is lower where they disagree."""

import contextlib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Scalar, ScalarLike

from .._checks import check_shapes, describe, kind
from .._dynamics import AbstractDynamics, step_keys
from .._few_at_a_time import few_at_a_time
from .._norms import norm
from .._reward import check_reward, with_next_state
from .._types import Reward
from ._gaussian import sample
from ._trainable import AbstractTrainable, check_sequence
from ._world_model import AbstractWorldModel, reads_time


class Ensemble(AbstractDynamics, AbstractTrainable):
    """Several models as one dynamics. Where the data do not say what happens, members differ (Chua et al., 2018).

    Each of K members predicts the next state; all read the same state and action. `sampling` says which prediction counts:

    - `"mean"` (the default): the mean of all predictions, also under a key.
    - `"episode"`: that of one member, drawn at the first step of an episode (TS-infinity of Chua et al.). A policy that is improved
      on many such episodes has to do well in every member.
    - `"step"`: that of a member drawn at every step (TS-1). The members' differences act as noise.

    Without a key, all of them give the mean. It has no edges of its own: the gradient passes through the members whose
    predictions count, by the paths that each of them has. A carry from `init` has one carry per member, so memory and time are K
    times those of a member.

    ```python
    keys = jax.random.split(key, 5)
    models = eqx.filter_vmap(lambda key: Markov(task.state_size, task.action_size, key=key))(keys)
    ensemble = Ensemble(fit(models, episodes, key=keys).model, sampling="episode")
    result = improve(ensemble, policy, episodes, reward=reward, key=key, ascent=FullHorizon(pessimism=1.0))
    ```

    `awmkit.fit` and `awmkit.train` fit an ensemble too: all members to the same batches, by the mean of their losses. Their initial
    weights alone make them differ.

    **Arguments**

    - `models`: models of one kind, with a leading axis, as `eqx.filter_vmap(make)(keys)` and `awmkit.fit` with several keys return
      them; or a list of models, which are stacked. They may be world models or simulators. Python floats that differ between
      the simulators of a list become arrays.
    - `sampling`: `"mean"`, `"episode"` or `"step"`.

    **Raises:** `ValueError` if `models` are no models of one kind, or `sampling` is none of these.
    """

    models: Any
    sampling: Literal["mean", "episode", "step"] = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    stacks_members: ClassVar[bool] = True

    def __init__(
        self,
        models: AbstractDynamics | Sequence[AbstractDynamics],
        sampling: Literal["mean", "episode", "step"] = "mean",
    ):
        if sampling not in ("mean", "episode", "step"):
            raise ValueError(f"The sampling of an Ensemble must be 'mean', 'episode' or 'step', got {describe(sampling)}.")
        self.models = _stacked(models) if isinstance(models, list | tuple) else _check_stack(models)
        self.sampling = sampling
        self.state_size = self.models.state_size
        self.action_size = self.models.action_size

    @property
    def size(self) -> int:
        """Number of members K."""
        return jtu.tree_leaves(eqx.filter(self.models, eqx.is_array))[0].shape[0]

    @property
    def reads_state(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.models.reads_state

    @property
    def parallel(self):
        return self.models.parallel

    @property
    def resizable(self):
        return self.models.resizable

    def init(self, state, horizon):
        # The first entry is the number of the member that was drawn for the episode, or -1.
        return jnp.asarray(-1), self._each(lambda model: model.init(state, horizon))

    def step(self, carry, state, action, t, *, key=None):
        drawn, carries = carry
        member, key = self._draw(drawn, key)
        carries, states = self._each(lambda model, carry: model.step(carry, state, action, t, key=key), carries)
        chosen = jnp.mean(states, axis=0) if member is None else states[member]
        return (self._kept(drawn, member), carries), chosen

    def rollout_segment(self, carry, state, actions, t, *, keys=None):
        if self.reads_state:  # The members read the predictions that were chosen.
            return AbstractDynamics.rollout_segment(self, carry, state, actions, t, keys=keys)
        size = self.episodes_at_a_time(t + actions.shape[0]) if self.parallel else None  # pyright: ignore[reportArgumentType]
        run = lambda self, carry, state, actions, keys: self._run_segment(carry, state, actions, t, keys)
        return few_at_a_time(run, self, carry, state, actions, keys, size=size)

    def _run_segment(self, carry, state, actions, t, keys):
        drawn, carries = carry
        first, members = None, None
        if keys is not None and self.sampling != "mean":
            first = self._draw(drawn, keys[0])[0]
            members, keys = jax.vmap(lambda key: self._draw(first, key))(keys)
        run = lambda model, carry: model.rollout_segment(carry, state, actions, t, keys=keys)
        carries, states = self._each(run, carries)
        chosen = jnp.mean(states, axis=0) if members is None else states[members, jnp.arange(len(actions))]
        return (self._kept(drawn, first), carries), chosen

    def _draw(self, drawn, key):
        """Return the number of the member whose prediction counts at a step, `None` for the mean, and the key of the members."""
        if key is None or self.sampling == "mean":
            return None, key
        draw_key, key = jax.random.split(key)
        new = jax.random.randint(draw_key, (), 0, self.size)
        return jnp.where(drawn < 0, new, drawn) if self.sampling == "episode" else new, key

    def _kept(self, drawn, member):
        return member if self.sampling == "episode" and member is not None else drawn

    def resize_carry(self, carry, horizon):
        drawn, carries = carry
        return drawn, self._each(lambda model, carry: model.resize_carry(carry, horizon), carries)

    def episodes_at_a_time(self, horizon):
        size = self.models.episodes_at_a_time(horizon)
        return None if size is None else max(1, size // self.size)

    def disagreement(self, states: Float[Array, "T S"], actions: Float[Array, "H A"]) -> Float[Array, " H"]:
        """Return by how much the members differ at each step of a recorded episode.

            d_t = mean over entries of (std over members of s'_{t+1}) / deviation

        The predictions are teacher-forced: a Markov member predicts each state from the true state before it, an HWM from the true
        history, an AWM from s_0 and the actions, a simulator as its `step` does. The deviation is that of the data, by the members'
        `output_norm`: 1 is as uncertain as knowing no more than the data's mean. Without an `output_norm` it is 1.

        **Arguments:** `states`: s_0 ... s_H, shape (H+1, S). `actions`: a_0 ... a_{H-1}, shape (H, A).

        **Returns:** shape (H,), with a gradient, which is 0 where all members agree.
        """
        check_sequence("Ensemble.disagreement", self, states, actions)

        def predict(model):
            if isinstance(model, AbstractWorldModel):
                return sample(model.teacher_forced(states, actions), None)  # The mean, if members predict one.
            inputs = states[:-1], actions, jnp.arange(actions.shape[0])
            return lax.scan(lambda carry, x: model.step(carry, *x), model.init(states[0], actions.shape[0]), inputs)[1]

        return self._spread(self._each(predict))

    def _spread(self, predictions: Float[Array, "K *steps S"]) -> Float[Array, "*steps"]:
        """Return the standard deviation over members in units of the data, averaged over entries."""
        if isinstance(self.models, AbstractWorldModel):
            unit = jnp.mean(self._each(lambda model: model.output_norm.overall), axis=0)
            predictions = predictions / lax.stop_gradient(unit)
        return jnp.mean(spread(predictions), axis=-1)

    def loss(self, episode):
        if not isinstance(self.models, AbstractTrainable):
            raise ValueError(
                f"An Ensemble of {type(self.models).__name__} has no loss, because its members have none; fit simulators by "
                "fit(models, episodes, key=keys), and pass an Ensemble of the result to improve."
            )
        return jnp.mean(self._each(lambda model: model.loss(episode)))

    def target(self, episodes):
        check_shapes("Ensemble.target", states=(episodes.states, ("*", "H+1", self.state_size)))
        return episodes.filled().states[..., 1:, :]

    def prediction(self, episode, *, key=None):
        check_sequence("Ensemble.prediction", self, episode.states, episode.actions)
        episode = episode.filled()
        state, actions = episode.states[0], episode.actions
        begins_anywhere = not isinstance(self.models, AbstractWorldModel) or reads_time(self.models)
        t = 0 if episode.t is None or not begins_anywhere else episode.t
        keys = step_keys(key, actions.shape[0])
        return self.rollout_segment(self.init(state, actions.shape[0]), state, actions, t, keys=keys)[1]

    def normalised(self, episodes):
        if not isinstance(self.models, AbstractTrainable):
            return self
        return eqx.tree_at(lambda m: m.models, self, self._each(lambda model: model.normalised(episodes)))

    def _each(self, fn, *args) -> Any:
        """Return `fn(model, *args)` for each member, with its part of `args`."""
        return eqx.filter_vmap(fn)(self.models, *args)


def members_of(model: Any) -> Any:
    """Return the stacked members of an ensemble, or the model itself. Their class says how they predict."""
    return model.models if isinstance(model, Ensemble) else model


def spread(x: Float[Array, "K *shape"]) -> Float[Array, "*shape"]:
    """Return the standard deviation over the first axis. Its derivative is 0 where all are equal."""
    return norm(x - jnp.mean(x, axis=0)[None], 0) / x.shape[0] ** 0.5


class PessimisticReward(eqx.Module):
    """A reward minus a weight times the disagreement of an ensemble, as in MOPO (Yu et al., 2020) and MOReL (Kidambi et al., 2020):

        r'(s_t, a_t) = r(s_t, a_t) - weight * d(s_t, a_t)

    d is `Ensemble.disagreement` of one step: the standard deviation over members of the state that they predict from s_t and a_t, in
    units of the data. It adds one edge: from (s_t, a_t) to the penalty of step t. As every edge into a reward it always carries the
    full gradient, which draws states and actions towards those that the data show.

    The members must predict from the last state and action, as Markov models and simulators do. For other members, and
    while `awmkit.train` fits the ensemble, use `FullHorizon(pessimism=...)`.

    ```python
    result = improve(ensemble, policy, episodes, reward=PessimisticReward(reward, ensemble, weight=0.5), key=key)
    ```

    **Arguments**

    - `reward`: `reward(state, action, t)`, or with a fourth parameter `next_state`.
    - `ensemble`: a fitted `awmkit.Ensemble`.
    - `weight`: reward that one unit of disagreement costs, 1 by default; may be traced.

    **Raises:** `ValueError` if `ensemble` is no `Ensemble`, its members have a carry, or `weight` is not one number.
    """

    reward: Reward
    ensemble: Ensemble
    weight: ScalarLike = 1.0

    def __check_init__(self):
        check_reward(self.reward)
        if not isinstance(self.ensemble, Ensemble):
            raise ValueError(f"PessimisticReward needs an Ensemble, got {kind(self.ensemble)}; pass Ensemble(models).")
        check_shapes("PessimisticReward", "pass one number", weight=(self.weight, ()))
        models = self.ensemble.models
        carry = eqx.filter_eval_shape(self.ensemble.init, jnp.zeros(models.state_size), 1)[1]
        if jtu.tree_leaves(carry):
            raise ValueError(
                f"PessimisticReward needs members that predict from the last state and action, and {type(models).__name__} predicts "
                "from the steps before them; use FullHorizon(pessimism=...) instead."
            )

    def __call__(
        self, state: Float[Array, " S"], action: Float[Array, " A"], t: ScalarLike, next_state: Float[Array, " S"]
    ) -> Scalar:
        """Return the reward of a transition, minus the penalty.

        **Arguments:** `state`, `next_state`: shape (S,). `action`: shape (A,). `t`: index of the step.
        """
        states, actions = (self.ensemble.state_size,), (self.ensemble.action_size,)
        given = {"state": (state, states), "action": (action, actions), "t": (t, ()), "next_state": (next_state, states)}
        check_shapes("PessimisticReward", **given)
        # Its ensemble's `step` would choose among the predictions.
        predictions = self.ensemble._each(lambda model: model.step(model.init(state, 1), state, action, t)[1])
        value = with_next_state(self.reward)(state, action, t, next_state)
        return value - self.weight * self.ensemble._spread(predictions)


def _stacked(models: Sequence[Any]) -> Any:
    """Return the models of a list, stacked along a leading axis."""
    if not models:
        raise ValueError("An Ensemble got an empty list; pass at least one model.")
    first = models[0]
    for model in models:
        _check_dynamics(model)
        if jtu.tree_structure(model) != jtu.tree_structure(first):
            raise ValueError(
                f"The models of an Ensemble must be of one kind and have the same settings, got a {type(first).__name__} and a "
                f"{type(model).__name__} whose structures differ; build them with the same arguments, except for the key."
            )

    def stack(*x):
        if len({jnp.shape(y) for y in x if eqx.is_array(y)}) > 1:
            raise ValueError(f"The arrays of the models of an Ensemble differ in shape: {describe(x[0])} and others.")
        if eqx.is_array(x[0]) or any(isinstance(y, float) and y != x[0] for y in x):
            return jnp.stack([jnp.asarray(y) for y in x])
        if any(y is not x[0] and not np.array_equal(y, x[0]) for y in x):
            raise ValueError(f"The models of an Ensemble differ in {describe(x[0])}; give all of them the same.")
        return x[0]

    return _check_stack(jtu.tree_map(stack, *models))


def _check_dynamics(model: Any) -> None:
    if not isinstance(model, AbstractDynamics) or getattr(model, "on_host", False):
        raise ValueError(f"An Ensemble needs world models or simulators, got {kind(model)}; pass stacked models, or a list.")


def _check_stack(models: Any) -> Any:
    """Return the models; raise unless they have a leading axis of members, without which a member can make no step."""
    _check_dynamics(models)
    counts = {jnp.shape(x)[:1] for x in jtu.tree_leaves(eqx.filter(models, eqx.is_array))}
    size = (models.state_size,)

    def step(models):
        state, action = jnp.zeros(models.state_size), jnp.zeros(models.action_size)
        run = lambda model: model.step(model.init(state, 1), state, action, 0, key=jax.random.key(0))[1]
        return eqx.filter_vmap(run)(models)

    shape: Any = None
    if len(counts) == 1 and () not in counts:
        with contextlib.suppress(Exception):
            shape = eqx.filter_eval_shape(step, models).shape
    if shape is None or shape[1:] != size:
        raise ValueError(
            f"An Ensemble needs several models, stacked along a leading axis of every array, got one {type(models).__name__}; build "
            "them with eqx.filter_vmap(make)(keys), or pass a list of models."
        )
    return models

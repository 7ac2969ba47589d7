"""The interfaces of dynamics and tasks: everything that moves a state."""

import abc
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree, Scalar, ScalarLike

from ._checks import check_counts, check_floats, check_shapes, Shape

# The methods below are wrapped in every subclass, so that no wrong shape broadcasts, whoever wrote them and whoever calls them.


def _checked_init(init: Callable) -> Callable:
    @functools.wraps(init)
    def checked(self, state, horizon):
        _check(self, "init", state)
        return as_arrays(init(self, state, horizon), state)

    return checked


def _checked_step(step: Callable) -> Callable:
    @functools.wraps(step)
    def checked(self, carry, state, action, t, **kwargs):
        _check(self, "step", state, action=(action, (self.action_size,)), t=(t, ()))
        check_floats(f"{type(self).__name__}.step", state=state)
        carry, next_state = step(self, carry, state, action, t, **kwargs)
        return as_arrays(carry, state), next_state

    return checked


def _checked_open_loop(open_loop: Callable) -> Callable:
    @functools.wraps(open_loop)
    def checked(self, state, actions, **kwargs):
        _check(self, "open_loop", state, actions=(actions, ("H", self.action_size)))
        return open_loop(self, state, actions, **kwargs)

    return checked


def _checked_segment(rollout_segment: Callable) -> Callable:
    @functools.wraps(rollout_segment)
    def checked(self, carry, state, actions, *args, **kwargs):
        _check(self, "rollout_segment", state, actions=(actions, ("H", self.action_size)))
        check_floats(f"{type(self).__name__}.rollout_segment", state=state)
        return rollout_segment(self, as_arrays(carry, state), state, actions, *args, **kwargs)

    return checked


def _checked_rule(terminates: Callable) -> Callable:
    @functools.wraps(terminates)
    def checked(self, state, action, t, *args, **kwargs):
        _check(self, "terminates", state, action=(action, (self.action_size,)), t=(t, ()))
        return terminates(self, state, action, t, *args, **kwargs)

    return checked


def _checked_reward(reward: Callable) -> Callable:
    @functools.wraps(reward)
    def checked(self, state, action, t, *args, **kwargs):
        _check(self, "reward", state, action=(action, (self.action_size,)), t=(t, ()))
        try:
            return reward(self, state, action, t, *args, **kwargs)
        except (TypeError, AttributeError) as error:
            if args or "next_state" in kwargs or "NoneType" not in str(error):
                raise
            raise ValueError(
                f"The reward of {type(self).__name__} reads the next state, which was not given; call it as reward(state, action, "
                "t, next_state)."
            ) from error

    return checked


def _is_method(attribute: Any) -> bool:
    """Return whether the attribute of a class is called with `self`, whose sizes its arguments are checked against."""
    return callable(attribute) and not isinstance(attribute, staticmethod | classmethod)


_CHECKED = {"init": _checked_init, "step": _checked_step, "open_loop": _checked_open_loop, "rollout_segment": _checked_segment}


class AbstractDynamics(eqx.Module):
    """A map from a state and an action to the next state: a simulator or a world model.

    Subclass it to bring your own simulator. `step` is enough. The state is one flat vector. Everything else that a dynamics
    remembers (a key-value cache, a hidden state, a solver's warm start) is its carry. A dynamics with a carry also defines `init`.

    A dynamics does not decide how much gradient its inputs carry. The unroll does, by `awmkit.Paths`.

    **Fields** a subclass defines

    - `state_size`, `action_size`: number of entries of a state and of an action.
    - `bounded_actions`: class attribute, `False` by default. `True` if actions outside [-1, 1] are a mistake; an unroll then
      warns of such an array of actions.
    - `reads_state`: class attribute, `True` by default. `False` if `step` ignores its `state` argument, as in an actions world
      model, which predicts from the carry and the action alone. The method `Parallel` needs `False`.

    **What must hold**

    - `step` returns a carry and a state with the same structure, shapes and dtypes as its arguments `carry` and `state`.
    - `init` and `step` can be traced by JAX, and differentiated if gradients are wanted.
    - With the same arguments and key, `step` returns the same state.

    A parameter to differentiate must be an array, as `drag` below. `eqx.filter_grad` returns `None` for a Python number, and
    `eqx.filter_jit` compiles again for each of its values. The parameters of awmkit's own tasks may be given as numbers.

    ```python
    class Boat(AbstractDynamics):
        drag: Array = eqx.field(default=0.5, converter=jnp.asarray)
        state_size: int = eqx.field(static=True, default=2)
        action_size: int = eqx.field(static=True, default=1)

        def step(self, carry, state, action, t, *, key=None):
            x, v = state
            return carry, jnp.stack([x + 0.1 * v, v + 0.1 * (action[0] - self.drag * v)])

    trajectory = unroll(Boat(), policy, jnp.zeros(2), 50)
    ```

    **Raises:** `ValueError` if a size is not a whole number of at least 1.
    """

    state_size: eqx.AbstractVar[int]
    action_size: eqx.AbstractVar[int]
    bounded_actions: ClassVar[bool] = False
    reads_state: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name, checked in _CHECKED.items():
            if _is_method(cls.__dict__.get(name)):
                setattr(cls, name, checked(cls.__dict__[name]))

    def __check_init__(self):
        check_counts(type(self).__name__, state_size=self.state_size, action_size=self.action_size)

    @property
    def parallel(self) -> bool:
        """Whether `rollout_segment` computes all steps at once. `Parallel` is then the default method. `False` by default."""
        return False

    @property
    def resizable(self) -> bool:
        """Whether the carry's shape depends on the horizon and `resize_carry` extends it, as a key-value cache's does.
        `False` by default."""
        return False

    def init(self, state: Float[Array, " S"], horizon: int) -> PyTree:
        """Return the carry before the first step. By default `None`, for a dynamics that needs no carry.

        **Arguments:** `state`: s_0, shape (S,). `horizon`: number of steps the carry needs space for.

        **Raises:** `ValueError` if the dynamics supports fewer than `horizon` steps.
        """
        del state, horizon
        return None

    @abc.abstractmethod
    def step(
        self,
        carry: PyTree,
        state: Float[Array, " S"],
        action: Float[Array, " A"],
        t: ScalarLike,
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[PyTree, Float[Array, " S"]]:
        """Return the new carry and s_{t+1}.

        **Arguments**

        - `carry`: from `init` or the previous `step`.
        - `state`: s_t, shape (S,).
        - `action`: a_t in [-1, 1], shape (A,).
        - `t`: index of the step, an integer that may be traced.
        - `key`: for a stochastic dynamics; `None` if the unroll was given no key.
        """

    @_checked_open_loop
    def open_loop(
        self, state: Float[Array, " S"], actions: Float[Array, "H A"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "H S"]:
        """Return s_1 ... s_H under given actions.

        **Arguments:** `state`: s_0, shape (S,). `actions`: a_0 ... a_{H-1}, shape (H, A). `key`: split into one key per step.

        **Returns:** shape (H, S).
        """
        horizon = actions.shape[0]
        return self.rollout_segment(self.init(state, horizon), state, actions, 0, keys=step_keys(key, horizon))[1]

    @_checked_segment
    def rollout_segment(
        self,
        carry: PyTree,
        state: Float[Array, " S"],
        actions: Float[Array, "B A"],
        t: int | Array,
        *,
        keys: Key[Array, " B"] | None = None,
    ) -> tuple[PyTree, Float[Array, "B S"]]:
        """Run several steps under given actions, from any step of an episode.

        By default a scan of `step`. Override it if all steps can be computed at once, with the same values and gradients, and
        let `parallel` return `True`.

        **Arguments:** `carry`, `state`: before step t. `actions`: a_t ... a_{t+B-1}, shape (B, A). `t`: index of the first
        step, a Python integer; may be traced unless `parallel` is `True`. `keys`: one per step.

        **Returns:** the carry after the last step, and s_{t+1} ... s_{t+B}, shape (B, S).
        """

        def step(loop, x):
            (carry, state), (action, t, key) = loop, x
            carry, state = self.step(carry, state, action, t, key=key)
            return (carry, state), state

        (carry, _), states = lax.scan(step, (carry, state), (actions, t + jnp.arange(actions.shape[0]), keys))
        return carry, states

    def resize_carry(self, carry: PyTree, horizon: int) -> PyTree:
        """Return `carry` with space for `horizon` steps in all. By default `carry` itself; see `resizable`."""
        del horizon
        return carry

    def episodes_at_a_time(self, horizon: int) -> int | None:
        """Return how many episodes of a batch run at a time on a CPU, where all their steps run at once or `fit` differentiates their
        losses, or `None`, the default, for the whole batch.

        Groups are faster where the intermediate values of a batch do not fit in the CPU cache.
        """
        del horizon
        return None


class AbstractTask(AbstractDynamics):
    """A dynamics with a reward, a distribution of initial states and a horizon: a problem to solve.

    `train`, the Gymnasium environments and the baselines take tasks. Subclass it to bring your own problem: besides the
    methods of `AbstractDynamics`, define `reward` and `reset`.

    **A task that may end before its horizon** also defines `terminates(state, action, t, next_state)`, of the same arguments as a
    reward that reads the next state. It returns whether step t ends the episode, either as a bool, which has no gradient, or as a
    probability, a float from 0 to 1, whose gradient says how to go on for longer. Unrolls of the task then stop rewarding after
    the end (see `awmkit.unroll`), and Gymnasium environments report it. `terminates = None`, the default, never ends.

    **Fields** a subclass defines, besides those of `AbstractDynamics`

    - `horizon`: number of steps H of an episode.
    - `on_host`: class attribute; `True` if JAX cannot trace the task. Its episodes then come from a method
      `collect(policy, episodes=None, *, steps=None, key)`. `False` by default.

    ```python
    class Crossing(AbstractTask):
        horizon: int = eqx.field(static=True, default=50)
        state_size: int = eqx.field(static=True, default=2)
        action_size: int = eqx.field(static=True, default=1)

        def step(self, carry, state, action, t, *, key=None):
            x, v = state
            return carry, jnp.stack([x + 0.1 * v, v + 0.1 * (action[0] - 0.5 * v)])

        def reward(self, state, action, t):
            return -((state[0] - 1) ** 2) - 0.01 * jnp.sum(action**2)

        def reset(self, key):
            return 0.1 * jax.random.normal(key, (2,))
    ```

    **Raises:** `ValueError` if the horizon or a size is not a whole number of at least 1.
    """

    horizon: eqx.AbstractVar[int]
    on_host: ClassVar[bool] = False
    terminates: ClassVar[Callable[..., Any] | None] = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if _is_method(cls.__dict__.get("reward")):
            cls.reward = _checked_reward(cls.__dict__["reward"])
        if inspect.isfunction(cls.__dict__.get("terminates")):
            cls.terminates = _checked_rule(cls.__dict__["terminates"])

    def __check_init__(self):
        check_counts(type(self).__name__, horizon=self.horizon)

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The smallest and the largest value of each entry of a state; infinite by default."""
        return (-math.inf,) * self.state_size, (math.inf,) * self.state_size

    @abc.abstractmethod
    def reward(self, state: Float[Array, " S"], action: Float[Array, " A"], t: ScalarLike) -> Scalar:
        """Return r(s_t, a_t). The state is the one before the step, so s_H has no reward.

        A reward that depends on the next state takes it as a fourth parameter of this name:
        `def reward(self, state, action, t, next_state=None)`.

        **Arguments:** `state`: s_t, shape (S,). `action`: a_t, shape (A,). `t`: index of the step.
        """

    @abc.abstractmethod
    def reset(self, key: PRNGKeyArray) -> Float[Array, " S"]:
        """Draw s_0, shape (S,). A task that always starts in the same state ignores `key`."""


def as_arrays(carry: PyTree, state: Float[Array, " S"]) -> PyTree:
    """Return a carry with its numbers as arrays, because analyses differentiate arrays only. Python floats get the state's dtype."""

    def convert(x):
        if not isinstance(x, int | float | complex | np.generic | np.ndarray) and not getattr(x, "weak_type", False):
            return x
        x = jnp.array(x)
        weak_float = x.weak_type and jnp.issubdtype(x.dtype, jnp.floating)
        return lax.convert_element_type(x, state.dtype if weak_float else x.dtype)  # No longer a weak type.

    return jtu.tree_map(convert, carry)


def _check(dynamics: AbstractDynamics, method: str, state, **actions: tuple[Any, Shape]) -> None:
    """Raise unless a state and actions have the shapes of one episode."""
    check_shapes(f"{type(dynamics).__name__}.{method}", state=(state, (dynamics.state_size,)), **actions)


def step_keys(key: PRNGKeyArray | None, horizon: int) -> Key[Array, " H"] | None:
    """Return one key per step, or `None`. `open_loop` and the unroll both use it, so that they draw the same noise."""
    return None if key is None else jax.random.split(key, horizon)

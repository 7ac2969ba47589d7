"""What moves a state: the one interface that simulators and world models share.

It stands apart because everything else in awmkit is written against it.
"""

import abc
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree, Scalar, ScalarLike

from ._checks import check_counts


class AbstractDynamics(eqx.Module):
    """Anything that maps a state and an action to the next state: a simulator or a world model.

    A dynamics never decides where its `state` argument comes from or how much gradient it carries: the unroll does
    (`awmkit.Paths`). What a dynamics must remember beyond the state (a KV cache, a hidden state, a solver's warm start)
    lives in `carry`.

    **Fields** a subclass provides

    - `state_size`, `action_size`: number of entries of a state and of an action.
    - `reads_state`: class attribute, `False` promises that `step` ignores its `state` argument, as an actions world model
      does: no predicted state is ever fed back, and `Parallel` may be used. The default is `True`.

    ```python
    class Boat(AbstractDynamics):
        drag: float = 0.5
        state_size: int = eqx.field(static=True, default=2)
        action_size: int = eqx.field(static=True, default=1)

        def init(self, state, horizon):
            return None

        def step(self, carry, state, action, t, *, key=None):
            x, v = state
            return carry, jnp.stack([x + 0.1 * v, v + 0.1 * (action[0] - self.drag * v)])
    ```

    **Raises:** `ValueError` for sizes that are no whole numbers above 0.
    """

    state_size: eqx.AbstractVar[int]
    action_size: eqx.AbstractVar[int]
    reads_state: ClassVar[bool] = True

    def __check_init__(self):
        check_counts(type(self).__name__, state_size=self.state_size, action_size=self.action_size)

    @property
    def parallel(self) -> bool:
        """Whether `rollout_segment` handles all steps at once, so that `Parallel` is the faster method. `False` by default."""
        return False

    @property
    def resizable(self) -> bool:
        """Whether the carry's shape depends on the horizon and `resize_carry` extends it, as a key-value cache's does.
        `False` by default."""
        return False

    @abc.abstractmethod
    def init(self, state: Float[Array, " S"], horizon: int) -> PyTree:
        """The carry before the first step, primed with s_0 and with room for `horizon` steps.

        **Arguments:** `state`: s_0, shape (S,). `horizon`: how many steps will follow.

        **Raises:** `ValueError` where `horizon` is more than the dynamics can do.
        """

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
        """One step: s_{t+1} from `carry`, s_t and a_t.

        **Arguments:** `carry`: what `init` or the previous `step` returned. `state`: s_t, shape (S,). `action`: a_t in
        [-1, 1], shape (A,). `t`: the step's index, an integer, possibly traced. `key`: for stochastic dynamics.

        **Returns:** the new carry, of the same structure, shapes and dtypes, and s_{t+1}.
        """

    def open_loop(
        self, state: Float[Array, " S"], actions: Float[Array, "H A"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "H S"]:
        """s_1 ... s_H under a fixed sequence of actions.

        **Arguments:** `state`: s_0, shape (S,). `actions`: a_0 ... a_{H-1}, shape (H, A). `key`: split into one key a step.

        **Returns:** shape (H, S).
        """
        horizon = actions.shape[0]
        return self.rollout_segment(self.init(state, horizon), state, actions, 0, keys=step_keys(key, horizon))[1]

    def rollout_segment(
        self,
        carry: PyTree,
        state: Float[Array, " S"],
        actions: Float[Array, "B A"],
        t: int,
        *,
        keys: Key[Array, " B"] | None = None,
    ) -> tuple[PyTree, Float[Array, "B S"]]:
        """Several steps under actions that are known, from anywhere in an unroll.

        By default a scan of `step`; an actions world model overrides it with one causal pass of equal values and gradients.

        **Arguments:** `carry`, `state`: as `step` takes them. `actions`: a_t ... a_{t+B-1}, shape (B, A). `t`: the first
        step's index, an integer. `keys`: one a step.

        **Returns:** the carry after the last step, and s_{t+1} ... s_{t+B}.
        """

        def step(loop, x):
            (carry, state), (action, t, key) = loop, x
            carry, state = self.step(carry, state, action, t, key=key)
            return (carry, state), state

        (carry, _), states = lax.scan(step, (carry, state), (actions, t + jnp.arange(actions.shape[0]), keys))
        return carry, states

    def resize_carry(self, carry: PyTree, horizon: int) -> PyTree:
        """`carry`, somewhere in an unroll, with room for `horizon` steps in all. By default as it is.

        A dynamics whose carry has the shape that `init` gave it for its horizon may override this, to be sampled with less
        room than all steps need, as long as few are done.
        """
        del horizon
        return carry


class AbstractTask(AbstractDynamics):
    """A dynamics with a purpose: a reward, a distribution of initial states and a horizon.

    What BPO, Gymnasium and the examples take.

    **Fields** a subclass provides

    - `horizon`: the number of steps H of an episode.
    - `on_host`: class attribute, `True` where JAX cannot trace the task and episodes come from its method
      `collect(policy, episodes, *, key)`. The default is `False`.

    **Raises:** `ValueError` for a horizon that is no whole number above 0.
    """

    horizon: eqx.AbstractVar[int]
    on_host: ClassVar[bool] = False

    def __check_init__(self):
        check_counts(type(self).__name__, horizon=self.horizon)

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The least and the greatest value of each entry of a state; infinite by default."""
        return (-math.inf,) * self.state_size, (math.inf,) * self.state_size

    @abc.abstractmethod
    def reward(self, state: Float[Array, " S"], action: Float[Array, " A"], t: ScalarLike) -> Scalar:
        """r(s_t, a_t), from the state *before* the step; s_H is never scored.

        A task whose reward reads the next state adds a parameter: `def reward(self, state, action, t, next_state=None)`.

        **Arguments:** `state`: s_t, shape (S,). `action`: a_t, shape (A,). `t`: the step's index.

        **Returns:** a scalar.
        """

    @abc.abstractmethod
    def reset(self, key: PRNGKeyArray) -> Float[Array, " S"]:
        """Draw s_0.

        **Arguments:** `key`: consumed once; a task that always starts in the same state ignores it.

        **Returns:** s_0, shape (S,).
        """


def step_keys(key: PRNGKeyArray | None, horizon: int) -> Key[Array, " H"] | None:
    """One key for each step, or none; `open_loop` and the unroll must draw the same ones to agree."""
    return None if key is None else jax.random.split(key, horizon)

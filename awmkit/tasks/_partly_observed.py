"""A task whose state is only partly observed."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_counts, kind
from .._dynamics import AbstractTask
from .._reward import with_next_state
from .._termination import evaluate, rule_of


class PartlyObserved(AbstractTask):
    """A task that shows policies and world models some entries of another task's state. The other entries are in the carry.

    Use it to measure what a policy with a memory gains, such as `awmkit.GRUPolicy`, and what world models learn from part of a
    state.

    ```python
    task = PartlyObserved(Discretised(HIVTreatment()), observed=(0,))  # Healthy cells are counted, infected ones and virus are not.
    ```

    - State: the observed entries.
    - Action, reward and termination: those of the task.
    - Start: that of the task. Hidden entries are drawn in the first step, by the task's `reset` under the step's key, or under
      `jax.random.key(0)` without one. An unroll that begins later, with `t` above 0, therefore needs the `carry` of the steps
      before it. Without one it begins with the hidden entries of an initial state, as ascents from the middle of episodes do.

    **What must hold**

    - The reward and the termination rule read observed entries only.
    - In initial states, hidden entries do not depend on observed ones.
    - What the task's `init` returns does not depend on hidden entries.

    **Arguments**

    - `task`: an `AbstractTask` that JAX can trace.
    - `observed`: indices of the observed entries, in ascending order.

    **Raises:** `ValueError` if `observed` are not indices of some, but not all entries in ascending order, or if the reward or the
    termination rule reads another entry.
    """

    task: AbstractTask
    observed: tuple[int, ...] = eqx.field(static=True)
    horizon: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    def __init__(self, task: AbstractTask, observed: Sequence[int]):
        if not isinstance(task, AbstractTask) or task.on_host:
            raise ValueError(f"PartlyObserved needs an AbstractTask that JAX can trace, got {kind(task)}.")
        self.task = task
        for index in observed:
            check_counts("PartlyObserved", least=0, observed=index)
        self.observed = tuple(int(index) for index in observed)
        self.horizon, self.state_size, self.action_size = task.horizon, len(self.observed), task.action_size
        if not self.observed or not self._hidden or list(self.observed) != sorted({*self.observed} & {*range(task.state_size)}):
            raise ValueError(
                f"observed must be indices from 0 to {task.state_size - 1} in ascending order, some but not all of them, got "
                f"{self.observed}."
            )
        self._check_reads("reward", with_next_state(task.reward))
        if (rule := rule_of(task)) is not None:
            self._check_reads("termination rule", evaluate(rule))

    @property
    def _hidden(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.task.state_size) if i not in self.observed)

    @property
    def bounded_actions(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.task.bounded_actions

    @property
    def terminates(self) -> Callable | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if (rule := rule_of(self.task)) is None:
            return None
        return _ObservedRule(self, rule)

    @property
    def bounds(self):
        low, high = self.task.bounds
        return tuple(low[i] for i in self.observed), tuple(high[i] for i in self.observed)

    def init(self, state, horizon):
        full = self._full(state)
        return full[jnp.array(self._hidden)], self.task.init(full, horizon)

    def step(self, carry, state, action, t, *, key=None):
        hidden, carry = carry
        start_key, key = (jax.random.key(0), None) if key is None else jax.random.split(key)
        hidden = jnp.where(jnp.asarray(t) == 0, self._start(start_key, hidden.dtype), hidden)
        carry, after = self.task.step(carry, self._full(state, hidden), action, t, key=key)
        return (after[jnp.array(self._hidden)], carry), after[jnp.array(self.observed)]

    def reward(self, state, action, t, next_state=None):
        following = self._full(state if next_state is None else next_state)
        return with_next_state(self.task.reward)(self._full(state), action, t, following)

    def reset(self, key):
        return self.task.reset(key)[jnp.array(self.observed)]

    def _start(self, key, dtype) -> Float[Array, " hidden"]:
        return self.task.reset(key)[jnp.array(self._hidden)].astype(dtype)

    def _full(self, state, hidden: Array | None = None) -> Float[Array, " S"]:
        """Return the whole state; with the hidden entries of one initial state if none are given."""
        hidden = self._start(jax.random.key(0), state.dtype) if hidden is None else hidden
        empty = jnp.zeros(self.task.state_size, state.dtype)
        return empty.at[jnp.array(self.observed)].set(state).at[jnp.array(self._hidden)].set(hidden)

    def _check_reads(self, what: str, function: Callable) -> None:
        """Raise if `function(state, action, t, next_state)` depends on hidden entries at random states of many steps.

        Half of them are at the last step, because some rewards are paid there only.
        """
        start = self.task.reset(jax.random.key(0))
        one, other, last, drawn = jax.random.normal(jax.random.key(1), (4, 32, start.size), start.dtype) * (1 + jnp.abs(start))
        replace = lambda x, y: x.at[:, jnp.array(self._hidden)].set(y[:, jnp.array(self._hidden)])
        actions = jnp.tanh(jax.random.normal(jax.random.key(2), (32, self.action_size), start.dtype))
        steps = jnp.concatenate([jnp.linspace(0, self.horizon - 1, 16).astype(int), jnp.full(16, self.horizon - 1)])
        called = jax.vmap(function)
        plain, replaced = (
            called(start + one, actions, steps, start + last),
            called(start + replace(one, drawn), actions, steps, start + replace(last, other)),
        )
        if not jnp.array_equal(plain, replaced, equal_nan=True):
            raise ValueError(
                f"The {what} of {type(self.task).__name__} reads entries of the state that are hidden, some of {self._hidden}; observe "
                "them too."
            )


class _ObservedRule(eqx.Module):
    """The termination rule of a task as a function of observed entries. A module, unlike a new function, compiles once."""

    task: PartlyObserved
    rule: Callable

    def __call__(self, state, action, t, next_state):
        return evaluate(self.rule)(self.task._full(state), action, t, self.task._full(next_state))

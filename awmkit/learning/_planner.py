"""`Planner`: a policy that optimises its next actions in a model at every step."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PRNGKeyArray, Scalar, ScalarLike

from .._checks import check_call, check_counts, check_shapes, kind
from .._dynamics import AbstractDynamics
from .._paths import Paths
from .._reward import check_reward
from .._termination import check_termination, rule_of
from .._unroll_checks import check_arguments, check_discount, warn_of_constant_reward
from ..methods import AbstractMethod
from ._search import AbstractSearch, GradientSearch
from .ascents._imagined import imagine


class Planner(eqx.Module):
    """A policy that plans: at every step it optimises the next `horizon` actions in a model, and returns the first of them.

        a_t ... a_{t+H-1} = argmax of  sum_{i<H} discount^i survival_i r_{t+i}  +  discount^H survival_H V(s_{t+H}, t + H)

    This is model predictive control. It is a policy wherever awmkit takes one: `unroll`, `evaluate`, `awmkit.gym.collect`. Its
    memory is the last plan, from which the next search starts, shifted by one step.

    An `AWM` or `HWM` predicts from the first state of a window. The planner begins a new window at every step: the model then
    reads the true state, although it never reads its own predictions. Fit it to windows of at least `horizon` steps from all
    of an episode, with `fit(window=horizon)`.

    ```python
    planner = Planner(model, task.reward, 30, until=task.horizon)
    print(evaluate(task, planner, episodes=8))

    memory = planner.init()  # A loop of your own. `step` is compiled once.
    for t in range(200):
        memory, action = planner.step(memory, observation, t)
    ```

    Called as `planner(state, t)`, it plans from the state alone, without a warm start.

    An action found by a search has no derivative. Differentiating through a planner raises an error, as long as the gradient
    reaches it: with `paths=BPO`, the gradient with respect to an initial state or a simulator's parameters holds the actions
    fixed.

    **Arguments**

    - `model`: the dynamics to plan in: a simulator or a fitted world model. It starts with the carry of its `init`.
    - `reward`: `reward(state, action, t)`, or with a fourth parameter `next_state`. The model may count steps from the beginning
      of the plan; the reward always sees the step t of the episode.
    - `horizon`: number of actions H of a plan.
    - `search`: how a plan is optimised: `awmkit.GradientSearch()` (the default), `awmkit.CEM()`, or your own
      `awmkit.AbstractSearch`.
    - `until`: number of steps of an episode. Rewards after it, and `terminal_value` there, do not count. By default an episode has
      no end.
    - `termination`: whether or with which probability a step ends the episode; by default the model's own rule, if it has one.
    - `terminal_value`: V(state, t), the value of the state after the last step in units of the reward; 0 by default. For a
      critic of `awmkit.ShortHorizon`, multiply by the ascent's `return_scale`.
    - `discount`: factor per step, 1 by default.
    - `paths`: which edges of the model carry gradient, such as `Paths(state_to_model=0.95)`. All by default.
    - `method`: how the gradient is computed, as in `awmkit.unroll_grad`.
    - `samples`: number of futures of a stochastic model over which the return of a plan is averaged. All plans of a decision are
      compared in the same futures. By default the model gets no key, so that a probabilistic model predicts its mean.

    **Raises:** `ValueError` if an argument has the wrong type or is out of range; at the first step, if the model, the reward or
    the state do not fit together, or the model needs a key and `samples` is `None`. It warns if the search follows the gradient of
    a reward that is constant to it.
    """

    model: AbstractDynamics
    reward: Callable
    horizon: int = eqx.field(static=True)
    search: AbstractSearch = eqx.field(kw_only=True, default=GradientSearch())
    until: int | None = eqx.field(static=True, kw_only=True, default=None)
    termination: Callable | None = eqx.field(kw_only=True, default=None)
    terminal_value: Callable | None = eqx.field(kw_only=True, default=None)
    discount: ScalarLike = eqx.field(kw_only=True, default=1.0)
    paths: Paths = eqx.field(kw_only=True, default=Paths())
    method: AbstractMethod | None = eqx.field(kw_only=True, default=None)
    samples: int | None = eqx.field(static=True, kw_only=True, default=None)

    def __check_init__(self):
        if not isinstance(self.model, AbstractDynamics) or getattr(self.model, "on_host", False):
            raise ValueError(
                f"Planner got the model {kind(self.model)}, which cannot be unrolled; pass a simulator or a fitted model."
            )
        if not isinstance(self.search, AbstractSearch):
            raise ValueError(
                f"Planner got the search {kind(self.search)}; pass an awmkit.GradientSearch(...), a CEM(...) or your own."
            )
        check_reward(self.reward)
        check_counts("Planner", horizon=self.horizon, until=self.until, samples=self.samples)
        check_discount(self.discount)
        rule = rule_of(self.model) if self.termination is None else self.termination
        if rule is not None:
            check_termination(rule)
        if self.terminal_value is not None:
            check_call("terminal value", "terminal_value(state, t)", "write it so", self.terminal_value, None, 0)
        if isinstance(self.search, GradientSearch) and self.terminal_value is None:
            state, action = (jax.ShapeDtypeStruct((n,), float) for n in (self.model.state_size, self.model.action_size))
            warn_of_constant_reward(self.reward, state, action, rule)

    def init(self) -> Float[Array, "H A"]:
        """Return the memory at the beginning of an episode: a plan of zeros, shape (H, A)."""
        return jnp.zeros((self.horizon, self.model.action_size), jnp.result_type(float))

    def step(
        self, memory: Float[Array, "H A"], state: Float[Array, " S"], t: ScalarLike, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "H A"], Float[Array, " A"]]:
        """Return the new plan, shape (H, A), and its first action, shape (A,).

        **Arguments:** `memory`: the last plan. `state`: s_t, shape (S,). `t`: index of the step. `key`: for the search and for a
        stochastic model; without one, both draw the same random numbers in every episode.
        """
        sizes = {"memory": (memory, (self.horizon, self.model.action_size)), "state": (state, (self.model.state_size,))}
        check_shapes("Planner.step", "begin with memory = planner.init(), and use jax.vmap for a batch", **sizes, t=(t, ()))
        options = {"key": key, "paths": self.paths, "method": self.method}
        state, last = check_arguments(self.model, memory, jnp.asarray(state), self.horizon, **options)
        plan = _plan(self, jnp.asarray(last), state, jnp.asarray(t), key)
        return plan.astype(memory.dtype), plan[0]

    def __call__(self, state: Float[Array, " S"], t: ScalarLike, *, key: PRNGKeyArray | None = None) -> Float[Array, " A"]:
        """Return the first action of a plan made without a warm start, shape (A,)."""
        return self.step(self.init(), state, t, key=key)[1]


# Compiled here, so that a loop in Python compiles it once.
@eqx.filter_jit
def _plan(planner: Planner, memory: Array, state: Array, t: Array, key: PRNGKeyArray | None) -> Float[Array, "H A"]:
    planner, memory, state = _no_derivative((planner, memory, state))
    _check_noise(planner, state)
    key = jax.random.fold_in(jax.random.key(0), t) if key is None else key
    search_key, model_key = jax.random.split(key)
    rules = {"reward": planner.reward, "termination": planner.termination, "until": planner.until, "t": t}
    options = rules | {"paths": planner.paths, "method": planner.method, "discount": planner.discount}

    def value(plan: Array) -> Scalar:
        if planner.samples is None:
            return future(plan, None)
        return jnp.mean(jax.vmap(lambda k: future(plan, k))(jax.random.split(model_key, planner.samples)))

    def future(plan: Array, key) -> Scalar:
        imagined = imagine(planner.model, plan, state, planner.horizon, key=key, **options)
        if planner.terminal_value is None:
            return imagined.discounted_return
        end = t + planner.horizon
        rest = imagined.survived * planner.terminal_value(imagined.last_state, end)
        if planner.until is not None:
            rest = jnp.where(end < planner.until, rest, 0)
        return imagined.discounted_return + planner.discount**planner.horizon * rest

    shifted = jnp.concatenate([memory[1:], memory[-1:]]).astype(state.dtype)
    return planner.search.optimise(value, shifted, key=search_key)


def _check_noise(planner: Planner, state: Array) -> None:
    """Raise if the model draws random numbers, but the planner gives it no key. A step is traced, abstractly."""

    def passes(key) -> bool:
        step = lambda m, s, k: m.step(m.init(s, planner.horizon), s, jnp.zeros(m.action_size, s.dtype), 0, key=k)
        try:
            eqx.filter_eval_shape(step, planner.model, state, key)
        except Exception:
            return False
        return True

    if planner.samples is None and not passes(None) and passes(jax.random.key(0)):
        raise ValueError(
            f"The planner's model, {kind(planner.model)}, draws random numbers; pass Planner(..., samples=8), the number of futures "
            "over which the return of a plan is averaged."
        )


def _no_derivative(tree: Any) -> Any:
    """Return a tree as it is; raise if it is differentiated."""
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    leaves, structure = jtu.tree_flatten(arrays)
    return eqx.combine(jtu.tree_unflatten(structure, _raises_if_differentiated(leaves)), rest)


@jax.custom_jvp
def _raises_if_differentiated(leaves: list[Array]) -> list[Array]:
    return leaves


@_raises_if_differentiated.defjvp
def _(primals, tangents):
    raise ValueError(
        "A Planner finds its action by a search, which has no derivative; to optimise actions, pass them to unroll_grad as an array, "
        "and to hold the planner's actions fixed in a gradient with respect to something else, use paths=BPO."
    )

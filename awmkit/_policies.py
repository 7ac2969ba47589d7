"""Policies: maps from a state to an action in [-1, 1]."""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Scalar, ScalarLike

from ._checks import check_call, check_counts, check_key, check_shapes, describe
from ._dynamics import as_arrays
from ._normaliser import Normaliser


class AbstractPolicy(eqx.Module):
    """A policy whose input is normalised. Subclass it to bring your own network.

    Any callable with the signature of `__call__` is a policy for `unroll`. If it has an `input_norm` that is not set,
    the warm-up of `train` sets it. A stochastic policy may also have a method `entropy(state, t, *, key)`, which
    the entropy bonus of `train` needs; see `GaussianPolicy`.

    **Fields** a subclass defines

    - `input_norm`: a `Normaliser` for states. It is not trained.

    ```python
    class Linear(AbstractPolicy):
        input_norm: Normaliser
        weight: jax.Array

        def __call__(self, state, t, *, key=None):
            return jnp.tanh(self.weight @ self.input_norm(state))

    policy = Linear(Normaliser(3), jnp.zeros((2, 3)))
    ```

    **A policy with a memory** defines `init` and `step` instead of `__call__`. `GRUPolicy` is one. The memory is any tree of
    arrays, whose structure, shapes and dtypes do not change. A memory helps where the state leaves something out, for example the
    speed of a pendulum whose angle alone is measured. Every unroll begins with `init()`, and passes the memory on from step to
    step. The edge `memory_to_policy` of `awmkit.Paths` scales its gradient. If it has an
    `entropy`, that is called as `entropy(memory, state, t, *, key)`, with the memory before the step.

    ```python
    class Smooth(AbstractPolicy):
        input_norm: Normaliser
        weight: jax.Array

        def init(self):
            return jnp.zeros(self.weight.shape[0])

        def step(self, memory, state, t, *, key=None):
            action = 0.9 * memory + 0.1 * jnp.tanh(self.weight @ self.input_norm(state))
            return action, action

    policy = Smooth(Normaliser(3), jnp.zeros((2, 3)))
    memory, action = policy.step(policy.init(), state, 0)
    memory, action = policy.step(memory, next_state, 1)
    ```

    **Raises:** `ValueError` if a subclass defines neither `__call__` nor both of `init` and `step`.
    """

    input_norm: eqx.AbstractVar[Normaliser]

    def __check_init__(self):
        init, step, call = (getattr(type(self), name) is getattr(AbstractPolicy, name) for name in ("init", "step", "__call__"))
        if init != step or step and call:  # True where the default is inherited.
            raise ValueError(
                f"{type(self).__name__} must define __call__(state, t, *, key), or, as a policy with a memory, both init() and "
                "step(memory, state, t, *, key)."
            )

    def __call__(self, state: Float[Array, " S"], t: ScalarLike, *, key: PRNGKeyArray | None = None) -> Float[Array, " A"]:
        """Return the action a_t in [-1, 1], shape (A,). Not defined for a policy with a memory.

        **Arguments:** `state`: s_t, shape (S,). `t`: index of the step. `key`: for a stochastic policy; `None` asks for its
        mode.
        """
        raise ValueError(needs_memory(self))

    def init(self) -> PyTree:
        """Return the memory before the first step. By default `None`, for a policy without a memory."""
        return None

    def step(
        self, memory: PyTree, state: Float[Array, " S"], t: ScalarLike, *, key: PRNGKeyArray | None = None
    ) -> tuple[PyTree, Float[Array, " A"]]:
        """Return the new memory and the action a_t in [-1, 1], shape (A,).

        **Arguments:** `memory`: from `init` or the previous `step`. The others are those of `__call__`, which the default calls.
        """
        return memory, self(state, t, key=key)


class AbstractWrapper(eqx.Module):
    """A policy around another one, whose memory it has. A subclass defines `step`."""

    policy: eqx.AbstractVar[Any]

    def init(self) -> PyTree:
        return memory_of(self.policy)

    @abc.abstractmethod
    def step(self, memory, state, t, *, key=None) -> tuple[PyTree, Array]: ...

    def __call__(self, state, t, *, key=None):
        if self.init() is not None:
            raise ValueError(needs_memory(self.policy))
        return self.step(None, state, t, key=key)[1]


def memory_of(policy: Any) -> PyTree:
    """Return the memory of a policy before the first step, its numbers as arrays, or `None` if it has no memory."""
    if not (hasattr(policy, "init") and hasattr(policy, "step")):
        return None
    check_call("step of the policy", "step(memory, state, t, *, key)", "write it so", policy.step, None, None, 0, key=None)
    return _as_memory(policy.init())


def act(
    policy: Any, memory: PyTree, state: Float[Array, " S"], t: ScalarLike, key: PRNGKeyArray | None
) -> tuple[PyTree, Array]:
    """Return the new memory and the action of any policy. `memory` is from `memory_of` or from the previous `act`.

    **Raises:** `ValueError` if `step` does not return a memory like the one it was given, and an action.
    """
    if memory is None:
        return None, policy(state, t, key=key)
    name, result = type(policy).__name__, policy.step(memory, state, t, key=key)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(f"{name}.step returned {describe(result)}; it must return two things, the new memory and the action.")
    after, action = _as_memory(result[0]), result[1]
    given, returned = (jtu.tree_map(describe, tree) for tree in (memory, after))
    if given != returned:
        raise ValueError(
            f"{name}.step returned the memory as {returned} for a memory given as {given}; they must be the same, so make init "
            "return what step does."
        )
    return after, action


def needs_memory(policy: Any) -> str:
    """Return the error for a policy with a memory that is called without it."""
    return (
        f"{type(policy).__name__} has a memory, so it cannot be called without it; start with memory = policy.init(), and call "
        "memory, action = policy.step(memory, state, t, key=key)."
    )


def _as_memory(memory: PyTree) -> PyTree:
    return None if memory is None else as_arrays(memory, jnp.zeros(0))


class MLPPolicy(AbstractPolicy):
    """A deterministic policy, a_t = tanh(MLP(s_t)).

    ```python
    policy = MLPPolicy(task.state_size, task.action_size, horizon=task.horizon, key=key)
    action = policy(state, t)
    ```

    **Arguments**

    - `state_size`, `action_size`: number of entries of a state and of an action.
    - `width`, `depth`: size and number of the hidden layers, with swish between them.
    - `horizon`: number of steps of an episode. If given, t and the logarithm of the steps left are two more inputs. Use it for
      tasks of fixed length, whose optimal policy depends on time.
    - `key`: for the initial weights.

    **Raises:** `ValueError` if a size is not a whole number of at least 1, or `key` is not one key.

    `input_norm` normalises the state. `train` sets it, unless it is set already. To set or replace it yourself, use
    `eqx.tree_at(lambda p: p.input_norm, policy, policy.input_norm.fitted(states))`. Without it, states far from size 1, such as
    a concentration of 800, saturate the tanh: actions are -1 or 1, and gradients are exactly 0.
    """

    input_norm: Normaliser
    network: eqx.nn.MLP
    horizon: int | None = eqx.field(static=True)

    def __init__(
        self,
        state_size: int,
        action_size: int,
        *,
        width: int = 64,
        depth: int = 2,
        horizon: int | None = None,
        key: PRNGKeyArray,
    ):
        self.network = _mlp("MLPPolicy", state_size, action_size, 1, width, depth, horizon, key)
        self.input_norm = Normaliser(state_size)
        self.horizon = horizon

    def __call__(self, state, t, *, key=None):
        check_shapes("MLPPolicy", state=(state, self.input_norm.shift.shape), t=(t, ()))
        return jnp.tanh(self.network(features(self.input_norm(state), t, self.horizon)))


class GaussianPolicy(AbstractPolicy):
    """A stochastic policy, a_t = tanh(mu(s_t) + sigma(s_t) * noise).

    Its input is normalised as in `MLPPolicy`. The noise is reparameterised, so gradients pass through actions. Without a key the
    policy returns its mode, tanh(mu), as in the evaluations of `train`. Source: Haarnoja et al. (2018), *Soft Actor-Critic*,
    appendix C.

    **Arguments**

    - `state_size`, `action_size`: number of entries of a state and of an action.
    - `width`, `depth`: size and number of the hidden layers, with swish between them.
    - `horizon`: number of steps of an episode. If given, t and the logarithm of the steps left are two more inputs.
    - `std`: sigma before training, on the scale before tanh.
    - `key`: for the initial weights.

    **Raises:** `ValueError` if a size is not a whole number of at least 1, `std` is not positive, or `key` is not one key.
    """

    input_norm: Normaliser
    network: eqx.nn.MLP
    log_std: Float[Array, " A"]
    horizon: int | None = eqx.field(static=True)

    def __init__(
        self,
        state_size: int,
        action_size: int,
        *,
        width: int = 64,
        depth: int = 2,
        horizon: int | None = None,
        std: float = 0.5,
        key: PRNGKeyArray,
    ):
        _check_std(std)
        self.network = _mlp("GaussianPolicy", state_size, action_size, 2, width, depth, horizon, key)
        self.input_norm = Normaliser(state_size)
        self.log_std = jnp.full(action_size, math.log(std), jnp.result_type(float))
        self.horizon = horizon

    def __call__(self, state, t, *, key=None):
        mean, log_std = self.gaussian(state, t)
        if key is None:
            return jnp.tanh(mean)
        return jnp.tanh(mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype))

    def mode(self, state: Float[Array, " S"], t: ScalarLike) -> Float[Array, " A"]:
        """Return tanh(mu(s_t)), shape (A,)."""
        return self(state, t)

    def gaussian(self, state: Float[Array, " S"], t: ScalarLike) -> tuple[Float[Array, " A"], Float[Array, " A"]]:
        """Return mean and log standard deviation of the action before tanh, each of shape (A,)."""
        check_shapes("GaussianPolicy", state=(state, self.input_norm.shift.shape), t=(t, ()))
        mean, log_std = jnp.split(self.network(features(self.input_norm(state), t, self.horizon)), 2)
        return mean, self.log_std + log_std

    def log_prob(self, state: Float[Array, " S"], action: Float[Array, " A"], t: ScalarLike) -> Scalar:
        """Return log pi(a_t | s_t), the density on (-1, 1)^A.

        It is minus infinity at -1 and 1, which a sample may reach by rounding, and beyond. Its derivatives are not finite there.
        Where this must not happen, clip actions to [-1 + eps, 1 - eps], with `eps = jnp.finfo(action.dtype).eps`.
        """
        check_shapes("GaussianPolicy.log_prob", action=(action, self.log_std.shape))
        mean, log_std = self.gaussian(state, t)
        # The limit at a bound is that of the normal density. Its two parts are infinite there, and their sum would be NaN.
        inside = jnp.abs(action) < 1
        u = jnp.arctanh(jnp.clip(action, -1, 1))
        correction = jnp.where(inside, _log_slope(jnp.where(inside, u, 0)), 0)
        info = jnp.finfo(mean.dtype)
        precision = jnp.clip(jnp.exp(-log_std), info.tiny, info.max)  # Infinity times 0 would be NaN.
        return jnp.sum(_log_normal((u - mean) * precision, log_std) - correction)

    def entropy(self, state: Float[Array, " S"], t: ScalarLike, *, key: PRNGKeyArray) -> Scalar:
        """Return an estimate of the entropy -E[log pi] from one sample. It is unbiased and differentiable."""
        return _entropy(*self.gaussian(state, t), key)


class GRUPolicy(AbstractPolicy):
    """A stochastic policy with a memory: a GRU between the normalised state and the head of a `GaussianPolicy`.

        h_{t+1} = GRU(h_t, (s_t, a_{t-1}))
        a_t     = tanh(mu(h_{t+1}) + sigma(h_{t+1}) * noise)

    Use it where the state leaves something out: some entries are not measured, or the task differs from episode to episode. The
    GRU also reads the last action, because the noise of a sampled action cannot be computed from the states. Zeros stand for h_0 and a_{-1}. Without a key it takes its mode, as `GaussianPolicy` does. Sources:
    Cho et al. (2014), *Learning Phrase Representations using RNN Encoder-Decoder*; Heess et al. (2015), *Memory-based Control
    with Recurrent Neural Networks*.

    ```python
    policy = GRUPolicy(task.state_size, task.action_size, key=key)
    value, grads = unroll_grad(task, policy, s_0, 100, reward=task.reward, paths=BPO)
    ```

    Outside of an unroll its memory passes from step to step:

    ```python
    memory = policy.init()
    memory, action = policy.step(memory, state, 0, key=key)
    ```

    **Arguments**

    - `state_size`, `action_size`: number of entries of a state and of an action.
    - `width`: size of the GRU's memory and of the hidden layers of the head.
    - `depth`: number of the hidden layers of the head, with swish between them.
    - `horizon`: number of steps of an episode. If given, t and the logarithm of the steps left are two more inputs.
    - `std`: sigma before training, on the scale before tanh.
    - `key`: for the initial weights.

    **Raises:** `ValueError` if a size is not a whole number of at least 1, `std` is not positive, or `key` is not one key.
    """

    input_norm: Normaliser
    cell: eqx.nn.GRUCell
    network: eqx.nn.MLP
    log_std: Float[Array, " A"]
    horizon: int | None = eqx.field(static=True)

    def __init__(
        self,
        state_size: int,
        action_size: int,
        *,
        width: int = 64,
        depth: int = 1,
        horizon: int | None = None,
        std: float = 0.5,
        key: PRNGKeyArray,
    ):
        _check_std(std)
        check_key("GRUPolicy", key)
        cell_key, head_key = jax.random.split(key)
        check_counts("GRUPolicy", state_size=state_size, action_size=action_size, width=width, horizon=horizon)
        self.network = _mlp("GRUPolicy", width, action_size, 2, width, depth, None, head_key)
        self.cell = eqx.nn.GRUCell(state_size + 2 * (horizon is not None) + action_size, width, key=cell_key)
        self.input_norm = Normaliser(state_size)
        self.log_std = jnp.full(action_size, math.log(std), jnp.result_type(float))
        self.horizon = horizon

    def init(self):
        return jnp.zeros(self.cell.hidden_size, self.cell.weight_hh.dtype), jnp.zeros_like(self.log_std)

    def step(self, memory, state, t, *, key=None):
        hidden, mean, log_std = self._gaussian(memory, state, t)
        noise = 0 if key is None else jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)
        action = jnp.tanh(mean + noise)
        return (hidden, action.astype(memory[1].dtype)), action

    def entropy(self, memory: PyTree, state: Float[Array, " S"], t: ScalarLike, *, key: PRNGKeyArray) -> Scalar:
        """Return an estimate of the entropy of a_t given the memory before the step, from one sample; see `GaussianPolicy`."""
        _, mean, log_std = self._gaussian(memory, state, t)
        return _entropy(mean, log_std, key)

    def _gaussian(self, memory, state, t) -> tuple[Float[Array, " W"], Float[Array, " A"], Float[Array, " A"]]:
        """Return the GRU's memory after the step, and mean and log standard deviation of the action before tanh."""
        hidden, last_action = memory
        remembered = {"hidden": (hidden, (self.cell.hidden_size,)), "last_action": (last_action, self.log_std.shape)}
        check_shapes("GRUPolicy", state=(state, self.input_norm.shift.shape), t=(t, ()), **remembered)
        inputs = features(self.input_norm(state), t, self.horizon)
        hidden = self.cell(jnp.concatenate([inputs, last_action.astype(inputs.dtype)]), hidden).astype(hidden.dtype)
        mean, log_std = jnp.split(self.network(hidden), 2)
        return hidden, mean, self.log_std + log_std


def _check_std(std: float) -> None:
    if not std > 0:
        raise ValueError(f"std must be positive, got std={std}; 0.5 is the default.")


def _entropy(mean: Float[Array, " A"], log_std: Float[Array, " A"], key: PRNGKeyArray) -> Scalar:
    """Return an estimate of the entropy of tanh of a Gaussian."""
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    return jnp.sum(_log_slope(mean + jnp.exp(log_std) * noise) - _log_normal(noise, log_std))


def _log_normal(noise, log_std):
    """The log density of mean + exp(log_std) * noise, for standard normal noise."""
    return -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)


def _log_slope(u):
    """log(1 - tanh(u)^2), the logarithm of the derivative of tanh, written so that it does not cancel."""
    return 2 * (math.log(2) - jnp.abs(u) - jax.nn.softplus(-2 * jnp.abs(u)))


def _mlp(who: str, state_size, action_size, numbers: int, width, depth, horizon, key) -> eqx.nn.MLP:
    """Return a network from the features of a state to `numbers` outputs per entry of an action."""
    check_counts(who, state_size=state_size, action_size=action_size, width=width, horizon=horizon)
    check_counts(who, least=0, depth=depth)
    check_key(who, key)
    return eqx.nn.MLP(state_size + 2 * (horizon is not None), numbers * action_size, width, depth, jax.nn.swish, key=key)


def features(state: Float[Array, " S"], t: ScalarLike, horizon: int | None) -> Array:
    """Return the inputs of a policy's network: the normalised state and, with a horizon, the time as two numbers in [-1, 1]."""
    if horizon is None:
        return state
    t = jnp.asarray(t, state.dtype)
    # The best action changes most over the last steps, so they are spread out by a logarithm.
    left = jnp.log1p(jnp.maximum(horizon - 1 - t, 0)) / math.log1p(max(horizon - 1, 1))
    return jnp.concatenate([state, 2 * jnp.stack([t / horizon, left]) - 1])

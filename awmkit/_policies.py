"""Policies: maps from a state to an action in [-1, 1]."""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar, ScalarLike

from ._checks import check_counts, check_key, check_shapes
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
    """

    input_norm: eqx.AbstractVar[Normaliser]

    @abc.abstractmethod
    def __call__(self, state: Float[Array, " S"], t: ScalarLike, *, key: PRNGKeyArray | None = None) -> Float[Array, " A"]:
        """Return the action a_t in [-1, 1], shape (A,).

        **Arguments:** `state`: s_t, shape (S,). `t`: index of the step. `key`: for a stochastic policy; `None` asks for its
        mode.
        """


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
        if not std > 0:
            raise ValueError(f"std must be positive, got std={std}; 0.5 is the default.")
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
        mean, log_std = self.gaussian(state, t)
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

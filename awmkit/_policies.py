"""Policies: what turns a state into an action in [-1, 1].

Apart from the models because nothing needs them: any callable with this signature is a policy.
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar, ScalarLike

from ._checks import check_counts, check_key
from ._normaliser import Normaliser


class AbstractPolicy(eqx.Module):
    """A module called as `policy(state, t, *, key=None) -> action (A,)`."""

    input_norm: eqx.AbstractVar[Normaliser]

    @abc.abstractmethod
    def __call__(self, state: Float[Array, " S"], t: ScalarLike, *, key: PRNGKeyArray | None = None) -> Float[Array, " A"]:
        """a_t in [-1, 1], shape (A,), from s_t, shape (S,), and the step's index t."""


class MLPPolicy(AbstractPolicy):
    """A deterministic policy: a_t = tanh(MLP(s_t)).

    ```python
    policy = MLPPolicy(task.state_size, task.action_size, horizon=task.horizon, key=key)
    action = policy(state, t)
    ```

    **Arguments**

    - `state_size`, `action_size`: S and A.
    - `width`, `depth`: of the hidden layers, with swish between them.
    - `horizon`: if given, t and the logarithm of the steps left are two more inputs: what a finite-horizon optimum needs in
      general.
    - `key`: for the weights.

    **Raises:** `ValueError` for sizes that are no whole numbers above 0, and for another kind of key.

    `input_norm` normalises the state; set it with `eqx.tree_at(lambda p: p.input_norm, policy, policy.input_norm.fitted(states))`.
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
        return jnp.tanh(self.network(features(self.input_norm(state), t, self.horizon)))


class GaussianPolicy(AbstractPolicy):
    """A stochastic policy: a_t = tanh(mu(s_t) + sigma(s_t) * noise), reparameterised so that gradients pass through.

    Called without a key it takes its mode, tanh(mu): how a policy is evaluated. Haarnoja et al. (2018), *Soft Actor-Critic*,
    appendix C.

    **Arguments:** as for `awmkit.MLPPolicy`, and `std`: sigma before training, in units of the pre-tanh action.

    **Raises:** `ValueError` for sizes that are no whole numbers above 0, another kind of key, and a `std` that is not positive.
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
            raise ValueError(f"GaussianPolicy got std={std}; give a positive number, such as 0.5.")
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
        """tanh(mu(s_t)), shape (A,)."""
        return self(state, t)

    def gaussian(self, state: Float[Array, " S"], t: ScalarLike) -> tuple[Float[Array, " A"], Float[Array, " A"]]:
        """Mean and log standard deviation of the action before tanh, each of shape (A,)."""
        mean, log_std = jnp.split(self.network(features(self.input_norm(state), t, self.horizon)), 2)
        return mean, self.log_std + log_std

    def log_prob(self, state: Float[Array, " S"], action: Float[Array, " A"], t: ScalarLike) -> Scalar:
        """log pi(a_t | s_t), the density on (-1, 1)^A. Infinite on its boundary, which samples reach by rounding."""
        return self._log_prob(state, jnp.arctanh(action), t)

    def entropy(self, state: Float[Array, " S"], t: ScalarLike, *, key: PRNGKeyArray) -> Scalar:
        """An unbiased, reparameterised one-sample estimate of the entropy -E[log pi], which has no closed form."""
        mean, log_std = self.gaussian(state, t)
        return -self._log_prob(state, mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype), t)

    def _log_prob(self, state, u, t) -> Scalar:
        mean, log_std = self.gaussian(state, t)
        normal = -0.5 * ((u - mean) / jnp.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(u)^2) without cancellation.
        return jnp.sum(normal - 2 * (math.log(2) - u - jax.nn.softplus(-2 * u)))


def _mlp(who: str, state_size, action_size, numbers: int, width, depth, horizon, key) -> eqx.nn.MLP:
    """From the features of a state to so many numbers for each entry of an action."""
    check_counts(who, state_size=state_size, action_size=action_size, width=width, horizon=horizon)
    check_counts(who, least=0, depth=depth)
    check_key(who, key)
    return eqx.nn.MLP(state_size + 2 * (horizon is not None), numbers * action_size, width, depth, jax.nn.swish, key=key)


def features(state: Float[Array, " S"], t: ScalarLike, horizon: int | None) -> Array:
    """What a policy reads of a normalised state: with a horizon the time too, in two numbers from -1 to 1."""
    if horizon is None:
        return state
    t = jnp.asarray(t, state.dtype)
    # The last steps differ most: an action without a later reward is another one altogether.
    left = jnp.log1p(jnp.maximum(horizon - 1 - t, 0)) / math.log1p(max(horizon - 1, 1))
    return jnp.concatenate([state, 2 * jnp.stack([t / horizon, left]) - 1])

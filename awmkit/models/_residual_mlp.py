"""The residual MLP inside Markov, RewardModel and TerminationModel."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, ScalarLike

from .._checks import check_counts, check_key


class ResidualMLP(eqx.Module):
    """A linear layer, `depth` pre-norm residual blocks with one hidden layer each, and a linear layer (He et al., 2016).

    With a `horizon`, t / horizon is one more input.
    """

    enter: eqx.nn.Linear
    blocks: list[tuple[eqx.nn.LayerNorm, eqx.nn.Linear, eqx.nn.Linear]]
    leave: eqx.nn.Linear
    horizon: int | None = eqx.field(static=True)

    def __init__(
        self, owner: str, in_size: int, out_size: int, *, width: int, depth: int, horizon: int | None, key: PRNGKeyArray
    ):
        check_counts(owner, width=width, horizon=horizon)
        check_counts(owner, least=0, depth=depth)
        check_key(owner, key)
        enter_key, leave_key, *block_keys = jax.random.split(key, 2 + 2 * depth)
        self.enter = eqx.nn.Linear(in_size + (horizon is not None), width, key=enter_key)
        self.leave = eqx.nn.Linear(width, out_size, key=leave_key)
        linear = lambda key: eqx.nn.Linear(width, width, key=key)
        pairs = zip(block_keys[::2], block_keys[1::2], strict=True)
        self.blocks = [(eqx.nn.LayerNorm(width), linear(first), linear(second)) for first, second in pairs]
        self.horizon = horizon

    def __call__(self, *inputs: Float[Array, " _"], t: ScalarLike) -> Float[Array, " O"]:
        """Return the outputs, shape (O,), for the concatenated `inputs` at step `t`."""
        time = [] if self.horizon is None else [jnp.asarray(t, inputs[0].dtype)[None] / self.horizon]
        x = self.enter(jnp.concatenate([*inputs, *time]))
        for norm, first, second in self.blocks:
            x = x + second(jax.nn.swish(first(norm(x))))
        return self.leave(x)

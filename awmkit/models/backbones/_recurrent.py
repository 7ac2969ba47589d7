"""Recurrent backbones: RNN, LSTM and GRU.

The part of a cell that does not depend on the hidden state is computed for all steps at once; only the rest is scanned.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..._checks import check_counts, check_key, check_shapes
from ._backbone import AbstractBackbone, check_tokens


class AbstractRecurrent(AbstractBackbone):
    """A recurrent cell. Its memory is the hidden state, a tuple whose first entry is also the feature."""

    drive: eqx.AbstractVar[eqx.nn.Linear]
    recurrent: eqx.AbstractVar[Float[Array, "G W"]]

    @abc.abstractmethod
    def update(self, memory: PyTree, drive: Float[Array, " G"]) -> PyTree:
        """Return the next hidden state from the last one and from `drive(token)`."""

    def initial(self) -> PyTree:
        """Return the hidden state before the first token."""
        return (jnp.zeros_like(self.recurrent[0]),)

    def init(self, first, horizon):
        del horizon
        check_shapes(type(self).__name__, first=(first, (self.width,)))
        return self.update(self.initial(), self.drive(first))

    def step(self, memory, token, t, *, key=None):
        del t, key
        check_tokens(self, memory, (self.width,), token=(token, (self.width,)))
        memory = self.update(memory, self.drive(token))
        return memory, memory[0]

    def append(self, memory, tokens, t, *, keys=None):
        del t, keys
        check_tokens(self, memory, (self.width,), tokens=(tokens, ("B", self.width)))

        def step(memory, drive):
            memory = self.update(memory, drive)
            return memory, memory[0]

        return lax.scan(step, memory, jax.vmap(self.drive)(tokens))


class RNN(AbstractRecurrent):
    """Elman's recurrent network: h_t = tanh(W x_t + U h_{t-1} + b) (Elman, 1990), with U initially orthogonal (Saxe et al., 2014).

    |ds_t/da_k| grows at most like the largest singular value of U to the power t-k.

    **Arguments:** `width`: size of tokens and hidden state. `key`: for the initial weights.
    """

    drive: eqx.nn.Linear
    recurrent: Float[Array, "W W"]
    width: int = eqx.field(static=True)

    def __init__(self, width: int = 64, *, key: PRNGKeyArray):
        self.width = width
        self.drive, self.recurrent = _gates("RNN", 1, width, key)

    def update(self, memory, drive):
        return (jnp.tanh(drive + self.recurrent @ memory[0]),)


class LSTM(AbstractRecurrent):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997), with the bias of the forget gate initially 1 (Gers et al., 2000).

    **Arguments:** `width`: size of tokens, hidden state and cell. `key`: for the initial weights.
    """

    drive: eqx.nn.Linear
    recurrent: Float[Array, "G W"]
    width: int = eqx.field(static=True)

    def __init__(self, width: int = 64, *, key: PRNGKeyArray):
        self.width = width
        drive, self.recurrent = _gates("LSTM", 4, width, key)
        self.drive = eqx.tree_at(lambda d: d.bias, drive, jnp.zeros(4 * width).at[width : 2 * width].set(1.0))

    def initial(self):
        zeros = jnp.zeros_like(self.recurrent[0])
        return zeros, zeros

    def update(self, memory, drive):
        hidden, cell = memory
        enter, forget, leave, candidate = jnp.split(drive + self.recurrent @ hidden, 4)
        cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
        return jax.nn.sigmoid(leave) * jnp.tanh(cell), cell


class GRU(AbstractRecurrent):
    """Gated recurrent unit (Cho et al., 2014), with the reset gate applied after the recurrent product.

    **Arguments:** `width`: size of tokens and hidden state. `key`: for the initial weights.
    """

    drive: eqx.nn.Linear
    recurrent: Float[Array, "G W"]
    width: int = eqx.field(static=True)

    def __init__(self, width: int = 64, *, key: PRNGKeyArray):
        self.width = width
        self.drive, self.recurrent = _gates("GRU", 3, width, key)

    def update(self, memory, drive):
        (hidden,) = memory
        gates, candidate = jnp.split(drive, [2 * self.width])
        recurrent, fresh = jnp.split(self.recurrent @ hidden, [2 * self.width])
        reset, keep = jnp.split(jax.nn.sigmoid(gates + recurrent), 2)
        return ((1 - keep) * jnp.tanh(candidate + reset * fresh) + keep * hidden,)


def _gates(who: str, gates: int, width: int, key: PRNGKeyArray) -> tuple[eqx.nn.Linear, Array]:
    """Return the projection of a token onto all gates, and the recurrent weights, one orthogonal matrix per gate."""
    check_counts(who, width=width)
    check_key(who, key)
    drive_key, *recurrent_keys = jax.random.split(key, gates + 1)
    orthogonal = jax.nn.initializers.orthogonal()
    recurrent = [orthogonal(k, (width, width), dtype=jnp.result_type(float)) for k in recurrent_keys]
    return eqx.nn.Linear(width, gates * width, key=drive_key), jnp.concatenate(recurrent)

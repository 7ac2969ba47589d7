"""What an ascent has to cross: slices of the return, and how rough they are.

Apart from the gradients because it needs none: values alone show the folds that make a gradient useless.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, ScalarLike

from .._dynamics import AbstractDynamics
from .._normaliser import trainable
from .._paths import Paths
from .._reward import Reward
from .._unroll import unroll
from .._unroll_checks import check_arguments, check_differentiable
from ..methods import AbstractMethod, Policy


class Landscape(eqx.Module):
    """What `landscape` found: the return on a line or a square through a policy.

    - `coordinates`: along each direction, shape (n,). `values`: shape (n,) or (n, n), the first axis along the first direction.

    Where a value is not finite, total variation and Lipschitz constant are infinite; maxima are counted where values are.
    """

    coordinates: Float[Array, "*batch n"]
    values: Float[Array, "..."]

    @property
    def total_variation(self) -> Float[Array, ""]:
        """Of a line, sum |J_{i+1} - J_i| / (max J - min J): 1 where it is monotone, 2 m for m equal hills.

        Of a square, the mean over all its lines of their variation, against the range of the whole.
        """
        spread = jnp.max(self.values) - jnp.min(self.values)
        along = [jnp.mean(jnp.sum(jnp.abs(jnp.diff(self.values, axis=i)), axis=i)) for i in range(self.values.ndim)]
        mean = jnp.mean(jnp.stack(along))
        return self._or_infinite(jnp.where(spread > 0, mean / jnp.where(spread > 0, spread, 1), 0))

    @property
    def local_maxima(self) -> Int[Array, ""]:
        """The number of inner points that are higher than all their neighbours, 2 on a line and 8 in a square."""
        inner = tuple(slice(1, -1) for _ in self.values.shape)
        shifts = [s for s in np.ndindex(*(3,) * self.values.ndim) if any(i != 1 for i in s)]
        n = self.values.shape[0] - 2
        neighbours = [self.values[tuple(slice(i, i + n) for i in s)] for s in shifts]
        return jnp.sum(jnp.all(self.values[inner] > jnp.stack(neighbours), axis=0))

    @property
    def lipschitz(self) -> Float[Array, ""]:
        """An estimate from below of the gradient's Lipschitz constant along the directions: max |J''| by differences."""
        step = self.coordinates[1] - self.coordinates[0]
        curvatures = [jnp.max(jnp.abs(jnp.diff(self.values, n=2, axis=i))) for i in range(self.values.ndim)]
        return self._or_infinite(jnp.max(jnp.stack(curvatures)) / step**2)

    def _or_infinite(self, figure: Array) -> Array:
        return jnp.where(jnp.all(jnp.isfinite(self.values)), figure, jnp.inf)


def landscape(
    dynamics: AbstractDynamics,
    policy: Policy,
    state: Float[Array, " S"],
    horizon: int,
    *,
    reward: Reward,
    directions: int | Sequence[Any] = 1,
    span: float = 1.0,
    points: int | None = None,
    discount: ScalarLike = 1.0,
    key: PRNGKeyArray,
    method: AbstractMethod | None = None,
    batch_size: int = 64,
) -> Landscape:
    """The return of `policy + x d_1 (+ y d_2)` for x, y in [-span, span].

    Random directions are normal and, for the parameters of a network, filter-normalised (Li et al., 2018, *Visualizing the
    Loss Landscape*): each row of a weight matrix, and each vector, has the norm of the policy's own. For an array of actions
    their entries are of unit variance.

    **Arguments**

    - `dynamics`: a simulator or a model. `policy`: a policy, or an array of actions (H, A).
    - `state`: s_0, shape (S,). `horizon`: H.
    - `directions`: how many random ones, 1 or 2; or a sequence of 1 or 2 policy-shaped trees of your own (for an array of
      actions, arrays (H, A)), of which `None` leaves are not moved along.
    - `span`: how far to go along each, in units of its length. `points`: on each axis, at least 3; by default 401 or 41.
    - `key`: for the directions, and for a stochastic policy or dynamics, which sees the same noise everywhere.
    - `reward`, `discount`, `method`: as for `unroll`. `batch_size`: how many points are evaluated at once.

    ```python
    cut = landscape(task, policy, s_0, 200, reward=task.reward, key=key)
    cut.local_maxima, awmkit.plot.landscape(cut)
    ```

    **Returns:** a `Landscape`.

    **Raises:** `ValueError` as `unroll_grad` does, and for other numbers of directions, few points or no span.
    """
    state, policy = check_arguments(dynamics, policy, state, horizon, key=key, paths=Paths(), method=method)
    check_differentiable(policy)
    direction_key, unroll_key = jax.random.split(key)
    if isinstance(directions, int):
        count = directions
        directions = [_random_direction(policy, k) for k in jax.random.split(direction_key, max(count, 1))]
    else:
        directions = [d if eqx.is_inexact_array(d) else eqx.filter(d, eqx.is_inexact_array) for d in directions]
        count = len(directions)
    points = (401 if count == 1 else 41) if points is None else points
    if count not in (1, 2) or points < 3 or not span > 0:
        raise ValueError(
            f"landscape got {count} directions, {points} points and span={span}; it needs 1 or 2 directions, at least 3 points "
            "and a positive span."
        )
    _check_directions(policy, directions)
    return _values(dynamics, policy, state, horizon, reward, directions, span, points, discount, unroll_key, method, batch_size)


@eqx.filter_jit
def _values(dynamics, policy, state, horizon, reward, directions, span, points, discount, key, method, batch_size) -> Landscape:
    coordinates = jnp.linspace(-span, span, points, dtype=state.dtype)
    grid = jnp.stack(jnp.meshgrid(*[coordinates] * len(directions), indexing="ij"), axis=-1).reshape(-1, len(directions))

    def value(place):
        moved = policy
        for x, direction in zip(place, directions, strict=True):
            moved = eqx.apply_updates(moved, jtu.tree_map(lambda d, x=x: x.astype(d.dtype) * d, direction))
        return unroll(dynamics, moved, state, horizon, reward=reward, key=key, method=method).returns(discount)

    values = lax.map(value, grid, batch_size=min(batch_size, grid.shape[0]))
    return Landscape(coordinates, values.reshape([points] * len(directions)))


def _random_direction(policy, key):
    if eqx.is_array(policy):
        return jax.random.normal(key, policy.shape, policy.dtype)
    leaves, tree = jtu.tree_flatten(eqx.filter(policy, trainable(policy)))
    return jtu.tree_unflatten(tree, map(_like, leaves, jax.random.split(key, len(leaves))))


def _like(weights: Array, key: PRNGKeyArray) -> Array:
    """Normal, with rows of the norm of those of `weights`."""
    direction = jax.random.normal(key, weights.shape, weights.dtype)
    size = lambda x: jnp.sqrt(jnp.sum(x**2, axis=-1 if x.ndim else None, keepdims=True))
    return direction * size(weights) / size(direction)


def _check_directions(policy, directions) -> None:
    shapes = {jtu.keystr(path): x.shape for path, x in jtu.tree_leaves_with_path(eqx.filter(policy, eqx.is_inexact_array))}
    for direction in directions:
        for path, x in jtu.tree_leaves_with_path(direction):
            if shapes.get(jtu.keystr(path)) != x.shape:
                raise ValueError(
                    f"A direction has a leaf{jtu.keystr(path)} of shape {x.shape} where the policy has "
                    f"{shapes.get(jtu.keystr(path), 'none')}; make it policy-shaped, say with jax.tree.map over the policy."
                )

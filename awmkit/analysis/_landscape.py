"""Landscapes: slices of the return through a policy, and how rough they are."""

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, ScalarLike

from .._checks import check_counts, check_key, check_shapes, kind
from .._dynamics import AbstractDynamics
from .._normaliser import trainable
from .._norms import norm, scale_of
from .._paths import Paths
from .._reward import check_reward, Reward
from .._unroll import unchecked_unroll
from .._unroll_checks import check_arguments, check_differentiable, check_discount, check_functions
from ..methods import AbstractMethod, Policy


class Landscape(eqx.Module):
    """The result of `landscape`: the return on a line or a square through a policy.

    - `coordinates`: the steps along each direction, shape (n,).
    - `values`: the return J, shape (n,), or (n, n) with the first axis along the first direction.

    If any value is not finite, `total_variation` and `lipschitz` are infinite. Under `jax.vmap`, all shapes begin with the batch's
    axes.
    """

    coordinates: Float[Array, "*batch n"]
    values: Float[Array, "..."]

    @property
    def _axes(self) -> tuple[int, ...]:
        """The axes of `values` along the directions."""
        return tuple(range(self.coordinates.ndim - 1 - self.values.ndim, 0))

    @property
    def total_variation(self) -> Float[Array, "*batch"]:
        """How often the return rises and falls: sum |J_{i+1} - J_i| / (max J - min J). 1 if monotone, 2 m for m equal hills.

        For a square, the mean of the sum over all rows and columns, divided by the range of the whole.
        """
        axes = self._axes
        values = self.values / scale_of(self.values, axes)
        spread = jnp.max(values, axes) - jnp.min(values, axes)
        along = [jnp.mean(jnp.sum(jnp.abs(jnp.diff(values, axis=i)), axis=i, keepdims=True), axes) for i in axes]
        mean = jnp.mean(jnp.stack(along), 0)
        return self._or_infinite(jnp.where(spread > 0, mean / jnp.where(spread > 0, spread, 1), 0))

    @property
    def local_maxima(self) -> Int[Array, "*batch"]:
        """The number of inner points higher than all their neighbours (2 on a line, 8 on a square).

        Rounding adds and hides maxima where the return changes by less than about 1e-7 of its size (in float32) between two points.
        """
        inner = (..., *(slice(1, -1) for _ in self._axes))
        shifts = [s for s in np.ndindex(*(3,) * len(self._axes)) if any(i != 1 for i in s)]
        n = self.coordinates.shape[-1] - 2
        neighbours = [self.values[(..., *(slice(i, i + n) for i in s))] for s in shifts]
        return jnp.sum(jnp.all(self.values[inner] > jnp.stack(neighbours), axis=0), self._axes)

    @property
    def lipschitz(self) -> Float[Array, "*batch"]:
        """Largest curvature |J''| along the directions: a lower bound of the gradient's Lipschitz constant.

        (J(x - h) - 2 J(x) + J(x + h)) / h^2 is the curvature at a point between x - h and x + h, so the largest over several
        spacings h is a lower bound too. Where the points are close, most of this difference is rounding. An estimate of what
        rounding adds, 64 units in the last place of the largest |J|, is taken off first.
        """
        axes, n = self._axes, self.coordinates.shape[-1]
        step = self.coordinates[..., 1] - self.coordinates[..., 0]
        rounding = 64 * jnp.finfo(self.values.dtype).eps * jnp.max(jnp.abs(self.values), axes)
        bounds = []
        for axis, spacing in itertools.product(axes, [2**i for i in range(n.bit_length()) if 2 * 2**i < n]):
            at = lambda start, stop, axis=axis: lax.slice_in_dim(self.values, start, stop, axis=self.values.ndim + axis)
            bent = at(0, n - 2 * spacing) - 2 * at(spacing, n - spacing) + at(2 * spacing, n)
            bounds.append(jnp.maximum(jnp.max(jnp.abs(bent), axes) - rounding, 0) / (spacing * step) / (spacing * step))
        return self._or_infinite(jnp.max(jnp.stack(bounds), 0))

    def _or_infinite(self, figure: Array) -> Array:
        return jnp.where(jnp.all(jnp.isfinite(self.values), self._axes), figure, jnp.inf)


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
    """Evaluate the return J of `policy + x d_1 (+ y d_2)` for x, y in [-span, span].

    Use it to see whether the return is smooth enough for gradient ascent; it needs no gradient. Random directions d are normal.
    For a network they are filter-normalised (Li et al., 2018, *Visualizing the Loss Landscape of Neural Nets*, sec. 4): each
    row of a weight matrix, and each vector, has the norm of the policy's own. For actions the entries have unit variance.

    ```python
    cut = landscape(task, policy, s_0, 200, reward=task.reward, key=key)
    print(cut.local_maxima, cut.total_variation)
    awmkit.plot.landscape(cut)
    ```

    **Arguments**

    - `dynamics`: a simulator or a model.
    - `policy`: a policy, or an array of actions (H, A).
    - `state`: s_0, shape (S,).
    - `horizon`: the number of steps H.
    - `reward`: `reward(state, action, t) -> scalar`, optionally with a fourth argument `next_state`.
    - `directions`: the number of random directions, 1 or 2; or a sequence of 1 or 2 directions of your own, shaped like the
      policy, with `None` for leaves that stay fixed.
    - `span`: the largest step along each direction, in units of the direction's length.
    - `points`: the number of points on each axis, at least 3; by default 401 on a line and 41 on a square.
    - `discount`: the discount of the return, 1 by default.
    - `key`: for the directions, and for a stochastic policy or dynamics; the noise is the same at all points.
    - `method`: how the unroll is computed, as for `unroll`.
    - `batch_size`: number of points computed at once; memory grows with it.

    **Returns:** a `Landscape`.

    **Raises:** `ValueError` if an argument does not fit the dynamics, or `directions`, `points` or `span` is invalid.
    """
    state, policy = check_arguments(dynamics, policy, state, horizon, key=key, paths=Paths(), method=method)
    horizon = operator.index(horizon)
    check_differentiable(policy)
    check_key("landscape", key)
    check_reward(reward)
    check_discount(discount)
    check_shapes("landscape", "give one number", span=(span, ()))
    check_counts("landscape", points=points, batch_size=batch_size)
    direction_key, unroll_key = jax.random.split(key)
    if isinstance(directions, int | np.integer):
        count = int(directions)
        directions = [_random_direction(policy, k) for k in jax.random.split(direction_key, max(count, 1))]
    elif not np.iterable(directions):
        raise ValueError(
            f"directions must be a number or a list of 1 or 2 directions, got {kind(directions)}; pass [direction]."
        )
    else:
        directions = [d if eqx.is_inexact_array(d) else eqx.filter(d, eqx.is_inexact_array) for d in directions]
        count = len(directions)
    points = (401 if count == 1 else 41) if points is None else points
    if count not in (1, 2) or points < 3 or not span > 0:
        raise ValueError(
            "landscape needs 1 or 2 directions, at least 3 points and a positive span, "
            f"got {count} directions, {points} points and span={span}."
        )
    _check_directions(policy, directions)
    return _values(dynamics, policy, state, horizon, reward, directions, span, points, discount, unroll_key, method, batch_size)


@eqx.filter_jit
def _values(dynamics, policy, state, horizon, reward, directions, span, points, discount, key, method, batch_size) -> Landscape:
    coordinates = jnp.linspace(-span, span, points, dtype=state.dtype)
    grid = jnp.stack(jnp.meshgrid(*[coordinates] * len(directions), indexing="ij"), axis=-1).reshape(-1, len(directions))

    check_functions(dynamics, policy, state, horizon, reward=reward, key=key)

    def value(place):
        moved = policy
        for x, direction in zip(place, directions, strict=True):
            moved = eqx.apply_updates(moved, jtu.tree_map(lambda d, x=x: x.astype(d.dtype) * d, direction))
        return unchecked_unroll(dynamics, moved, state, horizon, reward=reward, key=key, method=method).returns(discount)

    values = lax.map(value, grid, batch_size=min(batch_size, grid.shape[0]))
    return Landscape(coordinates, values.reshape([points] * len(directions)))


def _random_direction(policy, key):
    if eqx.is_array(policy):
        return jax.random.normal(key, policy.shape, policy.dtype)
    leaves, tree = jtu.tree_flatten(eqx.filter(policy, trainable(policy)))
    return jtu.tree_unflatten(tree, map(_like, leaves, jax.random.split(key, len(leaves))))


def _like(weights: Array, key: PRNGKeyArray) -> Array:
    """A normal array in which each row has the norm of the same row of `weights`."""
    direction = jax.random.normal(key, weights.shape, weights.dtype)
    size = lambda x: norm(x, -1)[..., None] if x.ndim else jnp.abs(x)
    return direction * size(weights) / size(direction)


def _check_directions(policy, directions) -> None:
    """Raise if a direction has a leaf that the policy lacks or that has another shape there."""
    shapes = {jtu.keystr(path): x.shape for path, x in jtu.tree_leaves_with_path(eqx.filter(policy, eqx.is_inexact_array))}
    for direction in directions:
        if not jtu.tree_leaves(direction):
            raise ValueError(
                "A direction must have at least one floating-point array, got none, which moves nothing; make it policy-shaped, "
                "for example with jax.tree.map over the policy."
            )
        for path, x in jtu.tree_leaves_with_path(direction):
            if shapes.get(jtu.keystr(path)) != x.shape:
                raise ValueError(
                    f"A direction must have the policy's shape {shapes.get(jtu.keystr(path), 'None')} at leaf{jtu.keystr(path)}, "
                    f"got {x.shape}; make it policy-shaped, for example with jax.tree.map over the policy."
                )

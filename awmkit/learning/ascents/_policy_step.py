"""One optimiser step of a policy: clip the gradient, skip the step if it is not finite, adapt the entropy bonus."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, PyTree, Scalar, ScalarLike

from ..._normaliser import Normaliser, trainable
from ..._norms import all_finite, clip_tree
from ..._trajectory import check_episodes, Trajectory
from .._optimise import descend
from .._optimiser import AnyOptimiser
from ._ascent import AbstractAscent, UpdateInfo
from ._target_entropy import adapted, Entropy, schedule_value, TargetEntropy


class AscentState(eqx.Module):
    """What an ascent carries from one policy update to the next.

    - `optimiser`: the state of the policy's optimiser.
    - `log_weight`: logarithm of the entropy weight of an `awmkit.TargetEntropy`; unused otherwise.
    - `return_scale`: returns are divided by it.
    """

    optimiser: PyTree
    log_weight: Scalar
    return_scale: Scalar

    def entropy_weight(self, entropy: Entropy, steps: ScalarLike) -> Scalar:
        """The weight of the entropy bonus after `steps` environment steps."""
        if isinstance(entropy, TargetEntropy):
            return jnp.exp(self.log_weight)
        return jnp.asarray(schedule_value(entropy, steps), self.log_weight.dtype)


def init_ascent_state(ascent: AbstractAscent, policy: PyTree, episodes: Trajectory) -> AscentState:
    """The state before the first update of `policy`.

    **Arguments:** `ascent`: its settings. `policy`: the policy. `episodes`: the warm-up's episodes, with a leading axis; the
    standard deviation of their returns is the return scale, unless the ascent has its own.
    """
    check_episodes("init_ascent_state", episodes)
    initial_weight = ascent.entropy.initial_weight if isinstance(ascent.entropy, TargetEntropy) else 1.0
    log_weight = jnp.log(jnp.asarray(initial_weight, jnp.result_type(float)))
    if ascent.return_scale is None:
        return_scale = Normaliser(1).fitted(episodes.returns(ascent.discount)[:, None]).scale[0]
    else:
        return_scale = jnp.asarray(ascent.return_scale, episodes.states.dtype)
    return AscentState(ascent.optimiser.init(eqx.filter(policy, trainable(policy))), log_weight, return_scale)


def trainable_gradient(objective: Callable[[PyTree], tuple[Scalar, PyTree]], module: PyTree) -> tuple[PyTree, PyTree]:
    """The gradient of `objective(module) -> (value, aux)` with respect to the trainable weights of `module`, and `aux`.

    Statistics in an `awmkit.Normaliser` are not trainable; they and all other leaves are `None` in the gradient.
    """
    weights, rest = eqx.partition(module, trainable(module))
    return jax.grad(lambda weights: objective(eqx.combine(weights, rest)), has_aux=True)(weights)


def optimiser_step(
    optimiser: AnyOptimiser,
    state: PyTree,
    module: PyTree,
    gradient: PyTree,
    objective: Callable[[PyTree], tuple[Scalar, PyTree]] | None,
) -> tuple[PyTree, PyTree]:
    """One step of gradient ascent. Returns the optimiser's new state and the new module."""
    weights, rest = eqx.partition(module, trainable(module))
    loss = None if objective is None else lambda weights: -objective(eqx.combine(weights, rest))[0]
    state, weights = descend(optimiser, state, weights, jtu.tree_map(jnp.negative, gradient), loss=loss)
    return state, eqx.combine(weights, rest)


def unless_broken(gradient: PyTree, new: PyTree, old: PyTree) -> tuple[PyTree, Bool[Array, ""]]:
    """Return `new` if the step to it is finite, else `old`; and whether it is finite.

    It is not if an entry of `gradient` is not finite, or if an entry of `new` is not that was finite in `old`: the square of a
    finite gradient may overflow in Adam.
    """
    breaks = lambda new, old: jnp.any(jnp.isfinite(old) & ~jnp.isfinite(new))
    after, before = (eqx.filter(x, eqx.is_inexact_array) for x in (new, old))
    finite = all_finite(gradient) & ~jnp.any(jnp.stack(jtu.tree_leaves(jtu.tree_map(breaks, after, before))))
    return jtu.tree_map(lambda new, old: jnp.where(finite, new, old) if eqx.is_array(new) else new, new, old), finite


def policy_step(
    ascent: AbstractAscent,
    state: AscentState,
    policy: PyTree,
    gradient: PyTree,
    *,
    objective: Callable[[PyTree], tuple[Scalar, PyTree]] | None = None,
    predicted_return: Scalar,
    entropy: Scalar | None = None,
    action_size: int = 1,
    steps: ScalarLike,
) -> tuple[AscentState, PyTree, UpdateInfo]:
    """Improve the policy by one step along `gradient`, clipped to the global norm `ascent.clip`.

    If an entry of the gradient, or of the new policy or state, is not finite, the policy and the state stay exactly as they
    are, and `UpdateInfo.skipped` is 1.

    **Arguments**

    - `ascent`: its settings.
    - `state`: from `init_ascent_state` or the previous step.
    - `policy`, `gradient`: the policy, and the gradient from `trainable_gradient`.
    - `objective`: what `trainable_gradient` differentiated, for optimisers that need its value, such as `optax.lbfgs`.
    - `predicted_return`: mean imagined return, reported only.
    - `entropy`: mean entropy of the policy; an `awmkit.TargetEntropy` needs it. 0 by default.
    - `action_size`: number of entries of an action, by which a target entropy is multiplied.
    - `steps`: number of environment steps so far.

    **Returns:** the new state, the new policy and an `awmkit.UpdateInfo`.
    """
    clipped, norm = clip_tree(gradient, ascent.clip)
    entropy = jnp.zeros_like(norm) if entropy is None else entropy
    optimiser_state, new_policy = optimiser_step(ascent.optimiser, state.optimiser, policy, clipped, objective)
    log_weight = state.log_weight
    if isinstance(ascent.entropy, TargetEntropy):
        log_weight = adapted(ascent.entropy, log_weight, entropy / action_size, steps)
    new_state = AscentState(optimiser_state, log_weight, state.return_scale)
    (new_state, new_policy), finite = unless_broken(gradient, (new_state, new_policy), (state, policy))
    zero_if_skipped = lambda x: jnp.where(finite, x, jnp.zeros_like(x))
    info = map(zero_if_skipped, (predicted_return, entropy, norm, jnp.minimum(norm, jnp.asarray(ascent.clip, norm.dtype))))
    return new_state, new_policy, UpdateInfo(*info, skipped=jnp.asarray(~finite, norm.dtype))

"""The numbers that `train` reports after each epoch."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .ascents import UpdateInfo


class Metrics(eqx.Module):
    """The numbers that `awmkit.train` reports for an epoch.

    - `steps`: number of environment steps so far, the warm-up's included.
    - `episodes`: number of episodes collected in this epoch.
    - `true_return`: return of the policy's mode on the true task, mean over the evaluation episodes.
    - `collected_return`: return of the exploring policy, mean over the episodes collected in this epoch; NaN if there
      are none, as in offline learning.
    - `model_loss`: training loss of the model (and of a reward model), mean over the updates of this epoch.
    - `model_error`: mean square error of the model's open-loop predictions of this epoch's episodes, measured before the
      model was fitted to them, divided by the variance of the states in the model's normaliser: of the warm-up's states, unless
      the model came with its own. 1 is as good as predicting the mean state. Where the model is fitted to windows, these are
      predictions of successive windows.
    - `policy_update`: an `awmkit.UpdateInfo`, mean over the policy updates of this epoch; `skipped` is the number of skipped
      updates.

    `model_loss` and `model_error` are `None` for a simulator, which is not fitted. With several seeds every field has a leading
    axis of seeds, and in a sweep an axis of settings before it. The metrics of a whole run have a last axis of epochs.
    """

    steps: Int[Array, "*runs"]
    episodes: Int[Array, "*runs"]
    true_return: Float[Array, "*runs"]
    collected_return: Float[Array, "*runs"]
    model_loss: Float[Array, "*runs"] | None
    model_error: Float[Array, "*runs"] | None
    policy_update: UpdateInfo

    def row(self) -> dict[str, Any]:
        """All numbers by name, including those of `policy_update`: one line of a log."""
        fields = {**vars(self), **vars(self.policy_update)}
        return {name: jnp.asarray(x).tolist() for name, x in fields.items() if name != "policy_update" and x is not None}

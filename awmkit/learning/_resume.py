"""Checkpoints of training runs: writing them, recognising the run they belong to, and resuming it."""

import contextlib
import re
import warnings
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from ..models._world_model import AbstractWorldModel
from ._checkpoint import load, read_header, save, versions
from ._metrics import Metrics
from ._train_state import EpochSums, first_state_shapes, RunConfig, TrainState


def fingerprint(config: RunConfig, model, reward, policy, key, epoch: int) -> dict[str, Any]:
    """What must be equal for a run to be resumed. The number of steps is not part of it, so that a run can be prolonged."""
    text = eqx.tree_pformat((config, model, reward, policy), width=120)
    return {
        "run": re.sub(" at 0x[0-9a-f]+", "", text),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "epoch": epoch,
    }


def save_run(path: str | Path, run: dict[str, Any], state: TrainState, epochs: list[Metrics]) -> None:
    """Write the state of a run and the metrics of its epochs to one file."""
    save(path, (state, stack(epochs)), config={**run, "epochs": len(epochs)})


def load_run(
    path: str | Path, run: dict[str, Any], config: RunConfig, model, reward, policy, key
) -> tuple[TrainState, list[Metrics]]:
    """Read what `save_run` wrote, if it belongs to this run."""
    header = read_header(path)
    for name, given in run.items():
        if (saved := header["config"].get(name)) != given:
            saved, given = _first_difference(saved, given)
            raise ValueError(
                f"{path} is the checkpoint of another run: its {name} is {saved}, and this call has {given}; pass the arguments "
                "of that run, or the path of another file."
            )
    if header["versions"] != versions():
        warnings.warn(f"{path} was written by {header['versions']}; the run is resumed with {versions()}.", stacklevel=3)
    epochs, sums = header["config"]["epochs"], EpochSums.zeros(float)
    fitted = sums.model_loss if isinstance(model, AbstractWorldModel) else None
    row = Metrics(jnp.zeros((), int), sums.model_loss, sums.model_loss, fitted, fitted, sums.policy_update)
    row_shapes = jtu.tree_map(lambda x: jax.ShapeDtypeStruct((*key.shape, epochs), x.dtype), row)
    state, rows = load(path, (first_state_shapes(config, model, reward, policy, key), row_shapes))
    return state, [jtu.tree_map(lambda x, i=i: np.asarray(x[..., i]), rows) for i in range(epochs)]


@contextlib.contextmanager
def explain_interrupt(checkpoint: str | Path | None, epochs: list[Metrics]) -> Iterator[None]:
    """Say in the last line of a KeyboardInterrupt how to resume the run."""
    try:
        yield
    except KeyboardInterrupt:
        steps = int(np.max(epochs[-1].steps)) if epochs else 0
        if checkpoint is None:
            how = 'they are lost; with checkpoint="run.awm" the same call would resume where it stopped'
        elif Path(checkpoint).exists():
            how = f"to resume after the last complete epoch, make the same call again with checkpoint={str(checkpoint)!r}"
        else:
            how = f"no epoch was complete, so {checkpoint} was not written yet; lower evaluate_every to save more often"
        raise KeyboardInterrupt(f"train was interrupted after {steps} steps; {how}.") from None


def stack(epochs: list[Metrics]) -> Metrics:
    """The metrics of several epochs, with a last axis of epochs."""
    return jtu.tree_map(lambda *x: jnp.asarray(np.stack(x, axis=-1)), *epochs)


def _first_difference(saved, given) -> tuple[Any, Any]:
    """The first lines that differ, if both are texts."""
    if not (isinstance(saved, str) and isinstance(given, str)):
        return saved, given
    lines = zip_longest(saved.splitlines(), given.splitlines(), fillvalue="missing")
    return next((x.strip(" ,"), y.strip(" ,")) for x, y in lines if x != y)

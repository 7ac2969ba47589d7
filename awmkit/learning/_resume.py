"""Checkpoints of training runs: writing them, recognising the run they belong to, and resuming it."""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .._fingerprint import fingerprint, first_difference
from ..models._ensemble import members_of
from ..models._world_model import AbstractWorldModel
from ._checkpoint import load, read_header, save, versions
from ._metrics import Metrics
from ._sweep import settings_of, sweep_of
from ._train_state import EpochSums, first_state_shapes, RunConfig, TrainState


def identity(config: RunConfig, learned, policy, key, epoch: str) -> dict[str, str]:
    """What must be equal for a run to be resumed, line by line. The number of steps is not part of it, so that a run can be
    prolonged."""
    settings = ("jax_enable_x64", "jax_default_matmul_precision", "jax_threefry_partitionable")
    arguments = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    arguments |= {"policy": policy, "key": key, "model": learned["model"], "evaluate_every": epoch}
    for name in ("reward", "termination"):
        arguments[name] = getattr(config, name) if learned[name] is None else learned[name]
    arguments |= {name: getattr(jax.config, name, None) for name in settings}
    return fingerprint(SimpleNamespace(**arguments))


def save_run(path: str | Path, run: dict[str, str], state: TrainState, epochs: list[Metrics]) -> None:
    """Write the state of a run and the metrics of its epochs to one file."""
    save(path, (state, stack(epochs)), config={"run": run, "epochs": len(epochs), "capacity": state.replay.capacity})


def load_run(
    path: str | Path, run: dict[str, str], config: RunConfig, learned, policy, key
) -> tuple[TrainState, list[Metrics]]:
    """Read what `save_run` wrote, if it belongs to this run. The replay buffer grows if this run is to be longer."""
    header = read_header(path)
    if not isinstance(saved := header["config"].get("run"), dict):
        raise ValueError(f"{path} is not a checkpoint of train; pass the path of another file.")
    if (difference := first_difference(saved, run)) is not None:
        name, was, given = difference
        others = [f"{package} {version}" for package, version in header["versions"].items() if versions()[package] != version]
        note = f", and was written by {', '.join(others)}, in which functions may have other code" if others else ""
        raise ValueError(
            f"{path} is the checkpoint of another run: its {name} is {was}, and this call has {given}{note}; pass the arguments of "
            "that run, or the path of another file."
        )
    if header["versions"] != versions():
        warnings.warn(f"{path} was written by {header['versions']}; the run is resumed with {versions()}.", stacklevel=3)
    epochs, sums = header["config"]["epochs"], EpochSums.zeros(float)
    fitted = sums.model_loss if isinstance(members_of(learned["model"]), AbstractWorldModel) else None
    row = Metrics(sums.iterations, sums.iterations, sums.model_loss, sums.model_loss, fitted, fitted, sums.policy_update)
    runs = *settings_of(sweep_of(config)), *key.shape
    row_shapes = jtu.tree_map(lambda x: jax.ShapeDtypeStruct((*runs, epochs), x.dtype), row)
    saved = dataclasses.replace(config, capacity=header["config"]["capacity"])
    state, rows = load(path, (first_state_shapes(saved, learned, policy, key), row_shapes))
    if config.capacity > saved.capacity:
        state = dataclasses.replace(state, replay=state.replay.grown(config.capacity))
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

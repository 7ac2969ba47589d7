"""Checkpoints are complete and survive a crash at any moment; logs have each epoch exactly once."""

import dataclasses
import functools
import inspect
import json
import os
import platform
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st
from misuse import says
from reach import ASCENT, host_task, make, MODEL_UPDATES, parts, Reach, run
from tensorboardX.proto.event_pb2 import Event

from awmkit import (
    Ensemble,
    held_actions,
    JSONLines,
    load,
    ModelUpdates,
    Parallel,
    Paths,
    save,
    TargetEntropy,
    train,
    Trajectory,
    versions,
    Warmup,
)
from awmkit.learning import fingerprint, read_header
from awmkit.learning.tensorboard import TensorBoard

KEY = jax.random.key(3)
KEYS = jax.random.split(KEY, 2)


def _bits(tree) -> list:
    plain = jtu.tree_map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, eqx.filter(tree, eqx.is_array)
    )
    return [(np.asarray(x).dtype, np.asarray(x).tobytes()) for x in jax.tree.leaves(plain)]


def test_load_returns_exactly_the_tree_that_was_saved(tmp_path):
    saved = make(KEYS), {"keys": KEYS, "key": KEY, "n": 3, "x": np.arange(3, dtype=np.float32), "on": True}, jnp.asarray(0.1)
    save(tmp_path / "tree", saved, config={"tries": [1, 2]})
    zeros = eqx.filter_jit(lambda tree: jtu.tree_map(lambda x: 0 * x if eqx.is_inexact_array(x) else x, tree))
    for like in (zeros(saved), saved):
        loaded = load(tmp_path / "tree", like)
        assert _bits(loaded) == _bits(saved) and loaded[1]["key"].dtype == KEY.dtype
    shapes = eqx.filter_eval_shape(lambda: (make(KEYS), {**saved[1], "x": jnp.arange(3.0, dtype="float32")}, saved[2]))
    loaded = load(tmp_path / "tree", eqx.tree_at(lambda x: (x[1]["n"], x[1]["on"]), shapes, (0, False)))
    assert _bits(loaded) == _bits(saved) and loaded[1]["n"] == 3 and loaded[1]["on"] is True
    assert loaded[0]["policy"].network.activation is saved[0]["policy"].network.activation  # A function is not written.
    assert read_header(tmp_path / "tree") == {"config": {"tries": [1, 2]}, "versions": versions()}


def _failing(monkeypatch, after: int):
    """After this number of files, every file fails while it is written."""
    write, calls = os.fsync, iter(range(10**6))

    def fail(file):
        if next(calls) < after:
            return write(file)
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


def test_a_failed_save_leaves_the_old_file_intact_and_no_other_file(tmp_path, monkeypatch):
    save(tmp_path / "tree", np.arange(3))
    _failing(monkeypatch, 0)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "tree", np.arange(4))
    assert load(tmp_path / "tree", np.zeros(3, int)).tolist() == [0, 1, 2] and len(list(tmp_path.iterdir())) == 1


def test_a_save_replaces_the_file_and_never_writes_into_it(tmp_path):
    """So a crash during a save leaves the old file intact."""
    save(tmp_path / "tree", np.arange(3))
    (tmp_path / "old").hardlink_to(tmp_path / "tree")
    save(tmp_path / "tree", np.arange(4))
    assert load(tmp_path / "old", np.zeros(3, int)).tolist() == [0, 1, 2]
    assert load(tmp_path / "tree", np.zeros(4, int)).tolist() == [0, 1, 2, 3]


def test_a_file_that_does_not_fit_or_is_no_checkpoint_is_a_clear_error(tmp_path):
    path = tmp_path / "tree"
    save(path, (np.zeros(3), np.ones(2)))
    says(lambda: load(path, (np.zeros(3), np.ones(3))), "does not fit the tree given")
    says(lambda: load(path, (np.zeros(3), np.ones(2, int))), "does not fit the tree given")
    says(lambda: load(path, (np.zeros(3),) * 3), "does not fit the tree given")
    says(lambda: load(path, (np.zeros(3),)), "does not fit the tree given")
    path.write_bytes(path.read_bytes()[:-5])
    says(lambda: load(path, (np.zeros(3), np.ones(2))), "was damaged after awmkit.save wrote it")
    path.write_text("[]")
    says(lambda: read_header(path), "was not written by awmkit.save")


class _Stopped(Exception):
    pass


def _lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@functools.cache
def uninterrupted_run():
    """The result of a run that was never interrupted, and the bytes of its checkpoint and of its log."""
    with tempfile.TemporaryDirectory() as folder:
        run_file, log = Path(folder) / "run", Path(folder) / "log"
        result = run(KEY, callbacks=[JSONLines(log)], checkpoint=run_file)
        return result, {"run": run_file.read_bytes(), "log": log.read_bytes()}


@given(epochs=st.integers(0, 4), moment=st.sampled_from(["while saving", "before the log", "after the log", "within the log"]))
def test_a_run_interrupted_at_any_moment_ends_as_an_uninterrupted_one(epochs, moment):
    seen, (uninterrupted, files) = iter(range(99)), uninterrupted_run()

    def stop(metrics):
        if next(seen) == epochs:
            if moment == "within the log":
                with log.open("a") as file:
                    file.write(json.dumps(metrics.row())[:40])
            raise _Stopped

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path, log = Path(folder) / "run", Path(folder) / "log"
        callbacks = [JSONLines(log), stop] if moment == "after the log" else [stop, JSONLines(log)]
        if moment == "while saving":
            callbacks = [JSONLines(log)]
            _failing(patch, 1 + epochs)  # The first file is the log.
        with pytest.raises(_Stopped if moment != "while saving" else OSError):
            run(KEY, callbacks=callbacks, checkpoint=path)
        patch.undo()
        resumed = run(KEY, callbacks=[JSONLines(log)], checkpoint=path)
        assert _bits((resumed.state, resumed.metrics)) == _bits((uninterrupted.state, uninterrupted.metrics))
        assert {"run": path.read_bytes(), "log": log.read_bytes()} == files
        assert [row["steps"] for row in _lines(log)] == [24, 36, 48, 60, 72]


@pytest.mark.parametrize("kind", ["one seed", "two seeds", "on the host", "all steps are kept", "an ensemble"])
def test_a_finished_run_can_be_prolonged(kind, tmp_path):
    key = KEYS if kind == "two seeds" else KEY
    options = {"on the host": {"task": host_task()}, "all steps are kept": {"capacity": None}}.get(kind, {})
    if kind == "an ensemble":
        options = {"model": Ensemble(make(KEYS)["model"])}
    long = run(key, **options)
    run(key, steps=36, checkpoint=tmp_path / "run", **options)
    prolonged = run(key, checkpoint=tmp_path / "run", **options)
    assert _bits((prolonged.state, prolonged.metrics)) == _bits((long.state, long.metrics))


def _decay(rate):
    return lambda steps: rate / (1 + steps)


def _paying(weight):
    return lambda state, action, t: -weight * jnp.sum(state**2)


def _scaled(tree, scale=1.5):
    return jtu.tree_map(lambda x: scale * x if eqx.is_inexact_array(x) else x, tree)


def _never(state, action, t, next_state):
    return jnp.zeros((), bool)


DATA = Trajectory(jnp.ones((2, 7, 2)), jnp.zeros((2, 6, 2)), jnp.arange(12.0).reshape(2, 6))
MODELS = make(KEY)
CHANGES = {
    "task": [{"task": Reach(limit=3.0)}, {"task": Reach(horizon=7)}],
    "model": [{"model": _scaled(MODELS["model"])}],
    "reward": [{"reward": _scaled(MODELS["reward"])}, {"reward": None}, {"reward": _paying(1.0)}],
    "policy": [{"policy": _scaled(MODELS["policy"])}],
    "key": [{"key": KEYS[0]}],
    "environments": [{"environments": 1}],
    "noise": [{"noise": 0.2}],
    "capacity": [{"capacity": 49}],
    "termination": [{"termination": _never}],
    "episodes": [{"episodes": DATA, "steps": 72}],
    "evaluations": [{"evaluations": 2}],
    "evaluate_every": [{"evaluate_every": 24}],
    "mesh": [{"mesh": jax.make_mesh((1,), ("episodes",))}],
    "warmup": [{"warmup": Warmup(24)}, {"warmup": Warmup(12, held_actions)}],
    "model_updates": [
        {"model_updates": dataclasses.replace(MODEL_UPDATES, **change)}
        for change in (
            {"steps_per_update": 0.6},
            {"batch_size": 4},
            {"microbatch_size": 4},
            {"optimiser": optax.adam(2e-2)},
            {"initial_updates": 1},
            {"recency": 0.8},
            {"window": 2},
            {"window": 2, "from_start": 0.5},
            {"tolerance": 0.5},
        )
    ],
    "ascent": [
        {"ascent": dataclasses.replace(ASCENT, **change)}
        for change in (
            {"critic": _scaled(ASCENT.critic)},
            {"length": 2},
            {"steps_per_update": 0.8},
            {"batch_size": 4},
            {"optimiser": optax.adam(optax.cosine_decay_schedule(1e-2, 100))},
            {"critic_optimiser": optax.adam(1e-2, b1=0.8)},
            {"polyak": 0.8},
            {"clip": 1.0},
            {"entropy": 0.1},
            {"entropy": _decay(0.1)},
            {"entropy": TargetEntropy(-2.0)},
            {"return_scale": 2.0},
            {"initial_updates": 1},
            {"pessimism": 0},
            {"discount": 0.9},
            {"paths": Paths(state_to_policy=0.0)},
            {"method": Parallel()},
        )
    ],
}


def test_the_checkpoint_of_a_run_with_any_other_argument_is_refused_and_the_argument_is_named(tmp_path, monkeypatch):
    settings = (Warmup, ModelUpdates, type(ASCENT))
    for cls, changes in zip(settings, (CHANGES[name] for name in ("warmup", "model_updates", "ascent")), strict=True):
        fields = {field.name for field in dataclasses.fields(cls)}
        default = {"warmup": Warmup(12), "model_updates": MODEL_UPDATES, "ascent": ASCENT}
        changed = {f for c in changes for n, x in c.items() for f in fields if getattr(x, f) is not getattr(default[n], f)}
        assert changed == fields  # Every field of the settings is changed, so that no new one is forgotten.
    assert {*CHANGES, "steps", "callbacks", "checkpoint", "progress"} == inspect.signature(train).parameters.keys()
    path = tmp_path / "run"
    path.write_bytes(uninterrupted_run()[1]["run"])
    for name, changes in CHANGES.items():
        for options in changes:
            says(lambda o=options: run(**{"key": KEY, "checkpoint": path, **o}), rf"of another run: its {name}\b.* is ")
    says(
        lambda: run(KEY, checkpoint=path, model_updates=CHANGES["model_updates"][3]["model_updates"]), "is -0.01, and .* -0.02;"
    )
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.1")
    says(lambda: run(KEYS[0], checkpoint=path), r"was written by python 3\.\d+\.\d+, in which functions may")


def test_a_file_that_is_no_checkpoint_of_train_is_refused(tmp_path):
    path = tmp_path / "run"
    save(path, {"n": 3})
    says(lambda: run(KEY, checkpoint=path), "is not a checkpoint of train")
    path.write_bytes(b"nothing")
    says(lambda: run(KEY, checkpoint=path), "was not written by awmkit.save")


def test_a_run_of_fewer_steps_than_its_checkpoint_is_refused(tmp_path):
    (tmp_path / "run").write_bytes(uninterrupted_run()[1]["run"])
    says(lambda: run(KEY, checkpoint=tmp_path / "run", steps=36), "is a run of 72 steps, more than steps=36")


def test_a_run_resumed_with_other_versions_warns(tmp_path, monkeypatch):
    (tmp_path / "run").write_bytes(uninterrupted_run()[1]["run"])
    monkeypatch.setattr("awmkit.learning._resume.versions", lambda: {**versions(), "jax": "0.0.1"})
    with pytest.warns(UserWarning, match="run was written by .* the run is resumed with .*'jax': '0.0.1'"):
        run(KEY, checkpoint=tmp_path / "run")


PROGRAM = """
import json, pathlib, signal, sys, time, jax
from awmkit import JSONLines
from awmkit.learning import fingerprint
from reach import parts, run
pathlib.Path("parts").write_text(json.dumps(fingerprint(parts())))
signal.signal(signal.SIGINT, signal.default_int_handler)  # Whatever started the tests may ignore it.
pause = lambda metrics: time.sleep(0.3)
run(jax.random.key(3), callbacks=[JSONLines("log"), pause], checkpoint="run")
"""


def test_a_process_that_is_killed_and_then_interrupted_resumes_and_ends_bit_for_bit_as_an_uninterrupted_one(tmp_path):
    _, files = uninterrupted_run()  # Also puts the compiled programs in the cache that the processes read.
    tests = Path(__file__).parents[1]
    program = {
        "args": [sys.executable, "-c", PROGRAM],
        "cwd": tmp_path,
        "env": {
            **os.environ,
            "PYTHONPATH": f"{tests / 'helpers'}:{tests.parent}",
            "JAX_ENABLE_X64": "1",
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        },
        "stderr": subprocess.PIPE,
        "text": True,
    }
    log = tmp_path / "log"
    for sent, epochs in ((signal.SIGKILL, 1), (signal.SIGINT, 3)):
        process = subprocess.Popen(**program)
        while not (log.exists() and log.read_text().count("\n") >= epochs) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(sent)
        message = process.communicate()[1]
        assert process.returncode == -sent and len(_lines(log)) < 5, message
    how = "to resume after the last complete epoch, make the same call again with checkpoint='run'."
    assert re.fullmatch(
        rf"KeyboardInterrupt: train was interrupted after \d+ steps; {re.escape(how)}", message.splitlines()[-1]
    )
    run(KEY, callbacks=[JSONLines(log)], checkpoint=tmp_path / "run")
    assert json.loads((tmp_path / "parts").read_text()) == fingerprint(parts())
    # The checkpoint has every leaf of the run's state, and each epoch's metrics.
    assert {"run": (tmp_path / "run").read_bytes(), "log": log.read_bytes()} == files


@pytest.mark.parametrize(("options", "how"), [({}, "they are lost.*run.awm"), ({"checkpoint": True}, "no epoch was complete")])
def test_an_interrupt_before_the_first_checkpoint_says_what_is_lost(options, how, tmp_path):
    def interrupt(metrics):
        raise KeyboardInterrupt

    options = {name: tmp_path / "run" for name in options}
    with pytest.raises(KeyboardInterrupt, match=f"train was interrupted after 24 steps; {how}"):
        run(KEY, callbacks=[interrupt], **options)


def _strictly(text: str) -> dict:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_log_is_strict_json_and_has_the_epochs_of_one_run_whatever_it_had_before(tmp_path):
    result, files = uninterrupted_run()
    log, others = tmp_path / "log", '{"steps": 5, "true_return": -9.0}\n{"steps": 30, "true_return": -9.0}\n{"ste'
    (tmp_path / "run").write_bytes(files["run"])
    log.write_text(others)
    run(KEY, callbacks=[JSONLines(log)], checkpoint=tmp_path / "run")
    assert log.read_bytes() == files["log"]
    first = jtu.tree_map(lambda x: x[0], result.metrics)
    exploded = eqx.tree_at(lambda m: (m.model_error, m.policy_update.gradient_norm), first, (jnp.nan, -jnp.inf))
    log.write_text(others)
    logger = JSONLines(log)
    logger.begin_run([])
    logger(exploded)
    JSONLines(log)(dataclasses.replace(first, steps=jnp.array(36)))  # Without `train`, which tells a log that a run begins.
    rows = [_strictly(line) for line in log.read_text().splitlines()]
    assert [row["steps"] for row in rows] == [24, 36]
    assert (rows[0]["model_error"], float(rows[0]["gradient_norm"])) == ("nan", -np.inf)


def _events(path: Path) -> list[Event]:
    """The events of a file, each stored as length (8 bytes), checksum (4), event, checksum (4)."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_tensorboard_gets_every_number_of_every_epoch_and_one_curve_per_seed(tmp_path):
    board = TensorBoard(tmp_path)
    result = run(KEYS, callbacks=[board])
    board._writer.close()
    events = [event for path in tmp_path.iterdir() for event in _events(path)]
    scalars = {(event.step, x.tag): x.simple_value for event in events for x in event.summary.value}
    assert len(scalars) == 5 * 2 * 10 and any(event.session_log.status == 1 and event.step == 0 for event in events)
    epochs = [jtu.tree_map(lambda x, i=i: x[..., i], result.metrics) for i in range(2)]
    for start in ([], epochs[:1]):  # A new run in the same folder, and one that resumes after 24 steps.
        board.begin_run(start)
        board(epochs[1])
    board._writer.close()
    files = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert [[e.step for e in _events(path) if e.session_log.status == 1] for path in files] == [[0], [0], [25]]
    for seed, returns in enumerate(result.metrics.true_return):
        curve = [scalars[steps, f"true_return/{seed}"] for steps in (24, 36, 48, 60, 72)]
        np.testing.assert_allclose(curve, returns, rtol=1e-6)

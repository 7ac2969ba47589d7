"""What a run leaves behind: files that hold everything, survive any moment's kill, and logs that have each epoch once."""

import functools
import json
import os
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
import pytest
from hypothesis import given, strategies as st
from misuse import says
from reach import make, Reach, run
from tensorboardX.proto.event_pb2 import Event

from awmkit import JSONLines, load, ModelUpdates, save, versions, Warmup
from awmkit.gym import GymnasiumTask, TaskEnv
from awmkit.learning._checkpoint import read_header
from awmkit.learning.tensorboard import TensorBoard

KEY = jax.random.key(3)
KEYS = jax.random.split(KEY, 2)
HOST = GymnasiumTask(TaskEnv(Reach(), time_aware=False))


def _bits(tree) -> list:
    plain = jtu.tree_map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, eqx.filter(tree, eqx.is_array)
    )
    return [(np.asarray(x).dtype, np.asarray(x).tobytes()) for x in jax.tree.leaves(plain)]


def test_a_tree_comes_back_as_it_was(tmp_path):
    kept = make(KEYS), {"keys": KEYS, "key": KEY, "n": 3, "x": np.arange(3, dtype=np.float32), "on": True}, jnp.asarray(0.1)
    save(tmp_path / "tree", kept, config={"tries": [1, 2]})
    for blank in (lambda x: jnp.zeros_like(x) if eqx.is_inexact_array(x) else x, lambda x: x):
        like = jtu.tree_map(blank, kept)
        came = load(tmp_path / "tree", like)
        assert _bits(came) == _bits(kept) and came[1]["key"].dtype == KEY.dtype
    shapes = eqx.filter_eval_shape(lambda: (make(KEYS), {**kept[1], "x": jnp.arange(3.0, dtype="float32")}, kept[2]))
    came = load(tmp_path / "tree", eqx.tree_at(lambda x: (x[1]["n"], x[1]["on"]), shapes, (0, False)))
    assert _bits(came) == _bits(kept) and came[1]["n"] == 3 and came[1]["on"] is True
    assert came[0]["policy"].network.activation is kept[0]["policy"].network.activation  # A function, which is not written.
    assert read_header(tmp_path / "tree") == {"config": {"tries": [1, 2]}, "versions": versions()}


def _failing(monkeypatch, after: int):
    """Every save from now on breaks in the middle of its file, once `after` of them have not."""
    whole, calls = eqx.tree_serialise_leaves, iter(range(10**6))

    def serialise(file, tree):
        if next(calls) < after:
            return whole(file, tree)
        file.write(b"half of a")
        raise OSError("No space left on device")

    monkeypatch.setattr(eqx, "tree_serialise_leaves", serialise)


def test_a_save_that_fails_leaves_the_old_file_whole_and_no_other(tmp_path, monkeypatch):
    save(tmp_path / "tree", jnp.arange(3))
    _failing(monkeypatch, 0)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "tree", jnp.arange(4))
    assert load(tmp_path / "tree", jnp.zeros(3, int)).tolist() == [0, 1, 2] and len(list(tmp_path.iterdir())) == 1


def test_who_has_the_old_file_open_reads_it_whole_whatever_is_saved(tmp_path):
    """So a kill during a save leaves it whole too: it is never written into, only replaced."""
    save(tmp_path / "tree", jnp.arange(3))
    (tmp_path / "old").hardlink_to(tmp_path / "tree")
    save(tmp_path / "tree", jnp.arange(4))
    assert load(tmp_path / "old", jnp.zeros(3, int)).tolist() == [0, 1, 2]
    assert load(tmp_path / "tree", jnp.zeros(4, int)).tolist() == [0, 1, 2, 3]


def test_what_is_no_checkpoint_or_does_not_fit_is_one_sentence(tmp_path):
    path = tmp_path / "tree"
    save(path, (jnp.zeros(3), jnp.ones(2)))
    says(lambda: load(path, (jnp.zeros(3), jnp.ones(3))), "does not hold a tree like the one given")
    says(lambda: load(path, (jnp.zeros(3), jnp.ones(2, int))), "does not hold a tree like the one given")
    says(lambda: load(path, (jnp.zeros(3),) * 3), "does not hold a tree like the one given")
    says(lambda: load(path, (jnp.zeros(3),)), "does not hold a tree like the one given")
    path.write_bytes(path.read_bytes()[:-5])
    says(lambda: load(path, (jnp.zeros(3), jnp.ones(2))), "does not hold a tree like the one given")
    path.write_text("[]")
    says(lambda: read_header(path), "was not written by awmkit.save")


class _Killed(Exception):
    pass


def _lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@functools.cache
def whole_run():
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        return run(KEY, callbacks=[JSONLines(log)]), _lines(log)


@given(epochs=st.integers(0, 4), moment=st.sampled_from(["while saving", "before the log", "after the log", "within the log"]))
def test_a_run_stopped_at_any_moment_ends_as_one_that_never_stopped(epochs, moment):
    seen, (whole, rows) = iter(range(99)), whole_run()

    def stop(metrics):
        if next(seen) == epochs:
            if moment == "within the log":
                with log.open("a") as file:
                    file.write(json.dumps(metrics.row())[:40])
            raise _Killed

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path, log = Path(folder) / "run", Path(folder) / "log"
        callbacks = [JSONLines(log), stop] if moment == "after the log" else [stop, JSONLines(log)]
        if moment == "while saving":
            callbacks = [JSONLines(log)]
            _failing(patch, epochs)
        with pytest.raises(_Killed if moment != "while saving" else OSError):
            run(KEY, callbacks=callbacks, checkpoint=path)
        patch.undo()
        resumed = run(KEY, callbacks=[JSONLines(log)], checkpoint=path)
        assert _bits((resumed.learner, resumed.metrics)) == _bits((whole.learner, whole.metrics))
        assert _lines(log) == rows and [row["steps"] for row in rows] == [24, 36, 48, 60, 72]


@pytest.mark.parametrize(
    ("key", "options"), [(KEY, {}), (KEYS, {}), (KEY, {"task": HOST})], ids=["one seed", "two seeds", "on the host"]
)
def test_a_run_given_more_steps_goes_on(key, options, tmp_path):
    whole = run(key, **options)
    run(key, steps=36, checkpoint=tmp_path / "run", **options)
    longer = run(key, checkpoint=tmp_path / "run", **options)
    assert _bits((longer.learner, longer.metrics)) == _bits((whole.learner, whole.metrics))


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run"
    run(KEY, steps=24, checkpoint=path)
    for options in ({"key": KEYS[0]}, {"fitting": ModelUpdates(batch_size=3)}, {"warmup": Warmup(24)}, {"evaluate_every": 24}):
        says(lambda options=options: run(**{"key": KEY, "checkpoint": path, **options}), "holds another run")
    path.write_bytes(b"nothing")
    says(lambda: run(KEY, checkpoint=path), "was not written by awmkit.save")


def test_a_run_that_goes_on_with_other_versions_says_so(tmp_path, monkeypatch):
    run(KEY, steps=24, checkpoint=tmp_path / "run")
    monkeypatch.setattr("awmkit.learning._train.versions", lambda: {**versions(), "jax": "0.0.1"})
    with pytest.warns(UserWarning, match="run was written by .* and goes on with .*'jax': '0.0.1'"):
        run(KEY, steps=24, checkpoint=tmp_path / "run")


PROGRAM = """
import signal, sys, time, jax
from awmkit import JSONLines
from reach import Reach, run
signal.signal(signal.SIGINT, signal.default_int_handler)  # Whatever started the tests may have it ignored.
pause = lambda metrics: time.sleep(0.1)
options = {"checkpoint": f"{sys.argv[1]}/run", "callbacks": [JSONLines(f"{sys.argv[1]}/log"), pause]}
run(jax.random.key(0), model=Reach(), reward=None, steps=132, **options)  # A simulator, for it is the quickest to compile.
"""


def test_a_process_that_is_killed_or_interrupted_resumes_and_ends_bit_for_bit_as_one_that_was_not(tmp_path):
    quick = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    program = lambda name: {
        "args": [sys.executable, "-c", PROGRAM, str(tmp_path / name)],
        "cwd": Path(__file__).parent.parent / "helpers",
        "env": {**os.environ, **quick},
        "stderr": subprocess.PIPE,
        "text": True,
    }
    (tmp_path / "whole").mkdir()
    subprocess.run(**program("whole"), check=True)
    for name, sent in (("killed", signal.SIGKILL), ("interrupted", signal.SIGINT)):
        (tmp_path / name).mkdir()
        log = tmp_path / name / "log"
        process = subprocess.Popen(**program(name))
        while not (log.exists() and log.read_text().count("\n") >= 3) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(sent)
        said = process.communicate()[1]
        assert process.returncode == -sent and len(_lines(log)) < 10
        if sent == signal.SIGINT:
            how = f"make the same call again, with checkpoint='{tmp_path / name / 'run'}', to go on from its last whole epoch."
            *_, last = said.splitlines()
            assert re.fullmatch(rf"KeyboardInterrupt: train was interrupted after \d+ steps; {re.escape(how)}", last)
        subprocess.run(**program(name), check=True)
        for file in ("run", "log"):  # The file of a run holds every leaf of it, and each epoch's metrics.
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
        assert len(_lines(log)) == 10


@pytest.mark.parametrize(("options", "how"), [({}, "they are lost.*run.awm"), ({"checkpoint": True}, "no epoch was whole")])
def test_an_interrupt_before_anything_is_kept_says_so(options, how, tmp_path):
    def interrupt(metrics):
        raise KeyboardInterrupt

    options = {name: tmp_path / "run" for name in options}
    with pytest.raises(KeyboardInterrupt, match=f"train was interrupted after 24 steps; {how}"):
        run(KEY, callbacks=[interrupt], **options)


def _events(path: Path) -> list[Event]:
    """Of a file of events: length (8 bytes), checksum (4), event, checksum (4)."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_tensorboard_has_every_number_of_every_epoch_and_a_curve_for_each_seed(tmp_path):
    board = TensorBoard(tmp_path)
    result = run(KEYS, callbacks=[board])
    board._writer.close()
    events = [event for path in tmp_path.iterdir() for event in _events(path)]
    scalars = {(event.step, x.tag): x.simple_value for event in events for x in event.summary.value}
    assert len(scalars) == 5 * 2 * 9 and any(event.session_log.status == 1 and event.step == 24 for event in events)
    for seed, returns in enumerate(result.metrics.true_return):
        curve = [scalars[steps, f"true_return/{seed}"] for steps in (24, 36, 48, 60, 72)]
        np.testing.assert_allclose(curve, returns, rtol=1e-6)

"""The gradient report: all analyses of one dynamics or several, side by side."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from .._dynamics import AbstractDynamics
from .._norms import norm
from .._progress import AbstractProgress, check_progress, TqdmProgress
from .._reward import check_reward, Reward
from ..learning import versions
from ._arguments import check_batch, check_horizons, Horizons
from ._fidelity import Fidelity, fidelity
from ._gradient_growth import gradient_growth, GradientGrowth
from ._hops import hop_spectrum, HopSpectrum
from ._landscape import Landscape, landscape
from ._lyapunov import Lyapunov, lyapunov
from ._report_table import report_table
from ._true_gradient import true_gradient, TrueGradient

NEAR = 10


class Hops(eqx.Module):
    """The hop spectrum of dJ/da over all actions, from each of N starts; see `hop_spectrum`.

    - `weights`: the share of each number of hops 0 ... H-1, shape (N, H).
    - `mean`: the mean number of hops, shape (N,).
    - `effective`: the number of different hop counts that matter, shape (N,).
    - `beyond`: the share of the gradient in paths with more than 10 hops, shape (N,).
    """

    weights: Float[Array, "..."]
    mean: Float[Array, "..."]
    effective: Float[Array, "..."]
    beyond: Float[Array, "..."]


class Entry(eqx.Module):
    """The results for one dynamics in a `Report`.

    - `state_growth`: growth of |ds_H/da_0|, the effect of the first action on the state.
    - `return_growth`: growth of |dJ_H/da|, the gradient of the return.
    - `hops`: the hop spectrum of dJ/da, from each start.
    - `exponents`: the largest Lyapunov exponent from each start; fields have a leading axis N.
    - `landscape`: the return along a random direction through the first start's actions.
    - `fidelity`: comparison with the true gradient; `None` if the report has no true system.
    - `seconds`: run time of each analysis in seconds, compilation included.
    """

    state_growth: GradientGrowth
    return_growth: GradientGrowth
    hops: Hops
    exponents: Lyapunov
    landscape: Landscape
    fidelity: Fidelity | None
    seconds: dict[str, float]

    def __repr__(self) -> str:
        fields = ", ".join(field.name for field in dataclasses.fields(self))
        return f"Entry(|ds_H/da_0|: {self.state_growth}; |dJ_H/da|: {self.return_growth}; fields: {fields})"


class Report(eqx.Module):
    """The result of `report`. `print(report)` shows tables; `awmkit.plot.report(report)` draws them.

    - `entries`: an `Entry` for each dynamics, by name.
    - `truth`: the true gradient that fidelity is measured against; `None` if no true system was given.
    - `setting`: the number of starts, horizons and other settings, by name.
    """

    entries: dict[str, Entry]
    truth: TrueGradient | None
    setting: dict[str, Any]

    def __repr__(self) -> str:
        return f"Report(entries={list(self.entries)}, starts={self.setting['starts']}, horizon={self.setting['horizon']})\n\n{self}"

    def __str__(self) -> str:
        return report_table(self)

    def json(self) -> str:
        """All results, settings and versions as JSON. Hop weights and running exponents are stored as quartiles over starts."""
        curves = lambda entry: (entry.hops.weights, entry.exponents.running)
        entries = {name: eqx.tree_at(curves, entry, replace_fn=quartiles) for name, entry in self.entries.items()}
        device = jax.devices()[0].device_kind
        record = {"setting": self.setting, "versions": versions(), "device": device, "entries": entries}
        if self.truth is not None:
            smoothed, exact = (norm(gradient.mean(axis=1), -1) for gradient in (self.truth.smoothed, self.truth.exact))
            ceilings = {"ceiling": self.truth.ceiling, "ceiling_of_each": self.truth.ceiling_of_each}
            record["truth"] = {**ceilings, "norm_smoothed": smoothed, "norm_exact": exact}
        return json.dumps(_plain(record), allow_nan=False)


def report(
    dynamics: AbstractDynamics | Mapping[str, AbstractDynamics],
    states: Float[Array, "N S"],
    actions: Float[Array, "N H A"],
    *,
    reward: Reward,
    key: PRNGKeyArray,
    truth: AbstractDynamics | None = None,
    horizons: Horizons | None = None,
    fidelity_horizons: Horizons | None = None,
    sigma: float = 0.1,
    pairs: int = 1024,
    span: float = 1.0,
    progress: AbstractProgress = TqdmProgress(),
) -> Report:
    """Run all analyses on one dynamics or several: how gradients grow, why, and whether they point the right way.

    Measured for each dynamics:

    - growth of gradients with the horizon, see `gradient_growth`;
    - hops, how often the gradient is fed back through states, see `hop_spectrum`;
    - the largest Lyapunov exponent, above 0 if the dynamics is chaotic, see `lyapunov`;
    - the landscape, the return along a random direction, see `landscape`;
    - fidelity, the agreement with the gradient of the true return, see `fidelity`.

    ```python
    result = report({"simulator": task, "AWM": model}, states, actions, reward=task.reward, truth=task, key=key)
    print(result)
    awmkit.plot.report(result).savefig("report.png")
    Path("report.json").write_text(result.json())
    ```

    **Arguments**

    - `dynamics`: one, or a dict of several by name.
    - `states`: N initial states, shape (N, S).
    - `actions`: the actions taken from each, shape (N, H, A). Landscape and fidelity use those of the first start.
    - `reward`: `reward(state, action, t) -> scalar`, optionally with a fourth argument `next_state`.
    - `key`: for the random direction, the perturbations and stochastic dynamics.
    - `truth`: the true system that fidelity is measured against; `None` skips fidelity.
    - `horizons`: horizons of growth, at least four from 1 to H; by default eight, evenly spaced in their logarithm.
    - `fidelity_horizons`: horizons of fidelity; by default every other one of `horizons`.
    - `sigma`: standard deviation of the perturbations of actions that smooth the true return, see `true_gradient`.
    - `pairs`: number of pairs of perturbations; more make the reference less noisy.
    - `span`: the largest step along the landscape's direction.
    - `progress`: `awmkit.TqdmProgress()` (the default) shows a bar on stderr, `awmkit.NoProgress()` nothing.

    **Returns:** a `Report`.

    **Raises:** `ValueError` if an argument does not fit one of the dynamics, or the true system's gradient is not finite.
    """
    named = dict(dynamics) if isinstance(dynamics, Mapping) else {type(dynamics).__name__: dynamics}
    if not named:
        raise ValueError("report needs at least one dynamics, got an empty dict.")
    check_reward(reward)
    check_progress(progress)
    for one in named.values():
        states, actions = check_batch(one, states, actions, key=key)
    chosen = check_horizons(horizons, actions.shape[1])
    judged = chosen[-1:-8:-2][::-1] if fidelity_horizons is None else np.asarray(fidelity_horizons)
    reference_key, run_key, cut_key = jax.random.split(key, 3)
    reference, entries, smoothing = None, {}, {"sigma": sigma, "pairs": pairs}
    with progress.start("report", len(named) + (truth is not None)) as meter:
        if truth is not None:
            meter.update(0, phase="true gradient")
            given = {"reward": reward, "horizons": judged, "key": reference_key}
            reference = true_gradient(truth, actions[0], states, **given, **smoothing)
        for name, one in named.items():
            meter.update(len(entries) + (truth is not None), phase=name)
            entries[name] = _entry(one, states, actions, reward, run_key, cut_key, reference, chosen, span)
        meter.update(len(named) + (truth is not None))
    setting = {"starts": len(states), "horizon": actions.shape[1], "horizons": chosen, "fidelity_horizons": judged}
    return Report(entries, reference, {**setting, **smoothing, "span": span})


def _entry(dynamics, states, actions, reward, run_key, cut_key, reference, horizons, span) -> Entry:
    seconds: dict[str, float] = {}

    def timed(name: str, analysis: Callable[[], Any]) -> Any:
        start = time.monotonic()
        result = jax.block_until_ready(analysis())
        seconds[name] = time.monotonic() - start
        return result

    given = {"horizons": horizons.tolist(), "key": run_key}
    horizon = actions.shape[1]
    cut = lambda: landscape(dynamics, actions[0], states[0], horizon, reward=reward, span=span, key=cut_key)
    return Entry(
        timed("state_growth", lambda: gradient_growth(dynamics, states, actions, **given)),
        timed("return_growth", lambda: gradient_growth(dynamics, states, actions, reward=reward, **given)),
        timed("hops", lambda: _hops(dynamics, states, actions, reward, run_key)),
        timed("exponents", lambda: _exponents(dynamics, states, actions, run_key)),
        timed("landscape", cut),
        None if reference is None else timed("fidelity", lambda: fidelity(dynamics, reference)),
        seconds,
    )


@eqx.filter_jit
def _hops(dynamics, states, actions, reward, key) -> Hops:
    horizon = actions.shape[1]

    def of_start(x):
        spectrum = hop_spectrum(dynamics, *x, reward=reward, hops=max(horizon - 1, NEAR), key=key)
        together = HopSpectrum(spectrum.parts.reshape(spectrum.parts.shape[0], 1, -1), 0)
        weights = together.weights[:horizon]
        return Hops(weights, together.mean_hops, together.effective_hops, together.beyond(NEAR))

    return lax.map(of_start, (states, actions))


@eqx.filter_jit
def _exponents(dynamics, states, actions, key) -> Lyapunov:
    discard = actions.shape[1] // 4
    return lax.map(lambda x: lyapunov(dynamics, *x, discard=discard, key=key), (states, actions))


def quartiles(x: Any, axis: int = 0) -> np.ndarray:
    """The 25 %, 50 % and 75 % quantiles; NaN where one would lie between two infinities."""
    with np.errstate(invalid="ignore"):
        return np.quantile(np.asarray(x), [0.25, 0.5, 0.75], axis=axis)


def _plain(x: Any) -> Any:
    """Modules as dicts, arrays as lists of numbers with six digits, and infinities as text, which JSON has no number for."""
    if isinstance(x, Mapping):
        return {str(k): _plain(v) for k, v in x.items()}
    if dataclasses.is_dataclass(x):
        return {f.name: _plain(getattr(x, f.name)) for f in dataclasses.fields(x)}
    if isinstance(x, list | tuple):
        return [_plain(v) for v in x]
    if isinstance(x, np.ndarray | np.generic | jax.Array):
        return _plain(np.asarray(x).tolist())
    if isinstance(x, float):
        return float(f"{x:.6g}") if np.isfinite(x) else str(x)
    return x

"""All of the analyses side by side, for one dynamics or several.

Apart because it measures nothing itself: it asks the others the same questions about each dynamics, and prints the answers.
"""

import dataclasses
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from .._dynamics import AbstractDynamics
from .._progress import Progress
from .._reward import check_reward, Reward
from ._fidelity import each, Fidelity, fidelity, true_gradient, TrueGradient
from ._gradient_growth import check_horizons, gradient_growth, GradientGrowth, Horizons
from ._hops import hop_spectrum, HopSpectrum
from ._landscape import Landscape, landscape
from ._lyapunov import Lyapunov, lyapunov
from ._tangents import check_batch

NEAR = 10


class Hops(eqx.Module):
    """The hop spectrum of dJ/da, all actions together, from each of N starts.

    - `weights`: the share of each number of hops, 0 ... H - 1, shape (N, H).
    - `mean`, `effective`: the mean and the effective number of hops, shape (N,).
    - `beyond`: the share of the gradient's norm in paths of more than 10 hops, shape (N,).
    """

    weights: Float[Array, "..."]
    mean: Float[Array, "..."]
    effective: Float[Array, "..."]
    beyond: Float[Array, "..."]


class Entry(eqx.Module):
    """What the report says of one dynamics; `seconds` of each analysis, compilation included."""

    state_growth: GradientGrowth
    return_growth: GradientGrowth
    hops: Hops
    exponents: Lyapunov
    landscape: Landscape
    fidelity: Fidelity | None
    seconds: dict[str, float]

    def __repr__(self) -> str:
        fields = ", ".join(field.name for field in dataclasses.fields(self))
        return f"Entry of {fields}: |ds_H/da_0| {self.state_growth}; |dJ_H/da| {self.return_growth}"


class Report(eqx.Module):
    """What `report` returns: printed, a table; `json()`, the raw values; `awmkit.plot.report(...)`, a figure.

    - `entries`: an `Entry` for each dynamics, by name.
    - `truth`: the reference of fidelity, `None` where no true system was given.
    - `setting`: what was asked.
    """

    entries: dict[str, Entry]
    truth: TrueGradient | None
    setting: dict[str, Any]

    def __repr__(self) -> str:
        truth = "None" if self.truth is None else "a TrueGradient"
        return f"Report(entries={list(self.entries)}, truth={truth}, setting={list(self.setting)})\n\n{self}"

    def __str__(self) -> str:
        return table(self)

    def json(self) -> str:
        """Raw values, setting and versions; of the curves against hops and steps, quartiles over starts."""
        packages = ("awmkit", "jax", "equinox", "diffrax", "numpy")
        versions = {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}}
        curves = lambda entry: (entry.hops.weights, entry.exponents.running)
        entries = {name: eqx.tree_at(curves, entry, replace_fn=quartiles) for name, entry in self.entries.items()}
        device = jax.devices()[0].device_kind
        record = {"setting": self.setting, "versions": versions, "device": device, "entries": entries}
        if self.truth is not None:
            smoothed = np.linalg.norm(self.truth.smoothed.mean(axis=1), axis=-1)
            exact = np.linalg.norm(self.truth.exact.mean(axis=1), axis=-1)
            ceilings = {"ceiling": self.truth.ceiling, "ceiling_of_each": self.truth.ceiling_of_each}
            record["truth"] = {**ceilings, "norm_smoothed": smoothed, "norm_exact": exact}
        return json.dumps(_plain(record))


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
    progress: bool = True,
) -> Report:
    """Where the gradient goes, for several dynamics side by side: growth, hops, exponents, landscape, fidelity.

    ```python
    result = report({"simulator": task, "AWM": model}, states, actions, reward=task.reward, truth=task, key=key)
    print(result)
    awmkit.plot.report(result).savefig("report.png")
    Path("report.json").write_text(result.json())
    ```

    **Arguments**

    - `dynamics`: one, or several by name.
    - `states`, `actions`: N starts, shape (N, S), and what is done from each, shape (N, H, A). The landscape is cut through the
      first; fidelity is that of the gradient by the first start's actions, over all starts.
    - `reward`: of the return, the same for all.
    - `truth`: the true system, against which fidelity is judged; `None` leaves fidelity out.
    - `horizons`: of growth. `fidelity_horizons`: of fidelity, by default four of `horizons`.
    - `sigma`, `pairs`: of the smoothed reference, see `awmkit.analysis.true_gradient`.
    - `span`: of the landscape. `key`: for its direction, and for all else that is random.
    - `progress`: whether to show a progress bar on stderr.

    **Returns:** a `Report`. examples/README.md reads one line by line.

    **Raises:** `ValueError` as the analyses do.
    """
    named = dict(dynamics) if isinstance(dynamics, Mapping) else {type(dynamics).__name__: dynamics}
    if not named:
        raise ValueError("report got no dynamics; pass one, or a dict of several by name.")
    check_reward(reward)
    for one in named.values():
        states, actions = check_batch(one, states, actions, key=key)
    chosen = check_horizons(horizons, actions.shape[1])
    judged = chosen[-1:-8:-2][::-1] if fidelity_horizons is None else np.asarray(fidelity_horizons)
    reference_key, run_key, cut_key = jax.random.split(key, 3)
    reference, entries, smoothing = None, {}, {"sigma": sigma, "pairs": pairs}
    with Progress("report", len(named) + (truth is not None), enabled=progress) as bar:
        if truth is not None:
            bar.update(0, "the true gradient")
            given = {"reward": reward, "horizons": judged, "key": reference_key}
            reference = true_gradient(truth, actions[0], states, **given, **smoothing)
        for name, one in named.items():
            bar.update(len(entries) + (truth is not None), name)
            entries[name] = _entry(one, states, actions, reward, run_key, cut_key, reference, chosen, span)
        bar.update(len(named) + (truth is not None))
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
    return Entry(
        timed("state_growth", lambda: gradient_growth(dynamics, states, actions, **given)),
        timed("return_growth", lambda: gradient_growth(dynamics, states, actions, reward=reward, **given)),
        timed("hops", lambda: _hops(dynamics, states, actions, reward, run_key)),
        timed("exponents", lambda: _exponents(dynamics, states, actions, run_key)),
        timed(
            "landscape",
            lambda: landscape(dynamics, actions[0], states[0], actions.shape[1], reward=reward, span=span, key=cut_key),
        ),
        None if reference is None else timed("fidelity", lambda: fidelity(dynamics, reference)),
        seconds,
    )


@eqx.filter_jit
def _hops(dynamics, states, actions, reward, key) -> Hops:
    horizon = actions.shape[1]

    def of_start(x):
        spectrum = hop_spectrum(dynamics, *x, reward=reward, hops=max(horizon - 1, NEAR), key=key)
        together = HopSpectrum(spectrum.parts.reshape(spectrum.parts.shape[0], 1, -1))
        weights = together.weights[:horizon]
        return Hops(weights, together.mean_hops, together.effective_hops, together.beyond(NEAR))

    return lax.map(of_start, (states, actions))


@eqx.filter_jit
def _exponents(dynamics, states, actions, key) -> Lyapunov:
    discard = actions.shape[1] // 4
    return lax.map(lambda x: lyapunov(dynamics, *x, discard=discard, key=key), (states, actions))


def table(report: Report) -> str:
    """The report's figures, a row for each dynamics."""
    horizon = report.setting["horizon"]
    heads = ["|ds_H/da_0|", "|dJ_H/da|", "mean hops", f"beyond {NEAR}", "exponent", "variation", "maxima", "Lipschitz"]
    rows = {
        name: [
            str(entry.state_growth),
            str(entry.return_growth),
            f"{np.median(entry.hops.mean):.2f}",
            f"{np.median(entry.hops.beyond):.1%}",
            f"{np.median(entry.exponents.exponents[:, 0]):.3f}",
            f"{float(entry.landscape.total_variation):.3g}",
            f"{int(entry.landscape.local_maxima)}",
            f"{float(entry.landscape.lipschitz):.2g}",
        ]
        for name, entry in report.entries.items()
    }
    lines = _aligned({"": heads, **rows})
    lines += [
        "",
        f"Medians over {report.setting['starts']} starts: growth laws up to H = {horizon}; hops; the largest Lyapunov exponent",
        "per step, of the last three quarters. Total variation (against the range), local maxima and the gradient's",
        "Lipschitz constant are those of a random slice of the return.",
    ]
    return "\n".join(lines + _fidelity_table(report))


def _fidelity_table(report: Report) -> list[str]:
    if report.truth is None:
        return []
    heads = [f"H = {h}" for h in report.truth.horizons]
    judged = {name: entry.fidelity for name, entry in report.entries.items() if entry.fidelity is not None}
    rows = lambda figure, spec=".2f": {name: each(figure(f), spec) for name, f in judged.items()}
    perfect = lambda ceiling: {"(a perfect one)": [f"{c:.2f}" for c in ceiling]}
    sigma = report.setting["sigma"]
    parts = {
        f"Cosine with the true gradient, smoothed (sigma = {sigma:g}), with 95 % intervals:": {
            **rows(lambda f: f.smoothed.cosine),
            **perfect(report.truth.ceiling),
        },
        "The same start by start, their mean:": {
            **rows(lambda f: f.smoothed.cosine_of_each),
            **perfect(report.truth.ceiling_of_each),
        },
        "Cosine with the true gradient, exact:": rows(lambda f: f.exact.cosine),
        "Norm, against that of the smoothed true gradient:": rows(lambda f: f.smoothed.norm_ratio, ".2g"),
        "Signal-to-noise ratio over starts (ESNR):": rows(lambda f: f.esnr, ".2g"),
    }
    return [line for title, part in parts.items() for line in ("", title, *_aligned({"": heads, **part}))]


def quartiles(x: Any, axis: int = 0) -> np.ndarray:
    """The quartiles over starts; between two infinities there is none, NaN."""
    with np.errstate(invalid="ignore"):
        return np.quantile(np.asarray(x), [0.25, 0.5, 0.75], axis=axis)


def _aligned(rows: dict[str, list[str]]) -> list[str]:
    first = max(map(len, rows))
    widths = [max(map(len, column)) for column in zip(*rows.values(), strict=True)]
    return ["  ".join([f"{name:<{first}}", *(f"{c:>{w}}" for c, w in zip(r, widths, strict=True))]) for name, r in rows.items()]


def _plain(x: Any) -> Any:
    """Modules as dictionaries and arrays as lists of numbers of six digits, for JSON, which has no infinity."""
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

"""Figures of the analyses, and the one style in which every figure of awmkit is drawn (`pip install "awmkit[plot]"`).

`growth`, `jacobian`, `hops`, `exponents`, `sweeps`, `landscape` and `fidelity` each draw one kind of result. They take one result,
or a dict of several by name, and draw into `axes` if given, else into a new figure; they return the axes.
`report` draws everything in an `awmkit.analysis.Report` and returns the figure. `swept` draws a sweep of `train` or `improve`.

```python
plot.growth({"simulator": gradient_growth(task, starts, actions), "AWM": gradient_growth(model, starts, actions)})
plot.landscape(landscape(task, policy, s_0, 200, reward=task.reward, key=key)).figure.savefig("landscape.png")
```

Use the same style and colours in figures of your own:

```python
colours = plot.colours(returns)
with plot.style():
    figure, axes = plt.subplots()
    for name, values in returns.items():
        axes.plot(values, color=colours[name], label=name)
    figure.savefig("returns.png")
```
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import numpy as np
from numpy.typing import ArrayLike

try:
    import matplotlib.pyplot as plt
    from cycler import cycler
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
except ImportError as error:
    raise ImportError(f'awmkit.plot needs matplotlib ({error}); run pip install "awmkit[plot]".') from error

from ._checks import check_shapes, kind, Shape
from ._norms import norm
from .analysis import (
    ActionJacobian,
    Fidelity,
    GradientGrowth,
    HopSpectrum,
    Landscape,
    Lyapunov,
    NewtonSweeps,
    Report,
    TrueGradient,
)
from .analysis._newton_sweeps import log_condition
from .analysis._report import quartiles
from .learning import ImproveResult, TrainResult
from .scores import interval

__all__ = [
    "COLOURS",
    "STYLE",
    "colours",
    "exponents",
    "fidelity",
    "growth",
    "hops",
    "jacobian",
    "landscape",
    "report",
    "style",
    "sweeps",
    "swept",
]

COLOURS = {
    "simulator": "#000000",
    "AWM": "#0072B2",
    "AWM transformer": "#0072B2",
    "AWM LSTM": "#009E73",
    "AWM GRU": "#56B4E9",
    "AWM RNN": "#332288",
    "AWM linear state space": "#44DDAA",
    "HWM": "#E69F00",
    "HWM transformer": "#E69F00",
    "HWM LSTM": "#8C510A",
    "HWM GRU": "#DDCC77",
    "Markov": "#D55E00",
    "Markov, critic": "#882255",
    "SAC": "#CC79A7",
    "PPO": "#666666",
}
"""The colour of each method in every figure of awmkit: black is the simulator, cool colours are actions world models (AWM),
warm ones history world models (HWM) and Markov models. From the colour-blind safe palettes of Okabe and Ito, and of Tol."""

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=list(dict.fromkeys(COLOURS.values()))),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "font.size": 10,
    "grid.alpha": 0.25,
    "image.cmap": "viridis",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "savefig.dpi": 150,
}
"""Matplotlib's parameters for every figure of awmkit."""


@contextmanager
def style() -> Iterator[None]:
    """A context in which matplotlib draws in awmkit's style: `with plot.style(): ...`. Works as a decorator, too.

    To use it for a whole program, call `plt.rcParams.update(plot.STYLE)` instead.
    """
    # Not `plt.rc_context`: it would undo what a notebook's backend sets when the first figure loads it.
    before = {name: plt.rcParams[name] for name in STYLE}
    plt.rcParams.update(STYLE)
    try:
        yield
    finally:
        plt.rcParams.update(before)


def colours(names: Iterable[str]) -> dict[str, str]:
    """A different colour for each name of one figure.

    Names in `COLOURS` have the colour given there. All others take the unused colours in order, black first.

    ```python
    colours(["mine", "Markov"])  # {"mine": "#000000", "Markov": "#D55E00"}
    ```
    """
    names, palette = list(names), list(dict.fromkeys(COLOURS.values()))
    taken = {COLOURS[name]: name for name in reversed(names) if name in COLOURS}
    fixed = {name: colour for colour, name in taken.items()}
    free = itertools.cycle([colour for colour in palette if colour not in taken] or palette)
    return {name: fixed.get(name) or next(free) for name in names}


@style()
def growth(results: GradientGrowth | Mapping[str, GradientGrowth], *, axes: Axes | None = None) -> Axes:
    """Gradient norm against the horizon: the median over starts, quartiles shaded, the fitted law in the legend."""
    each = _each(results, GradientGrowth)
    for _, name, result in each:
        _check("growth", name, horizons=(result.horizons, ("n",)), norms=(result.norms, ("n", "N")))
    of = _common("kind of gradient", [result.of for *_, result in each])
    axes = _axes(axes)
    for colour, name, result in each:
        low, middle, high = quartiles(np.where(np.isnan(result.norms), np.inf, result.norms), axis=1)
        axes.plot(result.horizons, middle, "o-", color=colour, label=f"{name}: {result}" if name else str(result))
        axes.fill_between(result.horizons, low, high, color=colour, alpha=0.12, lw=0)
    axes.set(xlabel="horizon H (steps)", ylabel=r"$\|dJ_H/da\|$" if of == "return" else r"$\|ds_H/da_0\|$")
    axes.legend()
    return _logarithmic(axes)


@style()
def jacobian(results: ActionJacobian | Mapping[str, ActionJacobian], *, axes: Axes | None = None) -> Axes:
    """Size of ds_t/da_k against the lag t - k: the root mean square over all pairs of steps that far apart."""
    each = _each(results, ActionJacobian)
    for _, name, result in each:
        _check("jacobian", name, blocks=(result.blocks, ("H+1", "H", "S", "A")))
    axes = _axes(axes)
    for colour, name, result in each:
        by_lag = np.asarray(result.by_lag)
        axes.plot(np.arange(1, by_lag.size + 1), by_lag, color=colour, label=name)
    axes.set(xlabel="lag t - k (steps)", ylabel=r"root mean square of $\|ds_t/da_k\|$")
    return _legend(_logarithmic(axes), results)


@style()
def hops(results: HopSpectrum | Mapping[str, HopSpectrum], *, axes: Axes | None = None) -> Axes:
    """The share of the derivative's norm in paths of each number of hops, over all pairs and starts together."""
    weights = {}
    for _, name, result in _each(results, HopSpectrum):
        _check("hops", name, parts=(result.parts, ("*", "N", *("t", "k")[: result.pair_axes], "D", "E")))
        norms = np.moveaxis(np.asarray(result.norms, float), -result.pair_axes - 1, 0)
        norms = norm(norms, tuple(range(1, norms.ndim)))
        weights[name] = norms / (norms.sum() or 1)
    return _weights(weights, axes)


@style()
def exponents(results: Lyapunov | Mapping[str, Lyapunov], *, axes: Axes | None = None) -> Axes:
    """Running estimates of Lyapunov exponents against the number of steps, which show how far they have converged.

    For results batched over starts: the median of the largest exponent, with quartiles shaded.
    """
    each = _each(results, Lyapunov)
    for _, name, result in each:
        _check("exponents", name, running=(result.running, ("N", "T", "count")[-max(2, np.ndim(result.running)) :]))
    axes = _axes(axes)
    for colour, name, result in each:
        running = np.asarray(result.running)
        steps = np.arange(1, running.shape[-2] + 1)
        if running.ndim == 2:
            axes.plot(steps, running, color=colour, label=[name] + ["_"] * (running.shape[1] - 1))
        else:
            low, middle, high = quartiles(running[..., 0])
            axes.plot(steps, middle, color=colour, label=name)
            axes.fill_between(steps, low, high, color=colour, alpha=0.12, lw=0)
    axes.axhline(0, color="grey", ls=":", lw=1)
    axes.set(xlabel="steps averaged", ylabel="Lyapunov exponent (per step)")
    return _legend(axes, results)


@style()
def sweeps(results: NewtonSweeps | Mapping[str, NewtonSweeps], *, axes: Axes | None = None) -> Axes:
    """Sweeps of Newton's method against the largest Lyapunov exponent times H, one point for each start.

    A cross is a start that does not settle before all steps are exact. Dashed, for each horizon: the line of the theory in
    `awmkit.analysis.newton_sweeps`, n_0 + 2 log C and at most H, where n_0 is the smallest number of sweeps in the figure.
    """
    each = _each(results, NewtonSweeps)
    for _, name, result in each:
        fields = {"sweeps": result.sweeps, "exponents": result.exponents, "settled": result.settled}
        _check("sweeps", name, **{field: (x, ("N",)) for field, x in fields.items()})
    axes = _axes(axes)
    found = [(r.horizon, np.asarray(r.exponents, float), np.asarray(r.sweeps), np.asarray(r.settled, bool)) for *_, r in each]
    for (colour, name, _), (horizon, exponents, counts, settled) in zip(each, found, strict=True):
        axes.plot(horizon * exponents[settled], counts[settled], "o", color=colour, label=name if settled.any() else "_")
        axes.plot(horizon * exponents[~settled], counts[~settled], "x", color=colour, label="_" if settled.any() else name)
    settled = [counts[settled] for *_, counts, settled in found if settled.any()]
    for horizon in sorted({h for h, *_ in found}) if settled else ():
        edges = np.concatenate([h * x[np.isfinite(x)] for h, x, *_ in found if h == horizon])
        if edges.size:
            x = np.linspace(edges.min(), edges.max(), 400)
            fewest = min(counts.min() for counts in settled)
            y = np.minimum(fewest + 2 * log_condition(x / horizon, horizon), horizon)
            axes.plot(x, y, "--", color="grey", lw=1, label=f"{fewest} + 2 log C, H = {horizon}")
    axes.axvline(0, color="grey", ls=":", lw=1)
    axes.set(xlabel="largest Lyapunov exponent times H", ylabel="sweeps")
    return _legend(_logarithmic(axes), results)


@style()
def landscape(results: Landscape | Mapping[str, Landscape], *, axes: Axes | None = None) -> Axes:
    """The return along a line as a curve, or on a square (of one dynamics) as an image."""
    each = _each(results, Landscape)
    for _, name, result in each:
        shape = ("n", "n")[: max(1, np.ndim(result.values))]
        _check("landscape", name, coordinates=(result.coordinates, ("n",)), values=(result.values, shape))
    if len(each) > 1 and any(np.ndim(result.values) > 1 for *_, result in each):
        raise ValueError(
            f"landscape draws a square of one dynamics only, got {len(each)} results; draw each into its own axes."
        )
    axes = _axes(axes)
    for colour, name, result in each:
        x, values = np.asarray(result.coordinates), np.asarray(result.values)
        if values.ndim == 1:
            axes.plot(x, values, color=colour, lw=1, label=name)
            axes.set(xlabel="step along the direction", ylabel="return J")
        else:
            axes.grid(False)
            image = axes.pcolormesh(x, x, values.T, shading="nearest")
            axes.figure.colorbar(image, ax=axes, label="return J")
            axes.set(xlabel="step along the first direction", ylabel="step along the second direction", title=name)
    return _legend(axes, results)


@style()
def fidelity(
    results: Fidelity | Mapping[str, Fidelity], *, truth: TrueGradient | None = None, axes: Axes | None = None
) -> Axes:
    """Cosine with the smoothed true gradient at each horizon: the mean over starts with its 95 % interval.

    With `truth`, dashed lines show the cosine of a perfect gradient, which the noise of the reference keeps below 1.
    """
    each = _each(results, Fidelity)
    for _, name, result in each:
        cosine = result.smoothed.cosine_of_each
        arrays = {"value": cosine.value, "low": cosine.low, "high": cosine.high, "horizons": result.horizons}
        _check("fidelity", name, **{of: (x, ("n",)) for of, x in arrays.items()})
    _common(
        "horizons", [np.asarray(result.horizons).tolist() for result in (*(r for *_, r in each), truth) if result is not None]
    )
    axes = _axes(axes)
    count = len(each)
    for i, (colour, name, result) in enumerate(each):
        cosine = result.smoothed.cosine_of_each
        x = np.arange(result.horizons.size) + 0.6 * ((i + 0.5) / count - 0.5)
        below, above = np.maximum(cosine.value - cosine.low, 0), np.maximum(cosine.high - cosine.value, 0)
        axes.errorbar(x, cosine.value, yerr=[below, above], fmt="o", color=colour, capsize=2, label=name)
        axes.set_xticks(range(result.horizons.size), [str(h) for h in result.horizons])
    if truth is not None:
        ends = np.arange(truth.horizons.size) + np.array([[-0.4], [0.4]])
        label = ["perfect gradient"] + ["_"] * (truth.horizons.size - 1)
        axes.plot(ends, np.stack([truth.ceiling_of_each] * 2), color="grey", ls="--", lw=1, label=label)
    axes.axhline(0, color="grey", ls=":", lw=1)
    axes.grid(False, axis="x")
    axes.set(xlabel="horizon H (steps)", ylabel="cosine with the true gradient", ylim=(-1.05, 1.05))
    return _legend(axes, results)


@style()
def swept(
    result: TrainResult | ImproveResult,
    *,
    metric: Callable[[Any], ArrayLike] | None = None,
    against: str | None = None,
    axes: Axes | None = None,
) -> Axes:
    """A metric of a sweep against the number that varies: the mean over seeds, with its 95 % interval by `awmkit.scores`.

    If several numbers vary, as on a grid, there is one line for each combination of the others.

    ```python
    plot.swept(result, metric=lambda result: result.metrics.model_error[..., -1])
    ```

    **Arguments**

    - `result`: of `train` or `improve`, of a sweep.
    - `metric`: called as `metric(result)`, returns one number per setting, shape (N,), or per setting and seed, shape (N, K). By
      default the last `true_return` of `train`, or the last `predicted_return` of `improve`. Numbers that are not finite are not
      drawn.
    - `against`: the path of the number on the x axis, such as "ascent.optimiser.learning_rate"; the first in `result.sweep` by
      default.

    **Raises:** `ValueError` if `result` is of another type or of no sweep, or has no number `against`.
    """
    if not isinstance(result, TrainResult | ImproveResult) or not result.sweep:
        raise ValueError(
            f"plot.swept draws the result of a sweep by train or improve, got {kind(result)}; give a number an axis."
        )
    against = next(iter(result.sweep)) if against is None else against
    if against not in result.sweep:
        raise ValueError(f"The sweep has no number {against!r}; it has {', '.join(result.sweep)}.")
    curves = result.metrics.true_return if isinstance(result, TrainResult) else result.updates.predicted_return
    x = result.sweep[against]
    y = np.asarray(curves[..., -1] if metric is None else metric(result), float)
    if y.shape[:1] != x.shape or y.ndim > 2:
        raise ValueError(
            f"metric must return shape ({x.size},) or ({x.size}, seeds), got {y.shape}; return one number per run."
        )
    others = [tuple(x[i] for name, x in result.sweep.items() if name != against) for i in range(x.size)]
    lines = list(dict.fromkeys(others))
    if len(lines) == x.size:  # No grid: all numbers vary together.
        others, lines = [()] * x.size, [()]
    axes = _axes(axes)
    for line, colour in zip(lines, itertools.cycle(dict.fromkeys(COLOURS.values()))):
        drawn = np.array([i for i in np.argsort(x, kind="stable") if others[i] == line and np.isfinite(y[i]).all()], int)
        names = [name.split(".")[-1] for name in result.sweep if name != against]
        label = ", ".join(f"{name} {value:.3g}" for name, value in zip(names, line, strict=False))
        runs = y.reshape(y.shape[0], -1)[drawn]
        axes.plot(x[drawn], runs.mean(axis=1), "o-", color=colour, label=label or None)
        if runs.shape[1] > 1:
            each = [interval(np.mean, run[:, None]) for run in runs]
            axes.fill_between(x[drawn], [i.low for i in each], [i.high for i in each], color=colour, alpha=0.12, lw=0)
    if x.min() > 0 and x.max() > 30 * x.min():
        axes.set_xscale("log")
    default = "true return" if isinstance(result, TrainResult) else "predicted return"
    axes.set(xlabel=against, ylabel=default if metric is None else "")
    if len(lines) > 1:
        axes.legend()
    return axes


@style()
def report(result: Report) -> Figure:
    """Six panels, one for each question of the report. Colours mean the same dynamics in all of them.

    ```python
    awmkit.plot.report(result)  # at the end of a notebook's cell
    awmkit.plot.report(result).savefig("report.png")
    ```

    **Returns:** the figure.
    """
    _each(result, Report)
    figure, panels = plt.subplots(2, 3, figsize=(13, 7.5))
    of = lambda field: {name: getattr(entry, field) for name, entry in result.entries.items()}
    growth(of("state_growth"), axes=panels[0, 0]).set_title("1. Effect of the first action on the state")
    growth(of("return_growth"), axes=panels[0, 1]).set_title("2. Gradient of the return")
    weights = {name: np.median(spectrum.weights, axis=0) for name, spectrum in of("hops").items()}
    _weights(weights, panels[0, 2]).set_title("3. Hops in the gradient's paths")
    exponents(of("exponents"), axes=panels[1, 0]).set_title("4. Largest Lyapunov exponent")
    cuts = {name: eqx.tree_at(lambda c: c.values, cut, _shifted(cut.values)) for name, cut in of("landscape").items()}
    limits = _focus([cut.values for cut in cuts.values()])
    landscape(cuts, axes=panels[1, 1]).set(
        title="5. Return along a random direction", ylabel="change of the return", ylim=limits
    )
    panels[1, 2].set_title("6. Direction of the gradient")
    if result.truth is None:
        panels[1, 2].set_axis_off()
        panels[1, 2].text(0, 0.95, "not measured: give report a true system, truth=...", va="top", color="grey")
    else:
        fidelity(of("fidelity"), truth=result.truth, axes=panels[1, 2])
    for panel in panels.flat[2:]:  # The shared legend names the dynamics.
        if (legend := panel.get_legend()) is not None:
            legend.remove()
    for panel, field in zip(panels.flat, ("state_growth", "return_growth"), strict=False):
        panel.legend(panel.lines, list(map(str, of(field).values())), title="fitted law", alignment="left", handlelength=1)
    names = colours(result.entries)
    handles: list[Any] = [Line2D([], [], color=colour, marker="o", label=name) for name, colour in names.items()]
    handles.append(Patch(color="grey", alpha=0.3, lw=0, label="quartiles over starts"))
    if result.truth is not None:
        handles.append(Line2D([], [], color="grey", ls="--", lw=1, label="perfect gradient (limited by noise)"))
    rows = -(-len(handles) // 7)
    figure.legend(handles=handles, loc="outside lower center", ncols=-(-len(handles) // rows))
    if "inline" in plt.get_backend():  # A notebook shows both what a cell returns and every open figure.
        plt.close(figure)
    return figure


def _weights(weights: Mapping[str, np.ndarray], axes: Axes | None) -> Axes:
    """Draw the share of each number of hops."""
    axes = _axes(axes)
    rings = 0
    for colour, name, shares in _each(weights, np.ndarray):
        marker: dict[str, Any] = {"ms": 2.5}
        if np.count_nonzero(shares) == 1:  # An actions world model is a single point. Rings show several at the same place.
            marker, rings = {"ms": 5 + 4 * rings, "mfc": "none"}, rings + 1
        axes.plot(np.arange(shares.size), np.where(shares > 0, shares, np.nan), "o-", lw=1, color=colour, label=name, **marker)
    axes.set(xscale="symlog", xlim=(-0.2, None), ylim=(1e-4, 1.5))
    axes.set(xlabel="number of hops", ylabel="share of the derivative's norm")
    axes.xaxis.set_major_formatter("{x:.0f}")
    return _legend(_logarithmic(axes), weights)


def _shifted(values: Any) -> np.ndarray:
    """The values of a line minus the value in its middle, so that lines of different dynamics meet there."""
    values = np.asarray(values, float)
    return values - values[values.size // 2]


def _focus(curves: list[Any]) -> tuple[float, float]:
    """Limits that show all of the first curve and most of the others, without a few that diverge."""
    finite = [c[np.isfinite(c)] for c in (np.asarray(c, float) for c in curves)]
    finite = [c for c in finite if c.size] or [np.zeros(1)]
    low, high = np.median([np.quantile(c, [0.1, 0.9]) for c in finite], axis=0)
    low, high = min(low, finite[0].min()), max(high, finite[0].max())
    margin = 0.3 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _logarithmic(axes: Axes) -> Axes:
    """Make the y axis logarithmic, unless nothing drawn is positive and finite."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    if (np.isfinite(drawn) & (drawn > 0)).any():
        axes.set_yscale("log")
    return axes


def _axes(axes: Axes | None) -> Axes:
    return plt.subplots()[1] if axes is None else axes


def _each(results: Any, needed: type) -> list[tuple[str, str, Any]]:
    """Colour, name and result of each; raise for results of another type."""
    named = results if isinstance(results, Mapping) else {"": results}
    if wrong := [result for result in named.values() if not isinstance(result, needed)]:
        raise ValueError(f"This function draws a {needed.__name__}, or a dict of several by name; got {kind(wrong[0])}.")
    return [(colour, name, named[name]) for name, colour in colours(named).items()]


def _check(who: str, name: str, **arrays: tuple[Any, Shape]) -> None:
    """Raise unless the arrays of the result called `name` have their shapes."""
    check_shapes(f"plot.{who}{f' of {name}' if name else ''}", "pass the result of one analysis, not a batch", **arrays)


def _common(what: str, values: list[Any]) -> Any:
    """Return what all results have in common; raise if they differ, because they would share one axis."""
    if any(value != values[0] for value in values):
        raise ValueError(f"All results in one figure must have the same {what}, got {values}; draw them into separate axes.")
    return values[0] if values else None


def _legend(axes: Axes, results: Any) -> Axes:
    if isinstance(results, Mapping) and axes.get_legend_handles_labels()[1]:
        axes.legend()
    return axes

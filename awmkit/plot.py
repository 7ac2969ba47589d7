"""Figures of the analyses, by matplotlib (`pip install "awmkit[plot]"`).

Each function draws one kind of result, of one dynamics or of several by name, into axes of yours or new ones, which it returns;
put the simulator first, it is drawn in black. `results` is what the analysis returned, or a dict of several by name; `axes`
is where to draw, a new figure by default.

    plot.growth({"simulator": gradient_growth(task, starts, actions), "AWM": gradient_growth(model, starts, actions)})
    plot.landscape(landscape(task, policy, s_0, 200, reward=task.reward, key=key)).figure.savefig("landscape.png")
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

try:
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(f'awmkit.plot needs matplotlib ({error}); pip install "awmkit[plot]".') from error

from ._checks import kind
from .analysis import ActionJacobian, Fidelity, GradientGrowth, HopSpectrum, Landscape, Lyapunov, Report, TrueGradient
from .analysis._report import quartiles

COLOURS = ("black", "C0", "C2", "C1", "C3", "C4", "C5", "C6", "C8", "C9")


def growth(results: GradientGrowth | Mapping[str, GradientGrowth], *, axes: Axes | None = None) -> Axes:
    """Gradient norm against the horizon: medians over starts, quartiles shaded, the law in the legend."""
    axes = _axes(axes)
    of = "state"
    for colour, (name, result) in _coloured(results, GradientGrowth):
        of = result.of
        low, middle, high = quartiles(result.norms, axis=1)
        axes.plot(result.horizons, middle, "o-", ms=3, color=colour, label=f"{name}  {result}".strip())
        axes.fill_between(result.horizons, low, high, color=colour, alpha=0.12, lw=0)
    label = "|ds$_H$/da$_0$|" if of == "state" else "|dJ$_H$/da|"
    axes.set(xlabel="horizon H, steps", ylabel=f"{label}; median and quartiles")
    axes.legend(fontsize=7)
    return _logarithmic(axes)


def jacobian(results: ActionJacobian | Mapping[str, ActionJacobian], *, axes: Axes | None = None) -> Axes:
    """|ds_t/da_k| against the lag t - k: the root mean square over all pairs that far apart."""
    axes = _axes(axes)
    for colour, (name, result) in _coloured(results, ActionJacobian):
        by_lag = np.asarray(result.by_lag)
        axes.plot(np.arange(1, by_lag.size + 1), by_lag, color=colour, label=name)
    axes.set(xlabel="lag t - k, steps", ylabel="|ds$_t$/da$_k$|, root mean square")
    return _legend(_logarithmic(axes), results)


def hops(results: HopSpectrum | Mapping[str, HopSpectrum], *, axes: Axes | None = None) -> Axes:
    """The share of the derivative's norm in paths of each number of hops, all pairs together."""
    weights = {}
    for _, (name, result) in _coloured(results, HopSpectrum):
        norms = np.sqrt(np.sum(np.asarray(result.norms) ** 2, axis=tuple(range(1, result.norms.ndim))))
        weights[name] = norms / max(norms.sum(), 1e-300)
    return _weights(weights, axes)


def exponents(results: Lyapunov | Mapping[str, Lyapunov], *, axes: Axes | None = None) -> Axes:
    """Running estimates of Lyapunov exponents against the steps taken, which show how far they have converged.

    Of results batched over starts, the median of the largest exponent and its quartiles.
    """
    axes = _axes(axes)
    for colour, (name, result) in _coloured(results, Lyapunov):
        running = np.asarray(result.running)
        steps = np.arange(1, running.shape[-2] + 1)
        if running.ndim == 2:
            axes.plot(steps, running, color=colour)
            axes.plot([], [], color=colour, label=name)
        else:
            low, middle, high = quartiles(running[..., 0])
            axes.plot(steps, middle, color=colour, label=name)
            axes.fill_between(steps, low, high, color=colour, alpha=0.12, lw=0)
    axes.axhline(0, color="grey", ls=":", lw=1)
    axes.set(xlabel="steps counted", ylabel="Lyapunov exponent so far, per step")
    return _legend(axes, results)


def landscape(results: Landscape | Mapping[str, Landscape], *, axes: Axes | None = None) -> Axes:
    """The return along a line, or on a square (of one dynamics) as an image with contours."""
    axes = _axes(axes)
    for colour, (name, result) in _coloured(results, Landscape):
        x, values = np.asarray(result.coordinates), np.asarray(result.values)
        if values.ndim == 1:
            axes.plot(x, values, color=colour, lw=1, label=name)
            axes.set(xlabel="along the direction", ylabel="return")
        else:
            image = axes.pcolormesh(x, x, values.T, shading="nearest")
            axes.figure.colorbar(image, ax=axes, label="return")
            axes.set(xlabel="along the first direction", ylabel="along the second direction", title=name)
    return _legend(axes, results)


def fidelity(
    results: Fidelity | Mapping[str, Fidelity], *, truth: TrueGradient | None = None, axes: Axes | None = None
) -> Axes:
    """Cosine with the smoothed true gradient start by start, its mean at each horizon; `truth` adds what a perfect one has."""
    axes = _axes(axes)
    number = len(results) if isinstance(results, Mapping) else 1
    for i, (colour, (name, result)) in enumerate(_coloured(results, Fidelity)):
        cosine = result.smoothed.cosine_of_each
        x = np.arange(result.horizons.size) + 0.6 * ((i + 0.5) / number - 0.5)
        below, above = np.maximum(cosine.value - cosine.low, 0), np.maximum(cosine.high - cosine.value, 0)
        axes.errorbar(x, cosine.value, yerr=[below, above], fmt="o", ms=4, color=colour, capsize=2, label=name)
        axes.set_xticks(range(result.horizons.size), [f"H = {h}" for h in result.horizons])
    if truth is not None:
        for i, ceiling in enumerate(truth.ceiling_of_each):
            axes.plot([i - 0.35, i + 0.35], [ceiling, ceiling], color="grey", ls="--", lw=1)
    axes.axhline(0, color="grey", ls=":", lw=1)
    axes.set(ylabel="cosine with the smoothed true gradient", ylim=(-1.05, 1.05))
    return _legend(axes, results)


def report(result: Report) -> Figure:
    """Six panels: both growths, hops, exponents, a landscape, fidelity.

    ```python
    awmkit.plot.report(result)  # at the end of a notebook's cell
    awmkit.plot.report(result).savefig("report.png")
    ```

    **Returns:** the figure.
    """
    _coloured(result, Report)
    figure, panels = plt.subplots(2, 3, figsize=(15, 8.5), layout="constrained")
    of = lambda field: {name: getattr(entry, field) for name, entry in result.entries.items()}
    growth(of("state_growth"), axes=panels[0, 0]).set_title("1. What is left of the first action")
    growth(of("return_growth"), axes=panels[0, 1]).set_title("2. The gradient of the return")
    weights = {name: np.median(hops.weights, axis=0) for name, hops in of("hops").items()}
    _weights(weights, panels[0, 2]).set_title("3. Hops of the gradient's paths")
    exponents(of("exponents"), axes=panels[1, 0]).set_title("4. Largest Lyapunov exponent")
    cut = landscape(of("landscape"), axes=panels[1, 1])
    cut.set(title="5. The return along a random direction", ylim=_focus([e.landscape.values for e in result.entries.values()]))
    if result.truth is None:
        panels[1, 2].set_axis_off()
    else:
        last = fidelity(of("fidelity"), truth=result.truth, axes=panels[1, 2])
        last.set_title("6. Direction (dashed: the best that its noise allows)")
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
        if panel in panels[1] and (legend := panel.get_legend()) is not None:  # The upper row says it.
            legend.remove()
    if "inline" in plt.get_backend():  # A notebook shows what a cell returns, and what was left open once more.
        plt.close(figure)
    return figure


def _weights(weights: Mapping[str, np.ndarray], axes: Axes | None) -> Axes:
    axes = _axes(axes)
    for colour, (name, shares) in _coloured(weights):
        axes.plot(np.arange(shares.size), shares, "o-", ms=2.5, lw=1, color=colour, label=name)
    axes.set(xscale="symlog", ylim=(1e-4, 1.5), xlabel="hops: times a path was fed back", ylabel="share of the norm")
    return _legend(_logarithmic(axes), weights)


def _focus(curves: list[Any]) -> tuple[float, float]:
    """Limits that show every curve but those which run away: the first, and the bulk of most."""
    finite = [c[np.isfinite(c)] for c in (np.asarray(c, float) for c in curves)]
    finite = [c for c in finite if c.size] or [np.zeros(1)]
    low, high = np.median([np.quantile(c, [0.1, 0.9]) for c in finite], axis=0)
    low, high = min(low, finite[0].min()), max(high, finite[0].max())
    margin = 0.3 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _logarithmic(axes: Axes) -> Axes:
    """A logarithmic axis of norms, unless every norm has vanished or run away."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    if (np.isfinite(drawn) & (drawn > 0)).any():
        axes.set_yscale("log")
    return axes


def _axes(axes: Axes | None) -> Axes:
    return plt.subplots(layout="constrained")[1] if axes is None else axes


def _coloured(results: Any, needed: type = object):
    named = results if isinstance(results, Mapping) else {"": results}
    if wrong := [result for result in named.values() if not isinstance(result, needed)]:
        raise ValueError(f"There is {kind(wrong[0])} to draw; pass a {needed.__name__}, or a dict of several by name.")
    return [(COLOURS[i % len(COLOURS)], item) for i, item in enumerate(named.items())]


def _legend(axes: Axes, results: Any) -> Axes:
    if isinstance(results, Mapping) and axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7)
    return axes

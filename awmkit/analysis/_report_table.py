"""The text of a `Report`: tables with one row per dynamics."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tabulate import tabulate

from ._fidelity import Fidelity
from ._interval import Interval


def report_table(report: Any) -> str:
    """All tables of a report, each under its title and followed by what its columns mean."""
    return "\n\n".join([_gradient_table(report), *_fidelity_tables(report)])


def _gradient_table(report: Any) -> str:
    heads = ["|ds_H/da_0|", "|dJ_H/da|", "mean hops", "beyond 10", "exponent", "variation", "maxima", "Lipschitz"]
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
    notes = f"""\
Medians over {report.setting["starts"]} starts:
  |ds_H/da_0|  growth of the first action's effect on the state after H steps, up to H = {report.setting["horizon"]}
  |dJ_H/da|    growth of the gradient of the return of the first H steps
  mean hops    how often the gradient's paths are fed back through a state
  beyond 10    share of the gradient in paths with more than 10 hops
  exponent     largest Lyapunov exponent per step; above 0 the dynamics is chaotic
The return along a random direction:
  variation    its rises and falls divided by its range; 1 if monotone
  maxima       number of local maxima
  Lipschitz    of its gradient: the largest second derivative"""
    return f"{_aligned(heads, rows)}\n\n{notes}"


def _fidelity_tables(report: Any) -> list[str]:
    if report.truth is None:
        return []
    heads = [f"H = {h}" for h in report.truth.horizons]
    judged = {name: entry.fidelity for name, entry in report.entries.items() if entry.fidelity is not None}

    def part(title: str, figure: Callable[[Fidelity], Interval], spec: str = ".2f", ceiling: np.ndarray | None = None) -> str:
        rows = {name: figure(fidelity).format(spec) for name, fidelity in judged.items()}
        if ceiling is not None:
            rows["(perfect gradient)"] = [f"{c:.2f}" for c in ceiling]
        return f"{title}\n{_aligned(heads, rows)}"

    smoothed = f"the smoothed true gradient (sigma = {report.setting['sigma']:g})"
    return [
        part(f"Cosine with {smoothed}, 95 % intervals", lambda f: f.smoothed.cosine, ceiling=report.truth.ceiling),
        part(
            f"Cosine with {smoothed}, mean over starts",
            lambda f: f.smoothed.cosine_of_each,
            ceiling=report.truth.ceiling_of_each,
        ),
        part("Cosine with the exact true gradient", lambda f: f.exact.cosine),
        part(f"Norm divided by the norm of {smoothed}", lambda f: f.smoothed.norm_ratio, ".2g"),
        part("Signal-to-noise ratio over starts, |mean|^2 / variance (ESNR)", lambda f: f.esnr, ".2g"),
    ]


def _aligned(heads: list[str], rows: Mapping[str, list[str]]) -> str:
    table = [["", *heads], *([name, *cells] for name, cells in rows.items())]
    return tabulate(table, tablefmt="plain", disable_numparse=True, colalign=("left", *["right"] * len(heads)))

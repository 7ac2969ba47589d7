"""Why does the gradient through my simulator explode? A report on the driven double pendulum.

    python examples/gradient_report.py            about 30 seconds on two cores
    python examples/gradient_report.py --quick    about 10 seconds: 20 steps

The report measures how fast the gradient grows with the horizon, through how many steps its paths pass, the largest Lyapunov
exponent, how rough the return is, and whether the gradient still points uphill. To ask about your own simulator, replace
`DrivenDoublePendulum` by your class. examples/guides/exploding_gradients.md explains every line of the table.

Expect at 100 steps: |ds_H/da_0| grows as exp(0.032 H), close to the Lyapunov exponent of 0.024 per step; 93 % of the gradient
passes through more than 10 steps; and the cosine with the smoothed true gradient falls from 0.74, the best that the noise of the
reference allows, to 0.39.
"""

import argparse
from pathlib import Path

import jax

from awmkit import plot
from awmkit.analysis import report
from awmkit.tasks import DrivenDoublePendulum


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 steps instead of 100, and fewer samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for the figure and the values")
    options = parser.parse_args()
    horizon, starts, pairs = (20, 8, 64) if options.quick else (100, 16, 256)

    task = DrivenDoublePendulum(horizon, spread=2.0)  # starts within 2 rad and 2 rad/s of rest: large swings
    start_key, action_key, report_key = jax.random.split(jax.random.key(options.seed), 3)
    states = jax.vmap(task.reset)(jax.random.split(start_key, starts))
    actions = jax.random.uniform(action_key, (starts, horizon, task.action_size), minval=-1)
    result = report({"simulator": task}, states, actions, reward=task.reward, truth=task, pairs=pairs, key=report_key)
    print(result)

    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gradient_report.json").write_text(result.json())
    plot.report(result).savefig(options.out / "gradient_report.png")
    print(f"\nThe figure and the raw values are in {options.out}")


if __name__ == "__main__":
    main()

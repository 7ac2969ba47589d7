"""Is the SAC that the paper's experiments compare with a strong one? Stable-Baselines3's SAC at the same tasks and steps.

    pip install stable-baselines3                     it brings PyTorch
    python examples/paper/sac_from_outside.py         two tasks, two seeds, 5,000 steps: 8 minutes on one core
    python examples/paper/sac_from_outside.py --quick       one seed, 300 steps
    python examples/paper/sac_from_outside.py --from-raw    the table again, from the published values

Stable-Baselines3's SAC has its defaults, and normalises observations and rewards (`VecNormalize`). Its policy's mode is evaluated
in the task at the end. awmkit's SAC is that of myriad.py, whose rows are read. Returns are those of episodes of 100 steps.

Expected: awmkit's SAC is the stronger one: medians of -20.70 and -85.28, where Stable-Baselines3's ends near -24.8 and -87.2. The
optima are -20.52 and -85.19.
"""

from functools import partial
from typing import Any

import numpy as np
from study import arguments, markdown, read, RESULTS, Row, Study

from awmkit.gym import TaskEnv
from awmkit.tasks import CancerTreatment, Discretised, MouldFungicide

TASKS = {"CancerTreatment": CancerTreatment, "MouldFungicide": MouldFungicide}


def run(name: str, steps: int, seed: int) -> dict[str, Any]:
    """Train and evaluate one seed."""
    import torch  # pyright: ignore[reportMissingImports]
    from stable_baselines3 import SAC  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.evaluation import evaluate_policy  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    env = VecNormalize(DummyVecEnv([lambda: TaskEnv(Discretised(TASKS[name](), 100))]))
    model = SAC("MlpPolicy", env, seed=seed).learn(steps)
    env.training = env.norm_reward = False
    returns, _ = evaluate_policy(model, env, n_eval_episodes=1, return_episode_rewards=True, warn=False)
    return {"return": float(returns[0])}


def table(rows: dict[Any, Row]) -> str:
    published, lines = read(RESULTS / "myriad.jsonl.gz"), []
    for name in TASKS:
        ours = published[f"{name}-SAC-N100-E50"]["returns"]
        theirs = [row["return"] for (task, _), row in rows.items() if task == name]
        if theirs:
            each = ", ".join(f"{x:.2f}" for x in theirs)
            lines.append([name, f"{np.median(ours):.2f}", f"{min(ours):.2f} to {max(ours):.2f}", each])
    return markdown(["return after 5,000 steps", "awmkit, median", "range of 5 seeds", "Stable-Baselines3, each seed"], lines)


def main() -> None:
    options = arguments(__doc__, "sac_from_outside", seeds=2).parse_args()
    steps, seeds, tasks = (300, 1, ["CancerTreatment"]) if options.quick else (5000, options.seeds, list(TASKS))
    cells = {}
    for name in tasks:
        for seed in range(seeds):
            cells[name, seed] = (
                f"{name}, seed {seed}",
                {"task": name, "steps": steps, "seed": seed},
                partial(run, name, steps, seed),
            )
    study = Study(options, "sac_from_outside")
    study.write(table(study.collect(cells)))


if __name__ == "__main__":
    main()

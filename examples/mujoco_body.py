"""How do I use a MuJoCo model? A hinge in MJCF as a task: plan by its gradient, and by the gradient of a learned model.

    python examples/mujoco_body.py            about 40 seconds on two cores
    python examples/mujoco_body.py --quick    about 30 seconds: fewer episodes and updates

`MJXTask` turns an MJCF text or file and a reward into a task with gradients. Here a rod must swing up; its motor is too weak
to lift it directly. The script improves the same 60 actions by the gradient through MuJoCo and by the gradient through an
AWM fitted to random episodes, and scores both plans in MuJoCo.

Expect: the two gradients agree at the start (cosine 0.998). The plan by MuJoCo's gradient swings up and holds the rod upright
(return 0.125); the plan by the AWM's swings up as fast but loses the balance at the end because of model error (0.024).
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from awmkit import AWM, fit, GRU, plot, unroll, unroll_grad
from awmkit.mjx import MJXTask

MJCF = """<mujoco>
  <option timestep="0.01"/>
  <worldbody><body>
    <joint name="hinge" type="hinge" axis="0 1 0" damping="0.1"/>
    <geom type="capsule" fromto="0 0 0 0 0 -1" size="0.05" mass="1" contype="0" conaffinity="0"/>
  </body></worldbody>
  <actuator><motor joint="hinge" gear="3" ctrlrange="-1 1"/></actuator>
</mujoco>"""
HORIZON = 60  # steps of 0.05 s


def reward(state, action, t):
    """Height of the tip, from -1 to 1, minus the cost of the action; the mean over the episode. State: (angle, speed)."""
    return (-jnp.cos(state[0]) - 0.01 * action[0] ** 2) / HORIZON


def improve(dynamics, start, updates):
    """Adam on 60 actions, from small ones; returns the actions and the first gradient."""
    optimiser = optax.adam(optax.cosine_decay_schedule(0.1, updates))

    @jax.jit
    def update(actions, memory):
        _, grads = unroll_grad(dynamics, actions, start, HORIZON, reward=reward)
        steps, memory = optimiser.update(-grads, memory)
        return jnp.clip(actions + steps, -1, 1), memory, grads

    actions = 0.1 * jnp.ones((HORIZON, 1))
    memory = optimiser.init(actions)
    first = update(actions, memory)[2]
    for _ in range(updates):
        actions, memory, _ = update(actions, memory)
    return actions, np.ravel(first).astype(float)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer episodes and updates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for the figure")
    options = parser.parse_args()
    episodes, fits, updates = (256, 200, 50) if options.quick else (1024, 1000, 200)

    task = MJXTask(MJCF, reward, horizon=HORIZON, frame_skip=5)
    start = jnp.zeros(2)
    keys = jax.random.split(jax.random.key(options.seed), 4)
    draws = jax.random.uniform(keys[0], (episodes, HORIZON // 10, 1), minval=-1).repeat(10, axis=1)  # held for 0.5 s
    data = jax.jit(jax.vmap(lambda actions: unroll(task, actions, start, HORIZON)))(draws)
    model = AWM(2, 1, GRU(64, key=keys[1]), key=keys[2]).normalised(data)
    model = fit(model, data, key=keys[3], updates=fits, optimiser=optax.adam(optax.cosine_decay_schedule(3e-3, fits))).model

    plt.rcParams.update(plot.STYLE)
    figure, axes = plt.subplots(figsize=(5.5, 3.4))
    gradients = {}
    colours = plot.colours(["MuJoCo", "AWM"])
    for name, dynamics in {"MuJoCo": task, "AWM": model}.items():
        actions, gradients[name] = improve(dynamics, start, updates)
        episode = unroll(task, actions, start, HORIZON, reward=reward)
        print(f"plan by the gradient through {name}: true return {episode.returns():.3f}")
        height = -np.cos(episode.states[:, 0])
        axes.plot(task.dt * np.arange(HORIZON + 1), height, color=colours[name], label=f"gradient through {name}")
    cosine = np.dot(*gradients.values()) / np.prod([np.linalg.norm(g) for g in gradients.values()])
    print(f"cosine of the two gradients at the start: {cosine:.3f}")
    axes.set(xlabel="time, s", ylabel="height of the tip", title="Swinging up in MuJoCo", ylim=(-1.1, 1.1))
    axes.legend()
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "mujoco_body.png")
    print(f"The figure is {options.out / 'mujoco_body.png'}")


if __name__ == "__main__":
    main()

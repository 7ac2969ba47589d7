"""How do I find a simulator's parameters from data? Drag and stiffness of a spring from noisy episodes.

    python examples/identify_parameters.py            about 10 seconds on two cores
    python examples/identify_parameters.py --quick    the same with fewer updates

A simulator is an Equinox module, so its parameters can be differentiated like the weights of a network. The loss is the
prediction error over whole episodes: unroll the simulator from each first state under the recorded actions, and compare with
the recorded states. Adam starts from a wrong guess.

Expect: drag 0.30 and stiffness 2.00 recovered to within 0.01.
"""

import argparse
from pathlib import Path

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax import Array

from awmkit import AbstractDynamics, plot, unroll
from awmkit.tasks import ode_step

HORIZON, NOISE = 50, 0.05


class Spring(AbstractDynamics):
    """A mass of 1 kg on a spring with drag proportional to v|v|; state (position, speed), the action is a force in N."""

    drag: Array
    stiffness: Array
    state_size: int = eqx.field(static=True, default=2)
    action_size: int = eqx.field(static=True, default=1)

    def step(self, carry, state, action, t, *, key=None):
        def field(t, state, force):
            position, speed = state
            return jnp.stack([speed, force[0] - self.stiffness * position - self.drag * speed * jnp.abs(speed)])

        return carry, ode_step(field, state, action, solver=diffrax.Heun(), dt=0.1)


def predict(spring, starts, actions):
    """States (N, H+1, 2) of N episodes."""
    return jax.vmap(lambda start, plan: unroll(spring, plan, start, HORIZON).states)(starts, actions)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="150 updates instead of 400")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for the figure")
    options = parser.parse_args()
    updates = 150 if options.quick else 400

    start_key, action_key, noise_key = jax.random.split(jax.random.key(options.seed), 3)
    starts = jax.random.normal(start_key, (16, 2))
    actions = jax.random.uniform(action_key, (16, HORIZON, 1), minval=-1)
    truth = Spring(drag=jnp.array(0.3), stiffness=jnp.array(2.0))
    states = predict(truth, starts, actions)
    measured = states + NOISE * jax.random.normal(noise_key, states.shape)

    optimiser = optax.adam(optax.cosine_decay_schedule(0.05, updates))

    @eqx.filter_jit
    def update(spring, memory):
        loss = lambda spring: jnp.mean((predict(spring, starts, actions) - measured) ** 2)
        value, grads = eqx.filter_value_and_grad(loss)(spring)
        steps, memory = optimiser.update(grads, memory)
        return eqx.apply_updates(spring, steps), memory, value

    spring = Spring(drag=jnp.array(1.0), stiffness=jnp.array(1.0))
    memory, history = optimiser.init(eqx.filter(spring, eqx.is_array)), []
    for i in range(updates):
        history.append([spring.drag, spring.stiffness])
        spring, memory, loss = update(spring, memory)
        if (i + 1) % 50 == 0:
            print(f"update {i + 1}: error {loss:.5f}, drag {spring.drag:.3f}, stiffness {spring.stiffness:.3f}", flush=True)
    print(f"recovered drag {spring.drag:.3f} (0.3) and stiffness {spring.stiffness:.3f} (2.0); noise variance {NOISE**2:.5f}")

    plt.rcParams.update(plot.STYLE)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
    for name, values, true in zip(("drag", "stiffness"), np.array(history).T, (0.3, 2.0), strict=True):
        (line,) = left.plot(values, label=name)
        left.axhline(true, color=line.get_color(), ls=":", lw=1)
    left.set(xlabel="update", ylabel="estimate (dotted: true)", title="Parameters")
    left.legend()
    time = 0.1 * np.arange(HORIZON + 1)
    right.plot(time, measured[0, :, 0], ".", color="grey", label="measured")
    right.plot(time, predict(spring, starts[:1], actions[:1])[0, :, 0], label="identified")
    right.set(xlabel="time, s", ylabel="position, m", title="One episode")
    right.legend()
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "identify_parameters.png")
    print(f"The figure is {options.out / 'identify_parameters.png'}")


if __name__ == "__main__":
    main()

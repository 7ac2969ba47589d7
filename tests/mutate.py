"""Break the package on purpose, one place at a time, and see that the tests notice: `python tests/mutate.py`.

Apart from the tests because it judges them: a mutant that survives is a hole in the suite, and a sharper test closes it.
Everything runs in copies; one of them is whole and must pass, or the failures of the others would prove nothing.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import as_completed, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
VERDICTS = ["survived", "caught"]  # By what pytest exits with; any other number means that it could not run the test.


class Mutant(NamedTuple):
    """What it breaks, where and how, and the test that must fail."""

    breaks: str
    file: str
    old: str
    new: str
    test: str

    def broken(self, package: Path) -> str:
        """The text of its file with `new` for `old`."""
        text = (package / self.file).read_text()
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.file} has {self.old!r} {count} times, not once; renew the mutant {self.breaks!r}.")
        return text.replace(self.old, self.new)


LQ = "core/test_unroll.py::test_linear_quadratic_gradient_is_its_closed_form"
AGREE = "methods/test_methods.py::test_sequential_and_parallel_agree_in_values_and_gradients"
DENSITY = "core/test_policies.py::test_the_gaussian_density_integrates_to_one_and_its_entropy_is_minus_its_mean_log"

MUTANTS = (
    Mutant(
        "the policy's edge is not cut",
        "_paths.py",
        "return scale_gradient(states, self.state_to_policy)",
        "return states",
        "core/test_unroll.py::test_the_bpo_gradient_is_the_formula_of_the_paper",
    ),
    Mutant(
        "a gain acts once, however often a path crosses",
        "_paths.py",
        "return _scaled(x, gain), gain * dx",
        "return x, gain * dx",
        "core/test_paths.py::test_a_gain_changes_no_value_and_scales_every_derivative",
    ),
    Mutant(
        "the steps of an unroll are counted from 1",
        "methods/_method.py",
        "return step, (t + jnp.arange(horizon), planned,",
        "return step, (t + 1 + jnp.arange(horizon), planned,",
        "core/test_gradients.py::test_the_gradient_equals_finite_differences_for_any_gains[Markov-actions]",
    ),
    Mutant(
        "in the parallel pass a policy acts on the state after",
        "methods/_method.py",
        "paths.to_policy(jnp.concatenate([state[None], states[:-1]]))",
        "paths.to_policy(states)",
        AGREE,
    ),
    Mutant(
        "each block of the parallel pass begins at step 0",
        "methods/_method.py",
        "(states, t + jnp.arange(states.shape[0]), keys)",
        "(states, jnp.arange(states.shape[0]), keys)",
        AGREE,
    ),
    Mutant(
        "the adjoint stops after its first sweep",
        "methods/_parallel.py",
        "lambda x: g + (x - residual(x))",
        "lambda x: g",
        AGREE,
    ),
    Mutant(
        "every step draws the same noise",
        "_dynamics.py",
        "jax.random.split(key, horizon)",
        "jnp.broadcast_to(key, (horizon,))",
        "core/test_unroll.py::test_each_step_has_noise_of_its_own_and_a_key_repeats_it",
    ),
    Mutant(
        "the discount is forgotten",
        "_trajectory.py",
        "** steps * self.rewards",
        "** (0 * steps) * self.rewards",
        LQ,
    ),
    Mutant(
        "a reward reads the state after",
        "_reward.py",
        "(states[:-1], actions,",
        "(states[1:], actions,",
        LQ,
    ),
    Mutant(
        "a reward is detached from its own action",
        "_reward.py",
        "(states[:-1], actions,",
        "(states[:-1], jax.lax.stop_gradient(actions),",
        LQ,
    ),
    Mutant(
        "a token sees the one after it",
        "models/backbones/_attention.py",
        "positions[start:end, None] >= positions[:end]",
        "positions[start:end, None] + 1 >= positions[:end]",
        "core/test_unroll.py::test_states_do_not_depend_on_later_actions_and_parallel_runs_match[AWM transformer, rotary time]",
    ),
    Mutant(
        "keys are cached one place off",
        "models/backbones/_transformer.py",
        "(cache[0], k[0], position, 0)",
        "(cache[0], k[0], position - 1, 0)",
        "models/test_models.py::test_open_loop_predictions_and_gradients_are_those_of_cached_steps[AWM transformer, rotary time]",
    ),
    Mutant(
        "the gradient is summed over microbatches, not averaged",
        "learning/_minibatch.py",
        "lambda x: x / groups",
        "lambda x: x",
        "models/test_models.py::test_microbatches_give_the_loss_and_gradient_of_the_whole_batch",
    ),
    Mutant(
        "each chunk of a linear state space starts from its first memory",
        "models/backbones/_state_space.py",
        "lambda x, chunk: self._append_chunk(x, chunk)",
        "lambda x, chunk: (x, self._append_chunk(x, chunk)[1])",
        "models/test_models.py::test_open_loop_predictions_and_gradients_are_those_of_cached_steps[AWM linear state space]",
    ),
    Mutant(
        "heads that run one at a time are in reverse order",
        "models/backbones/_attention.py",
        "mixed = lax.map(lambda x: checkpointed(*x), heads)",
        "mixed = lax.map(lambda x: checkpointed(*x), heads)[::-1]",
        "models/test_transformer.py::test_heads_one_at_a_time_give_the_values_and_gradients_of_all_heads_at_once",
    ),
    Mutant(
        "matrix products are not rounded",
        "models/backbones/_attention.py",
        "jnp.matmul(x.astype(dtype), y.astype(dtype),",
        "jnp.matmul(x, y,",
        "models/test_transformer.py::test_matmul_dtype_rounds_matrix_products_and_nothing_else",
    ),
    Mutant(
        "a history world model is trained on the states after",
        "models/_hwm.py",
        "self.input_norm.at(steps)(states[:-1])",
        "self.input_norm.at(steps)(states[1:])",
        "models/test_models.py::test_teacher_forced_predictions_are_steps_from_the_true_states[HWM GRU]",
    ),
    Mutant(
        "a gradient moves statistics",
        "_normaliser.py",
        "return (x - lax.stop_gradient(self.shift)) / lax.stop_gradient(self.scale)",
        "return (x - self.shift) / self.scale",
        "models/test_models.py::test_normalisers_are_not_trainable_and_have_no_gradient",
    ),
    Mutant(
        "predictions lose their unit",
        "_normaliser.py",
        "return y * lax.stop_gradient(self.scale) + lax",
        "return y + lax",
        "models/test_models.py::test_a_normalised_model_does_not_depend_on_the_units_of_the_data",
    ),
    Mutant(
        "a density forgets which way tanh stretches",
        "_policies.py",
        "jnp.sum(normal - 2 * (",
        "jnp.sum(normal + 2 * (",
        DENSITY,
    ),
    Mutant(
        "entropy has the wrong sign",
        "_policies.py",
        "return -self._log_prob(",
        "return self._log_prob(",
        DENSITY,
    ),
    Mutant(
        "a sampled episode has the rewards of another one",
        "learning/_replay.py",
        "lambda x: x[slots], self.episodes",
        "lambda x: x[slots if x.ndim > 2 else slots[::-1]], self.episodes",
        "learning/test_replay.py::test_a_sample_has_whole_episodes_from_the_newest_that_fit",
    ),
    Mutant(
        "the oldest episodes count as the newest",
        "learning/_replay.py",
        "slots = (self.added - 1 - ages) % self.capacity",
        "slots = (self.added + ages) % self.capacity",
        "learning/test_replay.py::test_an_episode_is_drawn_less_often_than_the_next_newer_one_by_the_factor_recency",
    ),
    Mutant(
        "the clipped norm is reported as the norm before clipping",
        "learning/ascents/_policy_step.py",
        "norm, norm * scale)",
        "norm, norm)",
        "learning/test_ascents.py::test_the_gradient_is_clipped_by_its_norm_and_both_norms_are_reported",
    ),
    Mutant(
        "the critic is asked for a value after the last step",
        "learning/ascents/_short_horizon.py",
        "jnp.where(end < horizon, state.target_critic(imagined.last_state, end), 0.0)",
        "state.target_critic(imagined.last_state, end)",
        "learning/test_ascents.py::test_the_short_horizon_gradient_is_that_of_its_rewards_and_of_the_target_critics_value_at_the_end",
    ),
    Mutant(
        "the entropy weight moves the entropy away from its target",
        "learning/ascents/_policy_step.py",
        "log_weight + ascent.entropy.rate",
        "log_weight - ascent.entropy.rate",
        "learning/test_ascents.py::test_the_entropy_per_entry_of_an_action_reaches_its_target_whatever_the_discount",
    ),
    Mutant(
        "a checkpoint is written into the old file",
        "learning/_checkpoint.py",
        "os.replace(part, path)",
        "path.write_bytes(part.read_bytes())",
        "learning/test_checkpoint.py::test_a_save_replaces_the_file_and_never_writes_into_it",
    ),
    Mutant(
        "random keys are loaded as integers",
        "learning/_checkpoint.py",
        "if _is_key(x) else new,",
        "if False else new,",
        "learning/test_checkpoint.py::test_load_returns_exactly_the_tree_that_was_saved",
    ),
    Mutant(
        "hops are not counted",
        "analysis/_hops.py",
        "return jnp.concatenate([none, parts[:-2], parts[-2:-1] + parts[-1:]])",
        "return parts",
        "analysis/test_hops.py::test_the_spectrum_of_a_users_own_dynamics_is_binomial",
    ),
    Mutant(
        "a Lyapunov exponent is a factor, not its logarithm",
        "analysis/_lyapunov.py",
        "jnp.log(jnp.abs(jnp.diag(r)))",
        "jnp.abs(jnp.diag(r))",
        "analysis/test_lyapunov.py::test_exponents_of_a_spiral_are_the_logarithm_of_its_rate",
    ),
    Mutant(
        "lags are one too many",
        "analysis/_jacobian.py",
        "jnp.where(t > k, t - k - 1, horizon)",
        "jnp.where(t > k, t - k, horizon)",
        "analysis/test_hops.py::test_norms_by_lag_are_powers_and_analyses_compose_with_vmap_and_grad",
    ),
    Mutant(
        "the gap is closed from the wrong end",
        "scores.py",
        "(np.asarray(returns, float) - known.best_constant) / gap",
        "(known.optimal - np.asarray(returns, float)) / gap",
        "test_scores.py::test_the_optimum_scores_1_and_the_best_constant_action_0",
    ),
)


class Run(NamedTuple):
    """What pytest exited with and printed, and how long it took."""

    status: int
    output: str
    seconds: float


def judge(mutant: Mutant | None, tests: list[str], folder: Path) -> Run:
    """Run `tests` in a copy of the repository that `mutant` has broken, up to the first that fails."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        home = Path(name)
        shutil.copy(ROOT / "pyproject.toml", home)
        for part in ("awmkit", "tests"):
            shutil.copytree(ROOT / part, home / part, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            (home / "awmkit" / mutant.file).write_text(mutant.broken(home / "awmkit"))
        # The copy goes before the package that is installed, and all copies share what is compiled.
        env = {**os.environ, "PYTHONPATH": name, "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
        options = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--hypothesis-profile=unshrunk"]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        done = subprocess.run(command, cwd=home / "tests", env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return Run(done.returncode, done.stdout, time.monotonic() - began)


def judge_all(mutants: list[Mutant], jobs: int) -> list[tuple[str, Mutant, Run]]:
    """The verdict on each, with a line as soon as it is there; the whole package comes first and must pass."""
    verdicts = []
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(jobs) as pool:
        whole = pool.submit(judge, None, sorted({m.test for m in mutants}), Path(name))
        runs = {pool.submit(judge, m, [m.test], Path(name)): m for m in mutants}
        for count, done in enumerate(as_completed(runs), 1):
            mutant, run = runs[done], done.result()
            verdict = VERDICTS[run.status] if run.status < len(VERDICTS) else "not run"
            verdicts.append((verdict, mutant, run))
            print(f"[{count:2}/{len(mutants)}] {run.seconds:4.0f} s  {verdict:8}  {mutant.breaks}", flush=True)
        if whole.result().status:
            sys.exit(f"{whole.result().output}\nThe whole package fails these tests, so that no mutant proves anything.")
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mutants with one of these words in what they break or in their file")
    parser.add_argument("--jobs", type=int, default=2, help="how many run at a time (2)")
    asked = parser.parse_args()
    chosen = [m for m in MUTANTS if not asked.words or re.search("|".join(asked.words), f"{m.breaks} {m.file}")]
    if not chosen:
        parser.error(f"no mutant has one of {asked.words}")
    for mutant in chosen:
        mutant.broken(ROOT / "awmkit")  # Raises where it is out of date, before anything takes time.
    began = time.monotonic()
    verdicts = judge_all(chosen, asked.jobs)
    print(f"\n| broken | in | by | verdict | seconds |\n| {' | '.join(['---'] * 5)} |")
    for verdict, mutant, run in sorted(verdicts, key=lambda row: chosen.index(row[1])):
        print(f"| {mutant.breaks} | {mutant.file} | {mutant.test.split('::')[0]} | {verdict} | {run.seconds:.0f} |")
    missed = [(mutant, run) for verdict, mutant, run in verdicts if verdict != "caught"]
    print(f"\n{len(chosen) - len(missed)} of {len(chosen)} mutants caught in {time.monotonic() - began:.0f} s.")
    for mutant, run in missed:
        print(f"\n{mutant.breaks}: `{mutant.new}` for `{mutant.old}`, {mutant.test}\n{run.output[-2000:]}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

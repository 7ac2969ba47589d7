"""Mutation test: break the package in one place at a time and check that a test fails. Run `python tests/mutate.py`.

A mutant that survives shows a gap in the tests. Each mutant runs in a copy of the package. The tests must also pass in an
unchanged copy, because otherwise their failures would show nothing about the mutants.
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
VERDICTS = ["survived", "caught"]  # By pytest's exit status; any other status means that it could not run the test.


class Mutant(NamedTuple):
    """One replacement in one file, and the test that must then fail.

    - `breaks`: what is wrong after the replacement.
    - `file`: path in `awmkit/`.
    - `old`, `new`: the text and its replacement; `old` must occur exactly once.
    - `test`: the test, relative to `tests/`.
    """

    breaks: str
    file: str
    old: str
    new: str
    test: str

    def broken(self, package: Path) -> str:
        """Return the text of the file after the replacement."""
        text = (package / self.file).read_text()
        if (count := text.count(self.old)) != 1:
            raise ValueError(
                f"{self.file} must contain {self.old!r} once, got {count} times; update the mutant {self.breaks!r}."
            )
        return text.replace(self.old, self.new)


LQ = "core/test_unroll.py::test_the_linear_quadratic_gradient_equals_its_closed_form"
AGREE = "methods/test_methods.py::test_sequential_and_parallel_agree_in_values_and_gradients"
DENSITY = "core/test_policies.py::test_the_gaussian_density_integrates_to_one_and_matches_its_entropy"

MUTANTS = (
    Mutant(
        "an ensemble draws another member at each step of an episode",
        "models/_ensemble.py",
        "jnp.where(drawn < 0, new, drawn) if",
        "new if",
        "models/test_ensemble.py::test_an_episode_is_that_of_one_member_and_every_member_is_drawn",
    ),
    Mutant(
        "pessimism reads the same member's return several times",
        "learning/ascents/_imagined.py",
        "eqx.filter_vmap(imagined)(members_of(dynamics))",
        "eqx.filter_vmap(lambda _: imagined(dynamics))(members_of(dynamics))",
        "models/test_ensemble.py::test_pessimism_weights_the_gradients_of_the_members",
    ),
    Mutant(
        "Newton sweeps on after rounded products hide the changes",
        "methods/_newton.py",
        "falls = (change <= cut(now.change) / 2) & (change > enough)",
        "falls = change <= cut(now.change) / 2",
        "methods/test_newton.py::test_sweeps_stop_where_rounded_products_hide_what_more_would_change",
    ),
    Mutant(
        "each fit compiles a program of its own",
        "learning/_fit.py",
        "optimiser = ADAM if",
        "optimiser = optax.adam(1e-3) if",
        "models/test_ensemble.py::test_models_fitted_as_one_program_equal_separate_fits[simulators]",
    ),
    Mutant(
        "a model within the tolerance is the only one that is fitted",
        "learning/_train_state.py",
        "jnp.where(error <= tolerance, 0, fits)",
        "jnp.where(error > tolerance, 0, fits)",
        "learning/test_train.py::test_an_iteration_makes_no_model_updates_if_its_new_episodes_are_predicted_to_within_the_tolerance",
    ),
    Mutant(
        "windows are drawn from episodes that are held out",
        "_windows.py",
        "_windows_at(episodes, among[index],",
        "_windows_at(episodes, index,",
        "learning/test_windows.py::test_every_step_is_equally_likely_to_begin_a_window_and_windows_are_parts_of_episodes",
    ),
    Mutant(
        "a simulator runs on after the end of an episode",
        "learning/_open_loop.py",
        "jnp.where(happens, new, old)",
        "new",
        "learning/test_identify.py::test_a_simulator_that_overflows_after_the_end_of_an_episode_is_fitted_to_what_happened",
    ),
    Mutant(
        "the likelihood of a Gaussian model is in units of the data",
        "models/_world_model.py",
        "jnp.log(predicted.deviation / unit)",
        "jnp.log(predicted.deviation)",
        "models/test_gaussian.py::test_the_loss_is_the_negative_log_likelihood_of_the_steps_that_happened_and_its_gradient_is_right",
    ),
    Mutant(
        "the interval of n samples is that of n ranks",
        "learning/_prediction_error.py",
        "low, high = below / (samples + 1), (below + equal + 1) / (samples + 1)",
        "low, high = below / samples, (below + equal + 1) / samples",
        "learning/test_calibration.py::test_a_uniform_rank_is_covered_with_the_level_for_any_number_of_samples[0.9]",
    ),
    Mutant(
        "short episodes count as much as long ones",
        "learning/_minibatch.py",
        "if batch.length is not None:",
        "if False:",
        "learning/test_windows.py::test_the_loss_of_a_batch_counts_every_step_once",
    ),
    Mutant(
        "windows begin equally often in every episode",
        "_windows.py",
        "ends = jnp.cumsum(length)",
        "ends = jnp.cumsum(jnp.full_like(length, 3))",
        "learning/test_windows.py::test_every_step_is_equally_likely_to_begin_a_window_and_windows_are_parts_of_episodes",
    ),
    Mutant(
        "a truncated episode counts as terminated",
        "models/_termination_model.py",
        " & episodes.terminated.astype(bool)[..., None]",
        "",
        "models/test_termination_model.py::test_the_last_step_of_a_terminated_episode_is_an_end_and_the_output_starts_at_the_log_odds_of"
        "_the_data",
    ),
    Mutant(
        "the dynamics goes on from states after the end",
        "_termination.py",
        "before = jnp.where(ended, self.start, state[:-1])",
        "before = state[:-1]",
        "core/test_termination.py::test_nothing_after_a_hard_end_reaches_values_or_gradients_not_even_nan[Sequential]",
    ),
    Mutant(
        "a dynamics remembers what happens after a hard end",
        "_termination.py",
        "now if first is None else jnp.where(ended, first, now)",
        "now",
        "core/test_termination.py::test_what_a_dynamics_remembers_after_a_hard_end_reaches_no_gradient",
    ),
    Mutant(
        "states that do not happen are rewarded with a weight of 0",
        "_termination.py",
        "return Trajectory(states, actions, score(*where(happens)), survival=survival)",
        "return Trajectory(states, actions, score(*inputs), survival=survival)",
        "core/test_termination.py::test_a_probability_that_reaches_1_ends_an_episode_like_a_hard_rule",
    ),
    Mutant(
        "an end with a probability is not drawn",
        "learning/_collect.py",
        "return _Drawn(rule, jax.random.fold_in(key, 2**31 - 1))",
        "return None",
        "learning/test_improve.py::test_an_end_with_a_probability_is_drawn_where_episodes_are_collected",
    ),
    Mutant(
        "a state that overflows reaches the gradients of shorter horizons",
        "analysis/_gradients.py",
        "termination=ends, key=key",
        "termination=None, key=key",
        "analysis/test_growth.py::test_states_that_overflow_later_change_no_gradient_before_and_one_diverging_start_no_median",
    ),
    Mutant(
        "a reward needs to survive its own step",
        "_termination.py",
        "jnp.concatenate([jnp.ones_like(goes_on[:1]), jnp.cumprod(goes_on[:-1])])",
        "jnp.cumprod(goes_on)",
        "core/test_termination.py::test_a_smooth_rule_weighs_each_reward_by_the_probability_of_having_survived",
    ),
    Mutant(
        "the policy's edge is not cut",
        "_paths.py",
        "return scale_gradient(states, self.state_to_policy)",
        "return states",
        "core/test_unroll.py::test_the_bpo_gradient_equals_the_formula_of_the_paper",
    ),
    Mutant(
        "the memory's edge is not scaled",
        "_paths.py",
        "scale_gradient(x, self.memory_to_policy) if eqx.is_inexact_array(x) else x",
        "x",
        "core/test_gradients.py::test_the_gradient_equals_finite_differences_for_any_gains[AWM GRU-GRU]",
    ),
    Mutant(
        "each block of sweeps begins without a memory",
        "methods/_parallel.py",
        "act_on(policy, memory, state, states, t, policy_keys)",
        "act_on(policy, memory_of(policy), state, states, t, policy_keys)",
        "core/test_memory.py::test_every_method_passes_a_memory_on_as_a_plain_loop_does[Picard in blocks-any gains]",
    ),
    Mutant(
        "a gain changes values",
        "_paths.py",
        "still + jnp.asarray(gain, x.dtype) * (x - still)",
        "jnp.asarray(gain, x.dtype) * x",
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
        "in the parallel pass a policy acts on the next state",
        "methods/_method.py",
        "paths.to_policy(jnp.concatenate([state[None], states[:-1]]))",
        "paths.to_policy(states)",
        AGREE,
    ),
    Mutant(
        "each block of the parallel pass starts at step 0",
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
        "a step settles in Newton although one before it changed",
        "methods/_newton.py",
        "jnp.where(jnp.all(quiet), window, jnp.argmin(quiet))",
        "jnp.max(jnp.where(quiet, index + 1, 0))",
        "core/test_gradients.py::test_the_gradient_equals_finite_differences_for_any_gains[one bounce-Gaussian, with time]",
    ),
    Mutant(
        "Newton settles as soon as changes are small and fall slowly",
        "methods/_newton.py",
        " & (distance(plain) <= of_step)",
        "",
        "methods/test_newton.py::test_sweeps_that_approach_the_solution_slowly_do_not_settle_early",
    ),
    Mutant(
        "every step draws the same noise",
        "_dynamics.py",
        "jax.random.split(key, horizon)",
        "jnp.broadcast_to(key, (horizon,))",
        "core/test_unroll.py::test_noise_differs_between_steps_and_a_key_reproduces_it",
    ),
    Mutant(
        "rewards are not discounted",
        "_trajectory.py",
        "jnp.asarray(discount, dtype) ** jnp.maximum(steps, 1)",
        "jnp.ones_like(steps)",
        LQ,
    ),
    Mutant(
        "NaN in the padding of survival reaches a return",
        "_trajectory.py",
        "happened(self.survival) * rewards",
        "self.survival * rewards",
        "core/test_trajectory.py::test_padding_changes_no_value_and_no_derivative_to_the_bit",
    ),
    Mutant(
        "an episode that is taken out of a batch keeps its padding",
        "_trajectory.py",
        "episode.states[: None if n is None else n + 1], episode.actions[:n]",
        "episode.states, episode.actions",
        "core/test_trajectory.py::test_episodes_are_read_in_every_form_that_a_user_has",
    ),
    Mutant(
        "a gradient that a cut edge makes zero is blamed on the reward",
        "_diagnose.py",
        "jnp.where(acted, 2, jnp.where(paid, 1, 0))",
        "jnp.where(acted, 2, 0)",
        "core/test_zero_gradients.py::test_check_says_why_a_gradient_is_exactly_zero_and_names_actions_out_of_range[a cut edge]",
    ),
    Mutant(
        "a reward reads the next state",
        "_termination.py",
        "(states[:-1], actions,",
        "(states[1:], actions,",
        LQ,
    ),
    Mutant(
        "a reward is detached from its own action",
        "_termination.py",
        "(states[:-1], actions,",
        "(states[:-1], jax.lax.stop_gradient(actions),",
        LQ,
    ),
    Mutant(
        "a token attends to the next token",
        "models/backbones/_rows.py",
        "positions[start:end, None] >= positions[None, :end]",
        "positions[start:end, None] + 1 >= positions[None, :end]",
        "core/test_unroll.py::test_states_do_not_depend_on_later_actions_and_parallel_states_agree[AWM transformer, rotary time]",
    ),
    Mutant(
        "in blocks of rows a token attends to the next token",
        "models/backbones/_blocked.py",
        "firsts[:, None] + jnp",
        "firsts[:, None] + 1 + jnp",
        "models/test_transformer.py::test_attention_by_blocks_of_rows_has_the_values_and_all_derivatives_of_attention_by_rows",
    ),
    Mutant(
        "sweeps do not stop at rounding errors",
        "methods/_fixed_point.py",
        "stalled & (now <= small)",
        "stalled & (now <= 0)",
        "methods/test_methods.py::test_sweeps_stop_when_only_rounding_errors_still_move",
    ),
    Mutant(
        "attention keys are cached one position too early",
        "models/backbones/_transformer.py",
        "(cache[0], k[0], position, 0)",
        "(cache[0], k[0], position - 1, 0)",
        "models/test_models.py::test_open_loop_predictions_and_gradients_are_those_of_cached_steps[AWM transformer, rotary time]",
    ),
    Mutant(
        "sequences that run in groups come back in another order",
        "_few_at_a_time.py",
        "jnp.moveaxis(x, 0, 1).reshape(count",
        "x.reshape(count",
        "core/test_few_at_a_time.py::test_groups_have_the_values_and_derivatives_of_the_whole_batch",
    ),
    Mutant(
        "the gradient is summed over microbatches, not averaged",
        "learning/_minibatch.py",
        "lambda x: x / groups",
        "lambda x: x",
        "models/test_models.py::test_microbatches_give_the_loss_and_gradient_of_the_whole_batch",
    ),
    Mutant(
        "a CPU differentiates a whole microbatch at a time",
        "learning/_minibatch.py",
        "cpu=in_groups(few)",
        "cpu=in_groups(bound)",
        "models/test_models.py::test_an_update_takes_each_group_as_a_whole_on_a_cpu_and_all_episodes_at_once_elsewhere[HWM]",
    ),
    Mutant(
        "each chunk of a linear state space starts from the initial memory",
        "models/backbones/_state_space.py",
        "lambda x, chunk: self._append_chunk(x, chunk)",
        "lambda x, chunk: (x, self._append_chunk(x, chunk)[1])",
        "models/test_models.py::test_open_loop_predictions_and_gradients_are_those_of_cached_steps[AWM linear state space]",
    ),
    Mutant(
        "heads that run one at a time are in reverse order",
        "models/backbones/_rows.py",
        "mixed = lax.map(lambda x: checkpointed(*x), heads)",
        "mixed = lax.map(lambda x: checkpointed(*x), heads)[::-1]",
        "models/test_transformer.py::test_heads_one_at_a_time_give_the_values_and_gradients_of_all_heads_at_once",
    ),
    Mutant(
        "matrix products are not rounded",
        "models/backbones/_products.py",
        "jnp.matmul(x.astype(dtype), y.astype(dtype),",
        "jnp.matmul(x, y,",
        "models/test_transformer.py::test_matmul_dtype_rounds_matrix_products_and_nothing_else",
    ),
    Mutant(
        "a history world model is trained with the next states as inputs",
        "models/_hwm.py",
        "self.input_norm.at(steps)(states[:-1])",
        "self.input_norm.at(steps)(states[1:])",
        "models/test_models.py::test_teacher_forced_predictions_are_steps_from_the_true_states[HWM GRU]",
    ),
    Mutant(
        "an anchored model never begins again",
        "models/_anchored.py",
        "anchor = age == self.every",
        "anchor = age < 0",
        "models/test_models.py::test_teacher_forced_predictions_are_steps_from_the_true_states[AWM GRU, anchored]",
    ),
    Mutant(
        "statistics of windows are those of windows from the first step",
        "learning/_model_checks.py",
        "spread_windows(episodes, window, from_start)",
        "spread_windows(episodes, window, 1.0)",
        "learning/test_windows.py::test_an_awms_statistics_of_each_step_are_those_of_windows_from_where_they_are_drawn[6-0.5]",
    ),
    Mutant(
        "normaliser statistics receive a gradient",
        "_normaliser.py",
        "return lax.stop_gradient(shift), lax.stop_gradient(scale)",
        "return shift, scale",
        "models/test_models.py::test_normalisers_are_not_trainable_and_have_no_gradient",
    ),
    Mutant(
        "predictions are not scaled to the units of the data",
        "_normaliser.py",
        "return y * scale + shift",
        "return y + shift",
        "models/test_models.py::test_a_normalised_model_does_not_depend_on_the_units_of_the_data",
    ),
    Mutant(
        "the tanh correction of a log density has the wrong sign",
        "_policies.py",
        "log_std) - correction)",
        "log_std) + correction)",
        DENSITY,
    ),
    Mutant(
        "entropy has the wrong sign",
        "_policies.py",
        "- _log_normal(noise, log_std))",
        "+ _log_normal(noise, log_std))",
        DENSITY,
    ),
    Mutant(
        "a sampled episode has the rewards of another episode",
        "learning/_replay.py",
        "rewards = None if self.steps.reward is None else jnp.where(happened, self.steps.reward[at], 0)",
        "rewards = None if self.steps.reward is None else jnp.where(happened, self.steps.reward[at[::-1]], 0)",
        "learning/test_replay.py::test_a_sample_has_whole_episodes_from_the_newest_that_fit",
    ),
    Mutant(
        "an unroll from a carry without space overwrites its last step",
        "_unroll_checks.py",
        "dynamics.resize_carry(carry, t + horizon)",
        "carry",
        "core/test_unroll.py::test_an_unroll_continues_from_the_carry_of_a_segment",
    ),
    Mutant(
        "statistics that are set are replaced",
        "_normaliser.py",
        "jnp.where(old.is_set, jnp.broadcast_to(x, y.shape), y.astype(x.dtype))",
        "y.astype(x.dtype)",
        "learning/test_train.py::test_a_fitted_model_policy_reward_and_critic_keep_their_statistics_and_the_rest_is_set",
    ),
    Mutant(
        "the share of the oldest episodes is rounded to 0",
        "learning/_replay.py",
        "jnp.expm1(size * rate)",
        "(jnp.exp(size * rate) - 1)",
        "learning/test_replay.py::test_an_age_is_drawn_where_the_distribution_function_says",
    ),
    Mutant(
        "the oldest episodes count as the newest",
        "learning/_replay.py",
        "return self.episodes_added - 1 - jnp.clip(ages, 0, self.whole - 1)",
        "return self.episodes_added - self.whole + jnp.clip(ages, 0, self.whole - 1)",
        "learning/test_replay.py::test_an_episode_is_drawn_less_often_than_the_next_newer_one_by_the_factor_recency",
    ),
    Mutant(
        "the clipped norm is reported as the norm before clipping",
        "learning/ascents/_policy_step.py",
        "norm, jnp.minimum(norm, jnp.asarray(ascent.clip, norm.dtype)))",
        "norm, norm)",
        "learning/test_ascents.py::test_the_gradient_is_clipped_by_its_norm_and_both_norms_are_reported",
    ),
    Mutant(
        "a gradient whose square overflows is cut to 0",
        "_norms.py",
        "(x.astype(dtype) / scale * ratio)",
        "(x.astype(dtype) * (limit / (size * scale)))",
        "learning/test_ascents.py::test_a_finite_gradient_of_any_size_moves_the_policy_by_the_clipped_norm",
    ),
    Mutant(
        "the derivative of a return by the discount is NaN at 0",
        "_trajectory.py",
        "** jnp.maximum(steps, 1)",
        "** steps",
        "core/test_unroll.py::test_a_return_and_its_derivative_by_the_discount_are_right_from_0_to_1",
    ),
    Mutant(
        "squares of standard errors are in another unit than those of the first batches",
        "analysis/_true_gradient.py",
        "shrink**2 * squares",
        "shrink * squares",
        "analysis/test_float_range.py::test_true_gradients_and_fidelity_scale_with_the_reward",
    ),
    Mutant(
        "the critic adds a value after the last step",
        "learning/ascents/_short_horizon.py",
        "value_of_end = jnp.where(end < until, value_of_end, 0.0)",
        "pass",
        "learning/test_ascents.py::test_the_short_horizon_gradient_is_that_of_its_rewards_and_of_the_target_critics_value_at_the_end",
    ),
    Mutant(
        "every number is a constant of the program, which compiles again",
        "learning/_sweep.py",
        "weak(x) for path, x, constant in _numbers(settings) if not constant}",
        "weak(x) for path, x, constant in _numbers(settings) if np.ndim(x)}",
        "learning/test_sweep.py::test_each_setting_of_train_equals_a_run_of_its_own_and_a_sweep_is_logged_and_resumed",
    ),
    Mutant(
        "the entropy weight moves the entropy away from its target",
        "learning/ascents/_target_entropy.py",
        "log_weight + entropy.rate",
        "log_weight - entropy.rate",
        "learning/test_ascents.py::test_the_entropy_per_entry_of_an_action_reaches_its_target_whatever_the_discount",
    ),
    Mutant(
        "the entropy weight has no largest value",
        "learning/ascents/_target_entropy.py",
        "initial + _LARGEST_CHANGE",
        "jnp.inf",
        "learning/test_ascents.py::test_after_entropies_of_any_size_the_weight_is_finite_and_finds_back",
    ),
    Mutant(
        "a save overwrites the old file in place",
        "_files.py",
        "os.replace(part, path)",
        "path.write_bytes(part.read_bytes())",
        "learning/test_checkpoint.py::test_a_save_replaces_the_file_and_never_writes_into_it",
    ),
    Mutant(
        "random keys are loaded as integers",
        "learning/_checkpoint.py",
        "if _is_key(like) else loaded",
        "if False else loaded",
        "learning/test_checkpoint.py::test_load_returns_exactly_the_tree_that_was_saved",
    ),
    Mutant(
        "a file may name what a module imports, such as os.system",
        "learning/_recipe.py",
        "None if i and not isinstance(found, type) else",
        "None if False else",
        "learning/test_saved_trees.py::test_a_file_cannot_name_what_is_not_a_class_or_function_of_a_model",
    ),
    Mutant(
        "a file is loaded although the bytes of its arrays were damaged",
        "learning/_checkpoint.py",
        'or digest.hexdigest() != header["sha256"]',
        "",
        "learning/test_saved_trees.py::test_no_file_with_a_flipped_bit_is_loaded",
    ),
    Mutant(
        "the identity of a run leaves out what its functions close over",
        "_fingerprint.py",
        "for name, cell in zip(code.co_freevars, fn.__closure__ or (), strict=True):",
        "for name, cell in ():",
        "learning/test_checkpoint.py::test_the_checkpoint_of_a_run_with_any_other_argument_is_refused_and_the_argument_is_named",
    ),
    Mutant(
        "hops are not counted",
        "analysis/_hops.py",
        "return jnp.concatenate([none, parts[:-2], parts[-2:-1] + parts[-1:]])",
        "return parts",
        "analysis/test_hops.py::test_the_spectrum_of_a_users_own_dynamics_is_binomial",
    ),
    Mutant(
        "a Lyapunov exponent is a growth factor instead of its logarithm",
        "analysis/_lyapunov.py",
        "jnp.log(jnp.abs(jnp.diag(r)))",
        "jnp.abs(jnp.diag(r))",
        "analysis/test_lyapunov.py::test_exponents_of_a_spiral_are_the_logarithm_of_its_rate",
    ),
    Mutant(
        "the information criterion counts each residual twice",
        "analysis/_growth_law.py",
        "margin = h.size *",
        "margin = 2 * h.size *",
        "analysis/test_growth.py::test_a_law_is_undecided_up_to_the_margin_on_both_sides",
    ),
    Mutant(
        "lags are too large by one",
        "analysis/_jacobian.py",
        "t = k + index + 1",
        "t = k + index",
        "analysis/test_hops.py::test_norms_by_lag_are_powers_and_analyses_compose_with_vmap_and_grad",
    ),
    Mutant(
        "gap closed is measured from the optimum",
        "scores.py",
        '(_numbers("returns", returns) - known.best_constant) / gap',
        '(known.optimal - _numbers("returns", returns)) / gap',
        "test_scores.py::test_the_optimum_scores_1_and_the_best_constant_action_0",
    ),
    Mutant(
        "an environment's arrays are kept without a copy",
        "gym/_collect.py",
        'real_numbers(values, shape, what=f"The {what}", fix="fix the environment or its space").astype(_float())',
        "np.asarray(values, _float())",
        "gym/test_collect.py::test_an_environment_that_fills_its_arrays_again_gives_the_same_episodes_as_one_that_makes_new_ones",
    ),
    Mutant(
        "a time limit counts as an end",
        "gym/_collect.py",
        '"terminated": terminated,',
        '"terminated": terminated or truncated,',
        "gym/test_collect.py::test_an_early_end_gives_a_shorter_episode_and_says_whether_it_terminated",
    ),
    Mutant(
        "the end of an episode is drawn with a key that the step may use",
        "tasks/_episode.py",
        "2**32 - 1",
        "1",
        "gym/test_task_env.py::test_ends_are_drawn_with_the_probability_of_surviving_an_unroll_and_not_with_the_noise_of_the_step",
    ),
    Mutant(
        "the bounds of a healthy range count as healthy",
        "tasks/_healthy.py",
        "margins >= 0 if self.closed else margins > 0",
        "margins >= 0",
        "gym/test_healthy.py::test_the_hard_rule_has_the_bounds_of_the_environments_class",
    ),
    Mutant(
        "an action may leave its box by rounding",
        "gym/_spaces.py",
        "return np.minimum(np.maximum(scaled.astype(box.dtype), low), high)",
        "return scaled.astype(box.dtype)",
        "gym/test_collect.py::test_actions_keep_all_bounds_of_one_decimal",
    ),
    Mutant(
        "a solver's own step is replaced by its tableau",
        "tasks/_ode.py",
        " or type(solver).step is not diffrax.AbstractERK.step",
        "",
        "tasks/test_ode.py::test_a_step_equals_that_of_diffrax_to_rounding",
    ),
    Mutant(
        "a control may leave its bounds by rounding",
        "_bounds.py",
        "return scaled + lax.stop_gradient(exact - scaled)",
        "return scaled",
        "tasks/test_myriad.py::test_actions_of_1_and_minus_1_are_exactly_the_bounds_of_the_control",
    ),
    Mutant(
        "a picture shows the episode before the reset",
        "gym/_film.py",
        "list(self._states)[-t - 1 :]",
        "self._states",
        "gym/test_task_env.py::test_the_picture_of_any_other_task_shows_the_running_episode_of_each_copy",
    ),
    Mutant(
        "the options of an MJXTask change the caller's model",
        "mjx/_model.py",
        "return copy.copy(model)",
        "return model",
        "mjx/test_mjx.py::test_options_change_a_copy_and_flags_that_do_not_move_the_state_are_cleared",
    ),
    Mutant(
        "the gradient of a batch has columns across the batch",
        "mjx/_forward_mode.py",
        "axes=(*axes, tuple(in_axes))",
        "axes=(tuple(in_axes), *axes)",
        "mjx/test_forward_mode.py::test_the_gradient_of_a_batch_has_no_columns_across_the_batch",
    ),
    Mutant(
        "the reward of a window sees the window's steps",
        "learning/ascents/_imagined.py",
        "self.rule(state, action, t + self.first, next_state)",
        "self.rule(state, action, t, next_state)",
        "learning/test_planner.py::test_a_window_of_an_awm_that_begins_at_any_step_gives_the_plan_of_the_simulator",
    ),
    Mutant(
        "the policy of a window sees the window's steps",
        "learning/ascents/_imagined.py",
        "self.policy(state, t + self.first, key=key)",
        "self.policy(state, t, key=key)",
        "learning/test_ascents.py::test_a_model_that_begins_anywhere_has_the_return_of_an_unroll_from_there_and_its_gradient",
    ),
    Mutant(
        "a planner has a derivative of zero",
        "learning/_planner.py",
        "_raises_if_differentiated(leaves)), rest)",
        "jax.lax.stop_gradient(leaves)), rest)",
        "learning/test_planner.py::test_a_planner_has_no_derivative_and_says_so",
    ),
)


class Run(NamedTuple):
    """The exit status, output and duration of one run of pytest."""

    status: int
    output: str
    seconds: float


def judge(mutant: Mutant | None, tests: list[str], folder: Path) -> Run:
    """Run `tests` in a copy of the repository changed by `mutant`, and stop at the first failure."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        home = Path(name)
        shutil.copy(ROOT / "pyproject.toml", home)
        for part in ("awmkit", "tests"):
            shutil.copytree(ROOT / part, home / part, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            (home / "awmkit" / mutant.file).write_text(mutant.broken(home / "awmkit"))
        # PYTHONPATH puts the copy before the installed package; all copies share one compilation cache.
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([name, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        }
        options = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--hypothesis-profile=unshrunk"]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        done = subprocess.run(command, cwd=home / "tests", env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return Run(done.returncode, done.stdout, time.monotonic() - began)


def judge_all(mutants: list[Mutant], jobs: int) -> list[tuple[str, Mutant, Run]]:
    """Run all mutants, print each verdict as it arrives and return them. Exit if the unchanged package fails the tests."""
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
            sys.exit(f"{whole.result().output}\nThe unchanged package fails these tests; fix it before judging mutants.")
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="run only mutants whose description or file contains one of these words")
    parser.add_argument("--jobs", type=int, default=2, help="number of mutants that run at a time (2)")
    asked = parser.parse_args()
    chosen = [m for m in MUTANTS if not asked.words or re.search("|".join(asked.words), f"{m.breaks} {m.file}")]
    if not chosen:
        parser.error(f"no mutant matches {asked.words}")
    for mutant in chosen:
        mutant.broken(ROOT / "awmkit")  # Raises at once if a mutant is out of date.
    began = time.monotonic()
    verdicts = judge_all(chosen, asked.jobs)
    print(f"\n| mutant | file | test | verdict | seconds |\n| {' | '.join(['---'] * 5)} |")
    for verdict, mutant, run in sorted(verdicts, key=lambda row: chosen.index(row[1])):
        print(f"| {mutant.breaks} | {mutant.file} | {mutant.test.split('::')[0]} | {verdict} | {run.seconds:.0f} |")
    missed = [(mutant, run) for verdict, mutant, run in verdicts if verdict != "caught"]
    print(f"\n{len(chosen) - len(missed)} of {len(chosen)} mutants caught in {time.monotonic() - began:.0f} s.")
    for mutant, run in missed:
        print(f"\n{mutant.breaks}: `{mutant.old}` replaced by `{mutant.new}`, {mutant.test}\n{run.output[-2000:]}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Bugs that public versions of SeqGAN have, planted here one by one: the checks of the other files must find each.

Every row plants one bug in the library and names the check, one that the suite runs as a test, that has to fail, and
the words that it fails with. Files and repositories are named as they stood when this was written.
"""

import contextlib

import pytest
import torch
from test_adversarial import (
    check_a_generator_step_leaves_the_judge_alone,
    check_the_negatives_are_new,
    check_the_rollout_policy_follows,
)
from test_discriminator import check_dropout_drops_its_share, check_the_discriminator_is_the_papers
from test_exact import check_rollouts_are_exact, check_the_gradient_is_unbiased
from test_recorded_cells import record
from test_rollout import (
    check_no_gradient_flows_into_the_rewards,
    check_the_judge_gets_its_mode_back,
    check_the_judge_rewards_without_dropout,
)
from torch import nn

from seqgan_lib import adversarial, policy_gradient, rollout
from seqgan_lib.discriminator import Discriminator

PITFALLS = record.pitfalls()


def of_the_chapter(name):
    """Plants what chapter 13 shows, and data/record.py plants in its games, under this name."""
    where, what, wrong = PITFALLS[name]["patch"]

    def plant(patch):
        for module in {where, rollout} if what == "action_values" else {where}:
            patch.setattr(module, what, wrong)

    return plant


def share_kept_taken_for_share_dropped(patch):
    """ZiJianZhao/SeqGAN-PyTorch, main.py and discriminator.py: ``nn.Dropout(p=0.75)``, where 0.75 was what is kept."""
    real = Discriminator._head

    def wrong(self, pooled):
        share, self.dropout = self.dropout, 1 - self.dropout
        logits = real(self, pooled)
        self.dropout = share
        return logits

    patch.setattr(Discriminator, "_head", wrong)


def never_back_in_training_mode(patch):
    """The remedy that brings the next bug: ``eval()`` before the rewards and no ``train()`` after them, so that D goes
    on learning without dropout."""

    @contextlib.contextmanager
    def judging(judge):
        if isinstance(judge, nn.Module):
            judge.eval()
        with torch.no_grad():
            yield

    patch.setattr(rollout, "judging", judging)


def gradients_through_the_judge(patch):
    """suragnair/seqGAN, main.py, train_generator_PG: ``rewards = dis.batchClassify(target)`` enters the loss as it is,
    neither under ``no_grad`` nor detached. The generator's backward pass fills D's gradients."""

    @contextlib.contextmanager
    def judging(judge):
        if isinstance(judge, nn.Module):
            judge.eval()
        yield

    patch.setattr(rollout, "judging", judging)
    values_not_detached(patch)


def values_not_detached(patch):
    """The same repository, generator.py, batchPGLoss: the product of log-probability and reward, with no detach."""

    def wrong(model, sequences, values, baseline="none"):
        return -(model.log_probs(sequences) * policy_gradient.advantages(values, baseline)).sum()

    for module in (policy_gradient, adversarial):
        patch.setattr(module, "policy_gradient_loss", wrong)


def baseline_with_the_own_value(patch):
    """williamSYSU/TextGAN-PyTorch, instructor/oracle_data/maligan_instructor.py: ``rewards -= torch.mean(rewards)``,
    the mean over a batch that contains the action itself. Each gradient is too short by 1 / batch."""
    patch.setattr(policy_gradient, "advantages", lambda values, baseline="none": values - values.mean(0))


def baseline_from_the_future(patch):
    """calclavia/SeqGAN, model.py, reinforce, subtracts one mean of all rewards; taken along each sequence, as here, it
    looks at what came after the action."""
    patch.setattr(policy_gradient, "advantages", lambda values, baseline="none": values - values.mean(1, keepdim=True))


def highway_with_one_matrix(patch):
    """ZiJianZhao/SeqGAN-PyTorch and X-czh/SeqGAN-PyTorch, discriminator.py: gate and transform share their weights."""

    def wrong(self, sequences):
        pooled = self.features(sequences)
        linear = torch.addmm(self.transform_bias, pooled, self.transform)
        highway = linear.sigmoid() * linear.relu() + (1 - linear.sigmoid()) * pooled
        return torch.addmm(self.output_bias, highway, self.output)

    patch.setattr(Discriminator, "logits", wrong)


NOT_CLOSE, GRADIENT = "Tensor-likes are not close", "the judge's weights got a gradient"
CHAPTER = {  # chapter 13 says which repository has them, where
    "constant reward": (check_rollouts_are_exact, "standard errors"),
    "wrong axes": (check_rollouts_are_exact, "standard errors"),
    "one position late": (check_rollouts_are_exact, "standard errors"),
    "log D as reward": (check_rollouts_are_exact, "standard errors"),
    "mean of logs": (check_rollouts_are_exact, "standard errors"),
    "no roll-outs": (check_rollouts_are_exact, "standard errors"),
    "no start token": (check_rollouts_are_exact, "chi2"),  # too small to show in any one value
    "dropout in the reward": (check_the_judge_rewards_without_dropout, NOT_CLOSE),
    "β never follows": (check_the_rollout_policy_follows, NOT_CLOSE),
    "same negatives": (check_the_negatives_are_new, "same negatives again"),
}
ROWS = [
    *((name, of_the_chapter(name), *found) for name, found in CHAPTER.items()),
    ("share kept as share dropped", share_kept_taken_for_share_dropped, check_dropout_drops_its_share, "0.75"),
    ("D never back in training mode", never_back_in_training_mode, check_the_judge_gets_its_mode_back, "mode it was"),
    ("gradient flowing into D", gradients_through_the_judge, check_a_generator_step_leaves_the_judge_alone, GRADIENT),
    ("gradient in the rewards", gradients_through_the_judge, check_no_gradient_flows_into_the_rewards, "are numbers"),
    ("values not detached", values_not_detached, check_no_gradient_flows_into_the_rewards, GRADIENT),
    ("baseline with the action's own value", baseline_with_the_own_value, check_the_gradient_is_unbiased, NOT_CLOSE),
    ("baseline from the future", baseline_from_the_future, check_the_gradient_is_unbiased, NOT_CLOSE),
    ("highway with one matrix", highway_with_one_matrix, check_the_discriminator_is_the_papers, NOT_CLOSE),
]


@pytest.mark.parametrize(("plant", "check", "says"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_planted_bug_is_found(plant, check, says):
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        with pytest.raises(AssertionError, match=says):
            check()


@pytest.mark.parametrize("check", dict.fromkeys(row[2] for row in ROWS), ids=lambda check: check.__name__)
def test_without_the_bug_the_check_passes(check):
    check()


def test_every_function_that_the_chapter_replaces_has_its_check():
    assert {name for name, planted in PITFALLS.items() if "patch" in planted} == set(CHAPTER)


def test_the_chapter_shares_the_highway_matrix():
    judge = Discriminator(7, 5, generator=torch.Generator().manual_seed(0), windows=((1, 6),))
    PITFALLS["one highway matrix"]["judge"](judge)
    assert judge.gate is judge.transform and judge.gate_bias is judge.transform_bias

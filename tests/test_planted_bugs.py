"""Bugs that public versions of SeqGAN have, planted here one by one: the checks of the other files must find each.

Every row plants one bug in the library and names the check, one that the suite runs as a test, that has to fail, and
the words that it fails with. Files and repositories are named as they stood when this was written.
"""

import ast
import contextlib
import importlib.util
from pathlib import Path

import jupytext
import pytest
import torch
from test_adversarial import (
    check_a_generator_step_leaves_the_judge_alone,
    check_the_negatives_are_new,
    check_the_rollout_policy_follows,
)
from test_discriminator import check_dropout_drops_its_share, check_the_discriminator_is_the_papers
from test_exact import check_rollouts_are_exact, check_the_gradient_is_unbiased
from test_rollout import (
    check_no_gradient_flows_into_the_rewards,
    check_the_judge_gets_its_mode_back,
    check_the_judge_rewards_without_dropout,
)
from torch import nn

from seqgan_lib import adversarial, policy_gradient, rollout
from seqgan_lib.adversarial import Game
from seqgan_lib.discriminator import Discriminator

ROOT = Path(__file__).resolve().parent.parent


def all_verdicts(policy, sequences, judge, rollouts, generator):
    """What the buggy versions start from: D of every roll-out, (T, batch, N); at T the finished sequence's, N times."""
    with rollout.judging(judge):
        finished = policy.branch(sequences, rollouts, generator=generator)
        verdicts = judge(finished.flatten(0, 2)).view(finished.shape[:3])
        return torch.cat([verdicts, judge(sequences)[None, :, None].expand(1, -1, rollouts)])


def plant_action_values(patch, wrong):
    for module in (rollout, adversarial):
        patch.setattr(module, "action_values", wrong)


def shifted_by_one(patch):
    """Shaofanl/SeqGAN-Tensorflow, SeqGAN/Generator.py, get_reward: ``rewards[:, keep_num]`` takes what a prefix of
    keep_num tokens was worth. Each token gets the value of the one before it, the first gets 0, and the finished
    sequence is never judged."""

    def wrong(policy, sequences, judge, *, rollouts=16, generator, chunk=None):
        values = all_verdicts(policy, sequences, judge, rollouts, generator).mean(2).t().float()
        return nn.functional.pad(values[:, :-1], (1, 0))

    plant_action_values(patch, wrong)


def reshaped_along_the_wrong_axes(patch):
    """williamSYSU/TextGAN-PyTorch, utils/rollout.py, get_reward: filled as (roll-out × position, batch), viewed as
    (batch, position, roll-out), so that rewards of different sequences and positions are mixed (its issue 62)."""

    def wrong(policy, sequences, judge, *, rollouts=16, generator, chunk=None):
        filled = all_verdicts(policy, sequences, judge, rollouts, generator).permute(2, 0, 1).flatten(0, 1)
        return filled.reshape(*sequences.shape, rollouts).mean(-1).float()

    plant_action_values(patch, wrong)


def log_probabilities_averaged(patch):
    """ZiJianZhao/SeqGAN-PyTorch: rollout.py averages D's log-softmax over the roll-outs and main.py takes ``exp`` of
    the mean. A geometric mean, biased low."""

    def wrong(policy, sequences, judge, *, rollouts=16, generator, chunk=None):
        verdicts = all_verdicts(policy, sequences, judge, rollouts, generator)
        return verdicts.log().mean(2).exp().t().float()

    plant_action_values(patch, wrong)


def log_probabilities_as_rewards(patch):
    """X-czh/SeqGAN-PyTorch, main.py, train_generator_PG: the same mean of log-probabilities, and no ``exp``."""

    def wrong(policy, sequences, judge, *, rollouts=16, generator, chunk=None):
        return all_verdicts(policy, sequences, judge, rollouts, generator).log().mean(2).t().float()

    plant_action_values(patch, wrong)


def one_reward_a_sequence(patch):
    """suragnair/seqGAN, by intention, as its README says: no roll-outs, D(Y) is the reward of every token."""

    def wrong(policy, sequences, judge, *, rollouts=16, generator, chunk=None):
        with rollout.judging(judge):
            return judge(sequences)[:, None].expand(sequences.shape).float()

    plant_action_values(patch, wrong)


def share_kept_taken_for_share_dropped(patch):
    """ZiJianZhao/SeqGAN-PyTorch, main.py and discriminator.py: ``nn.Dropout(p=0.75)``, where 0.75 was what is kept."""
    real = Discriminator._head

    def wrong(self, pooled):
        share, self.dropout = self.dropout, 1 - self.dropout
        logits = real(self, pooled)
        self.dropout = share
        return logits

    patch.setattr(Discriminator, "_head", wrong)


def rewards_in_training_mode(patch):
    """ZiJianZhao and X-czh/SeqGAN-PyTorch, williamSYSU/TextGAN-PyTorch: no ``eval()`` anywhere, so D rewards with
    dropout on."""

    @contextlib.contextmanager
    def judging(judge):
        with torch.no_grad():
            yield

    patch.setattr(rollout, "judging", judging)


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


def policy_never_updated(patch):
    """natnij/seqGAN_pytorch, rollout.py: the cell that writes the completions is made with the roll-out network and
    update_params leaves it out (its issue 2): β is what it was at the start."""
    patch.setattr(adversarial, "update_policy", lambda policy, model, rate=0.8: None)


def baseline_with_the_own_value(patch):
    """williamSYSU/TextGAN-PyTorch, instructor/oracle_data/maligan_instructor.py: ``rewards -= torch.mean(rewards)``,
    the mean over a batch that contains the action itself. Each gradient is too short by 1 / batch."""
    patch.setattr(policy_gradient, "advantages", lambda values, baseline="none": values - values.mean(0))


def baseline_from_the_future(patch):
    """calclavia/SeqGAN, model.py, reinforce, subtracts one mean of all rewards; taken along each sequence, as here, it
    looks at what came after the action."""
    patch.setattr(policy_gradient, "advantages", lambda values, baseline="none": values - values.mean(1, keepdim=True))


def negatives_never_refreshed(patch):
    """tyo-yo/SeqGAN, SeqGAN/train.py, pre_train_discriminator: one file of negatives, for all epochs of D."""
    negatives = {}

    def wrong(self, epochs):
        first = negatives.setdefault(id(self), self.model.sample(*self.data.shape, generator=self.generator))
        how = {"epochs": epochs, "generator": self.generator, "batch_size": self.rules.batch_size}
        adversarial.train_discriminator(self.judge, self._d_adam, self.data, first, **how)

    patch.setattr(Game, "_d_step", wrong)


def highway_with_one_matrix(patch):
    """ZiJianZhao/SeqGAN-PyTorch and X-czh/SeqGAN-PyTorch, discriminator.py: gate and transform share their weights."""

    def wrong(self, sequences):
        pooled = self.features(sequences)
        linear = torch.addmm(self.transform_bias, pooled, self.transform)
        highway = linear.sigmoid() * linear.relu() + (1 - linear.sigmoid()) * pooled
        return torch.addmm(self.output_bias, highway, self.output)

    patch.setattr(Discriminator, "logits", wrong)


NOT_CLOSE, GRADIENT = "Tensor-likes are not close", "the judge's weights got a gradient"
ROWS = [
    ("rewards shifted by one position", shifted_by_one, check_rollouts_are_exact, "standard errors"),
    ("rewards reshaped along the wrong axes", reshaped_along_the_wrong_axes, check_rollouts_are_exact, "standard err"),
    ("log-probabilities averaged", log_probabilities_averaged, check_rollouts_are_exact, "standard errors"),
    ("log-probabilities for rewards", log_probabilities_as_rewards, check_rollouts_are_exact, "standard errors"),
    ("one reward a sequence", one_reward_a_sequence, check_rollouts_are_exact, "standard errors"),
    ("share kept as share dropped", share_kept_taken_for_share_dropped, check_dropout_drops_its_share, "0.75"),
    ("D left in training mode", rewards_in_training_mode, check_the_judge_rewards_without_dropout, NOT_CLOSE),
    ("D never back in training mode", never_back_in_training_mode, check_the_judge_gets_its_mode_back, "mode it was"),
    ("gradient flowing into D", gradients_through_the_judge, check_a_generator_step_leaves_the_judge_alone, GRADIENT),
    ("gradient in the rewards", gradients_through_the_judge, check_no_gradient_flows_into_the_rewards, "are numbers"),
    ("values not detached", values_not_detached, check_no_gradient_flows_into_the_rewards, GRADIENT),
    ("roll-out policy never updated", policy_never_updated, check_the_rollout_policy_follows, NOT_CLOSE),
    ("baseline with the action's own value", baseline_with_the_own_value, check_the_gradient_is_unbiased, NOT_CLOSE),
    ("baseline from the future", baseline_from_the_future, check_the_gradient_is_unbiased, NOT_CLOSE),
    ("negatives never refreshed", negatives_never_refreshed, check_the_negatives_are_new, "same negatives again"),
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


# ---------------------------------------------------------------- what chapter 13 recorded


def load_record():
    spec = importlib.util.spec_from_file_location("record", ROOT / "data" / "record.py")
    record = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(record)
    return record


RECORD = load_record()
CAUGHT_BY = {
    "constant reward": check_rollouts_are_exact,
    "wrong axes": check_rollouts_are_exact,
    "one position late": check_rollouts_are_exact,
    "log D as reward": check_rollouts_are_exact,
    "mean of logs": check_rollouts_are_exact,
    "no roll-outs": check_rollouts_are_exact,
    "no start token": check_rollouts_are_exact,
    "dropout in the reward": check_the_judge_rewards_without_dropout,
    "β never follows": check_the_rollout_policy_follows,
    "same negatives": check_the_negatives_are_new,
}


@pytest.mark.parametrize("name", CAUGHT_BY)
def test_what_was_planted_for_the_record_is_found(name):
    where, what, wrong = RECORD.PITFALLS[name]["patch"]
    with pytest.MonkeyPatch.context() as patch:
        if what == "action_values":
            plant_action_values(patch, wrong)
        else:
            patch.setattr(where, what, wrong)
        with pytest.raises(AssertionError):
            CAUGHT_BY[name]()


def test_every_replaced_function_of_the_record_has_its_check():
    assert {name for name, planted in RECORD.PITFALLS.items() if "patch" in planted} == set(CAUGHT_BY)


def test_the_record_shares_the_highway_matrix():
    judge = Discriminator(7, 5, generator=torch.Generator().manual_seed(0), windows=((1, 6),))
    RECORD.PITFALLS["one highway matrix"]["judge"](judge)
    assert judge.gate is judge.transform and judge.gate_bias is judge.transform_bias


def functions(source):
    """Every function of a source by name, as what it does: without its docstring."""
    found = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    for node in found.values():
        node.body = node.body[1:] if ast.get_docstring(node) else node.body
    return {name: ast.dump(node) for name, node in found.items()}


def test_the_chapter_shows_what_was_planted_for_the_record():
    cells = jupytext.read(ROOT / "chapters" / "13_pitfalls.md").cells
    shown = functions("\n".join(c.source for c in cells if c.cell_type == "code" and "%pip" not in c.source))
    recorded = functions((ROOT / "data" / "record.py").read_text("utf8"))
    planted = {value.__name__ for p in RECORD.PITFALLS.values() for value in p.get("patch", ())[2:]}
    for name in planted | {"verdicts", "share_one_matrix"}:
        assert shown[name] == recorded[name], f"chapter 13 shows another {name} than data/record.py plants"

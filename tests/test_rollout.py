"""Roll-outs as a tool: shapes, modes, chunks, the delayed policy, and what is refused. Exactness: test_exact.py."""

import copy

import pytest
import torch
from test_exact import TRIVIAL, Table
from torch import nn

from seqgan_lib import LanguageModel, new_generator, policy_gradient, rollout, sampling
from seqgan_lib.bleu import Bleu
from seqgan_lib.discriminator import Discriminator

VOCABULARY, LENGTH = 7, 5


@pytest.fixture
def model():
    return LanguageModel(VOCABULARY, generator=new_generator(0), std=1.0)


@pytest.fixture
def sequences(model):
    return model.sample(6, LENGTH, generator=new_generator(1))


def new_discriminator(seed=2, dropout=0.5, **settings):
    sizes = {"windows": ((1, 6), (2, 6), (5, 4)), "embedding": 4, **settings}
    return Discriminator(VOCABULARY, LENGTH, generator=new_generator(seed), dropout=dropout, **sizes)


def share_of_token_1(sequences):
    """A judge without modes."""
    return (sequences == 1).double().mean(1)


def values_of(model, sequences, judge=share_of_token_1, **settings):
    how = {"rollouts": 4, "generator": new_generator(3), **settings}
    return rollout.action_values(model, sequences, judge, **how)


# ---------------------------------------------------------------- branching


def test_a_branch_keeps_its_prefix_and_finishes_it(model, sequences):
    finished = model.branch(sequences, 3, generator=new_generator(0))
    assert finished.shape == (LENGTH - 1, 6, 3, LENGTH) and finished.dtype == torch.int64
    for t in range(1, LENGTH):
        assert (finished[t - 1, :, :, :t] == sequences[:, None, :t]).all()
    assert 0 <= finished.min() and finished.max() < VOCABULARY
    assert (finished != sequences[None, :, None]).any(), "what follows is new"


def test_a_sequence_of_one_token_has_nothing_to_finish(model):
    assert model.branch(torch.tensor([[3], [1]]), 4, generator=new_generator(0)).shape == (0, 2, 4, 1)


def test_branching_leaves_the_sequences_alone_and_repeats_itself(model, sequences):
    before = sequences.clone()
    one, two = (model.branch(sequences, 3, generator=new_generator(5)) for _ in range(2))
    assert torch.equal(one, two) and torch.equal(sequences, before)
    assert not torch.equal(one, model.branch(sequences, 3, generator=new_generator(6)))


def test_branches_do_not_depend_on_the_slices(model, sequences, monkeypatch):
    whole = model.branch(sequences, 3, generator=new_generator(5))
    for rows in (1, 7, 18, 19):  # 18 rows start at each prefix length
        monkeypatch.setattr(LanguageModel, "_rows_at_once", lambda self, rows=rows: rows)
        assert torch.equal(model.branch(sequences, 3, generator=new_generator(5)), whole)


def test_each_prefix_state_is_computed_once_however_many_rollouts_share_it(model, sequences, monkeypatch):
    rows, advance = [], LanguageModel._advance

    def count(self, gate_inputs, state):
        rows.append(len(gate_inputs))
        return advance(self, gate_inputs, state)

    monkeypatch.setattr(LanguageModel, "_advance", count)
    steps = {}
    for times in (1, 50):
        rows.clear()
        model.branch(sequences, times, generator=new_generator(0))
        steps[times] = len(rows)
        # The sequences' own states: T, of which no number of completions makes more. Then each of the 6 · times
        # branches of a prefix of t tokens takes the T − 1 − t steps that are left to it.
        assert sum(rows) == 6 * LENGTH + 6 * times * sum(range(LENGTH - 1))
    assert steps[1] == steps[50] <= 2 * LENGTH


# ---------------------------------------------------------------- action values


def test_action_values_are_float32_one_a_token(model, sequences):
    values = values_of(model, sequences)
    assert values.shape == sequences.shape and values.dtype == torch.float32
    assert 0 <= values.min() and values.max() <= 1


@pytest.mark.parametrize("judge", [share_of_token_1, new_discriminator(), Bleu(torch.ones(3, LENGTH).long())])
def test_the_last_column_is_the_verdict_on_the_sequence_itself(model, sequences, judge):
    wanted = judge.eval()(sequences) if isinstance(judge, nn.Module) else judge(sequences)
    torch.testing.assert_close(values_of(model, sequences, judge)[:, -1], wanted.detach().float())


def test_column_t_keeps_the_tokens_up_to_t(model, sequences):
    """A judge that looks at one position alone: certain from its column on, uncertain before."""
    for position in range(LENGTH):

        def is_token_1(x, position=position):
            return (x[:, position] == 1).double()

        values = values_of(model, sequences, is_token_1, rollouts=2_000)
        certain = is_token_1(sequences).float()[:, None]
        assert (values[:, position:] == certain).all()
        if position:
            assert (values[:, :position] != certain).all()


def test_completions_are_written_by_the_policy_and_not_by_the_writer(model, sequences):
    policy = copy.deepcopy(model)
    with torch.no_grad():
        policy.output_bias[1] += 50  # it finishes everything with token 1
    values = values_of(policy, sequences)
    kept = (sequences == 1).cumsum(1)
    wanted = (kept + torch.arange(LENGTH - 1, -1, -1)) / LENGTH
    torch.testing.assert_close(values, wanted.float())


def test_one_token_is_its_own_end(model):
    sequences = torch.tensor([[1], [3], [1]])
    assert values_of(model, sequences).tolist() == [[1], [0], [1]]


def test_the_chunk_does_not_change_the_result(model, sequences):
    rewards = torch.rand(VOCABULARY**LENGTH, generator=new_generator(4), dtype=torch.float64)
    table = Table(rewards, VOCABULARY)
    whole = values_of(model, sequences, table)
    for chunk in (1, 4, 6, 100):
        assert torch.equal(values_of(model, sequences, table, chunk=chunk), whole)
    judge = new_discriminator()
    torch.testing.assert_close(values_of(model, sequences, judge, chunk=4), values_of(model, sequences, judge))


def test_the_chunk_is_what_fits_into_a_quarter_of_the_free_memory(model, sequences, monkeypatch):
    chunks, branch = [], LanguageModel.branch

    def spy(self, part, times, **how):
        chunks.append(len(part))
        return branch(self, part, times, **how)

    monkeypatch.setattr(LanguageModel, "branch", spy)
    whole = values_of(model, sequences)
    assert chunks == [6]
    one = 8 * 4 * LENGTH * (3 * LENGTH + 4 * model.hidden)  # bytes that one sequence with N = 4 is reckoned to take
    for free, expected in ((4 * 2.5 * one, [2, 2, 2]), (0, [1] * 6)):
        chunks.clear()
        monkeypatch.setattr(rollout, "free_memory", lambda device, free=free: int(free))
        assert torch.equal(values_of(model, sequences), whole)
        assert chunks == expected


def test_free_memory_is_known_or_guessed_with_caution(monkeypatch):
    cpu = torch.device("cpu")
    assert 2**20 < sampling.free_memory(cpu) < 2**50
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_AVPHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}[name])
    monkeypatch.setattr("os.sysconf_names", {"SC_AVPHYS_PAGES": 0})
    assert sampling.free_memory(cpu) == 4_096_000
    monkeypatch.setattr("os.sysconf_names", {"SC_PAGE_SIZE": 0})  # macOS
    assert sampling.free_memory(cpu) == 2 * 2**30
    monkeypatch.delattr("os.sysconf_names")  # Windows
    assert sampling.free_memory(cpu) == 2 * 2**30


def test_the_same_seed_gives_the_same_values_and_global_randomness_is_left_alone(model, sequences):
    judge = new_discriminator().train()
    before = torch.get_rng_state()
    one, two = (values_of(model, sequences, judge) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, values_of(model, sequences, judge, generator=new_generator(9)))
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- the judge's mode


def check_the_judge_rewards_without_dropout():
    """A discriminator in training mode gives the values that it gives in evaluation mode."""
    model = LanguageModel(VOCABULARY, generator=new_generator(0), std=1.0)
    sequences, judge = model.sample(6, LENGTH, generator=new_generator(1)), new_discriminator()
    wanted = values_of(model, sequences, judge.eval())
    torch.testing.assert_close(values_of(model, sequences, judge.train()), wanted)


class Pair(nn.Module):
    """A discriminator inside another module; ``seen`` notes the modes in which it was asked."""

    def __init__(self):
        super().__init__()
        self.part, self.seen = new_discriminator(), []

    def forward(self, sequences):
        self.seen.append((self.training, self.part.training, torch.is_grad_enabled()))
        return self.part(sequences)


def check_the_judge_gets_its_mode_back():
    """What was training goes on training, and what was not does not: every submodule by itself."""
    model = LanguageModel(VOCABULARY, generator=new_generator(0), std=1.0)
    sequences = model.sample(6, LENGTH, generator=new_generator(1))
    for outer, inner in ((True, True), (True, False), (False, False), (False, True)):
        judge = Pair().train(outer)
        judge.part.train(inner)
        values_of(model, sequences, judge)
        assert set(judge.seen) == {(False, False, False)}
        assert (judge.training, judge.part.training) == (outer, inner), "each part is back in the mode it was in"


def check_no_gradient_flows_into_the_rewards():
    """Neither the values nor the judge's weights get a gradient from the generator's loss."""
    model = LanguageModel(VOCABULARY, generator=new_generator(0), std=1.0)
    sequences, judge = model.sample(6, LENGTH, generator=new_generator(1)), new_discriminator()
    values = values_of(model, sequences, judge)
    assert not values.requires_grad, "action values are numbers, not functions of the judge's weights"
    values = judge(sequences)[:, None] * values.requires_grad_()  # even if somebody hands them over so
    policy_gradient.policy_gradient_loss(model, sequences, values).backward()
    assert all(p.grad is None for p in judge.parameters()), "the judge's weights got a gradient"
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_judge_rewards_without_dropout():
    check_the_judge_rewards_without_dropout()


def test_the_judge_gets_its_mode_back():
    check_the_judge_gets_its_mode_back()


def test_no_gradient_flows_into_the_rewards():
    check_no_gradient_flows_into_the_rewards()


def test_the_judge_gets_its_mode_back_after_an_error(model):
    judge = Pair().train()
    judge.part.eval()
    with pytest.raises(ValueError, match="sequences of 5 tokens, not 3"):
        values_of(model, torch.zeros(2, 3, dtype=torch.int64), judge)
    assert judge.seen == [(False, False, False)]
    assert judge.training and not judge.part.training and torch.is_grad_enabled()


def test_without_rollouts_every_token_gets_the_verdict_on_the_whole(model, sequences):
    judge = new_discriminator().train()
    values = values_of(model, sequences, judge, rollouts=0)
    with torch.no_grad():
        whole = judge.eval()(sequences)
    torch.testing.assert_close(values, whole[:, None].expand(-1, LENGTH))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rollouts": -1}, "rollouts must be.*at least 0, but is -1"),
        ({"rollouts": 2.0}, "rollouts.*2.0"),
        ({"chunk": 0}, "chunk must be.*at least 1, but is 0"),
        ({"sequences": torch.ones(2, LENGTH)}, "int64.*float32"),
        ({"sequences": torch.full((2, LENGTH), VOCABULARY)}, "0 to 6 are allowed"),
        ({"sequences": torch.zeros(0, LENGTH, dtype=torch.int64)}, r"\(0, 5\)"),
        ({"sequences": torch.zeros(2, 4, dtype=torch.int64), "judge": new_discriminator()}, "of 5 tokens, not 4"),
        ({"judge": lambda x: torch.full((len(x),), float("nan"))}, "rewards must be finite"),
        ({"judge": lambda x: torch.full((len(x),), float("inf"))}, "rewards must be finite"),
        ({"judge": lambda x: x[:, 0] - 3.5}, "from -3.5 to 2.5; probabilities, 0 to 1, not logits"),
        ({"judge": lambda x: torch.full((len(x),), 1.01)}, "from 1.01 to 1.01.*not logits"),
        ({"judge": lambda x: torch.full((len(x),), -0.01)}, "not logits"),
        ({"judge": lambda x: torch.rand(len(x), 2)}, r"one number a sequence, \(\d+,\), but gave \(\d+, 2\)"),
        ({"judge": lambda x: torch.rand(len(x), 1)}, "one number a sequence"),
        ({"judge": lambda x: torch.rand(len(x) - 1)}, "one number a sequence"),
        ({"judge": lambda x: [0.5] * len(x)}, "but gave list"),
    ],
)
def test_wrong_input_is_refused(model, settings, says):
    given = {"sequences": torch.arange(VOCABULARY)[:, None].repeat(1, LENGTH), **settings}
    with pytest.raises(ValueError, match=says):
        values_of(model, given.pop("sequences"), given.pop("judge", share_of_token_1), **given)


def test_one_verdict_in_many_that_is_not_finite_is_found(model, sequences):
    def almost(x):
        verdicts = share_of_token_1(x)
        verdicts[len(x) // 2] = float("nan")
        return verdicts

    with pytest.raises(ValueError, match="rewards must be finite, but 1 of 102 are not"):
        values_of(model, sequences, almost)  # 4 prefixes · 6 sequences · 4 roll-outs, and the 6 themselves


def test_branching_refuses_what_it_cannot_finish(model, sequences):
    with pytest.raises(ValueError, match="times must be.*at least 1"):
        model.branch(sequences, 0, generator=new_generator(0))
    with pytest.raises(ValueError, match="0 to 6 are allowed"):
        model.branch(sequences + 5, 2, generator=new_generator(0))


# ---------------------------------------------------------------- the roll-out policy


def two_models():
    return (LanguageModel(VOCABULARY, generator=new_generator(s), std=1.0).double() for s in (0, 1))


@pytest.mark.parametrize("rate", [0.8, 0.25])
def test_the_policy_follows_slowly_and_its_embeddings_at_once(rate):
    policy, model = two_models()
    before, target = (copy.deepcopy(m.state_dict()) for m in (policy, model))
    rollout.update_policy(policy, model, rate)
    assert torch.equal(policy.embedding, model.embedding)
    for name, weight in policy.state_dict().items():
        if name != "embedding":
            torch.testing.assert_close(weight, rate * before[name] + (1 - rate) * target[name])
    assert all(torch.equal(weight, target[name]) for name, weight in model.state_dict().items())


def test_the_default_rate_is_the_published_one():
    (one, model), (two, _) = two_models(), two_models()
    rollout.update_policy(one, model)
    rollout.update_policy(two, model, 0.8)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_rate_0_is_the_papers_copy_and_rate_1_stays():
    policy, model = two_models()
    before = policy.output.clone()
    rollout.update_policy(policy, model, 1)
    assert torch.equal(policy.output, before) and torch.equal(policy.embedding, model.embedding)
    rollout.update_policy(policy, model, 0)
    for a, b in zip(policy.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=TRIVIAL, rtol=0)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate):
    policy, model = two_models()
    with pytest.raises(ValueError, match="from 0 to 1, but is"):
        rollout.update_policy(policy, model, rate)


# ---------------------------------------------------------------- on a GPU


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cpu_and_cuda_agree(model, sequences):
    judge = new_discriminator()
    on_cpu = values_of(model, sequences, judge, rollouts=500)
    on_gpu = values_of(model.to("cuda"), sequences.cuda(), judge.to("cuda"), rollouts=500)
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=0.01, rtol=0)
    assert sampling.free_memory(torch.device("cuda")) > 2**20

"""Tiny worlds, every sequence written down: the enumeration itself, and each estimate of the library held against it.

The checks that a planted bug must fail are plain functions, ``check_…``; test_planted_bugs.py runs them again.
"""

import itertools

import pytest
import torch
from scipy import stats
from test_sampling import DRAWS, LEAST_P, chi_square

from seqgan_lib import LanguageModel, exact, new_generator, policy_gradient, rollout

TRIVIAL = 1e-9  # what double precision may lose in a sum of a few hundred terms


class Table:
    """A judge that knows its verdict on every sequence by heart."""

    def __init__(self, rewards, vocabulary):
        self.rewards, self.vocabulary = rewards, vocabulary

    def number(self, sequences):
        """The place of each sequence in ``all_sequences``."""
        return (sequences * self.vocabulary ** torch.arange(sequences.shape[1] - 1, -1, -1)).sum(1)

    def __call__(self, sequences):
        return self.rewards[self.number(sequences)]


def tiny_world(vocabulary=3, length=4, seed=0):
    """A model, the verdict on each of its V^T sequences, in [0.05, 1), and the judge that gives it."""
    generator = new_generator(seed)
    model = LanguageModel(vocabulary, generator=generator, embedding=3, hidden=4, std=1.0).double()
    rewards = 0.05 + 0.95 * torch.rand(vocabulary**length, generator=generator, dtype=torch.float64)
    return model, rewards, Table(rewards, vocabulary)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def flat(tensors):
    return torch.cat([x.flatten() for x in tensors])


# ---------------------------------------------------------------- the enumeration


@pytest.mark.parametrize(("vocabulary", "length"), [(3, 4), (5, 2), (4, 1), (1, 3), (2, 1)])
def test_all_sequences_are_listed_in_order(vocabulary, length):
    everything = exact.all_sequences(vocabulary, length)
    assert everything.dtype == torch.int64
    assert [tuple(row) for row in everything.tolist()] == list(itertools.product(range(vocabulary), repeat=length))


@pytest.mark.parametrize(("vocabulary", "length"), [(3, 3), (5, 5), (4, 1)])
def test_the_distribution_sums_to_one(vocabulary, length):
    model = tiny_world(vocabulary, length)[0]
    probability = exact.distribution(model, length)
    assert probability.shape == (vocabulary**length,) and (probability > 0).all()
    assert probability.sum().item() == pytest.approx(1, abs=1e-12)


def test_the_distribution_is_the_product_of_the_steps():
    model, _, _ = tiny_world(3, 3)
    for sequence, probability in zip(exact.all_sequences(3, 3), exact.distribution(model, 3), strict=True):
        state, token, product = model.initial_state(1), torch.tensor([model.start_token]), 1.0
        for y in sequence:
            logits, state = model.step(token, state)
            product, token = product * logits.softmax(1)[0, y], y[None]
        assert probability.item() == pytest.approx(product.item(), rel=1e-10)


@pytest.mark.parametrize(("vocabulary", "length"), [(3, 4), (4, 3), (5, 3)])
def test_samples_follow_the_exact_distribution(vocabulary, length):
    model, _, table = tiny_world(vocabulary, length)
    written = model.sample(DRAWS, length, generator=new_generator(1))
    assert chi_square(table.number(written), exact.distribution(model, length)) > LEAST_P


@pytest.mark.parametrize(("vocabulary", "length"), [(3, 4), (4, 2), (2, 1)])
def test_exact_action_values_equal_the_loop(vocabulary, length):
    """Eq. 3 and 4 word for word: the mean reward of all sequences that begin alike, by their probabilities."""
    model, rewards, _ = tiny_world(vocabulary, length)
    everything = exact.all_sequences(vocabulary, length)
    probability = exact.distribution(model, length).tolist()
    values = exact.exact_action_values(model, rewards)
    assert values.shape == (vocabulary**length, length) and not values.requires_grad
    for i, t in itertools.product(range(len(everything)), range(length)):
        alike = [j for j, other in enumerate(everything.tolist()) if other[: t + 1] == everything[i, : t + 1].tolist()]
        value = sum(probability[j] * rewards[j].item() for j in alike) / sum(probability[j] for j in alike)
        assert values[i, t].item() == pytest.approx(value, abs=TRIVIAL)
    torch.testing.assert_close(values[:, -1], rewards)  # the last column is the verdict itself


def test_the_objective_is_the_expected_reward():
    model, rewards, _ = tiny_world()
    expected = sum(p * r for p, r in zip(exact.distribution(model, 4).tolist(), rewards.tolist(), strict=True))
    assert exact.objective(model, rewards).item() == pytest.approx(expected, abs=TRIVIAL)
    assert exact.objective(model, rewards.double()).item() == pytest.approx(expected, abs=TRIVIAL)
    first = model(torch.zeros(1, 1, dtype=torch.int64)).softmax(-1).flatten()  # of the first token
    values = exact.exact_action_values(model, rewards)[:: 3**3, 0]  # Q(s_0, a), once for each a
    assert (first @ values).item() == pytest.approx(expected, abs=TRIVIAL)


def test_the_exact_gradient_equals_finite_differences():
    model, rewards, _ = tiny_world()
    gradient = exact.gradient(model, rewards)
    assert [g.shape for g in gradient] == [p.shape for p in trained(model)]
    direction = [torch.randn(p.shape, generator=new_generator(1), dtype=p.dtype) for p in trained(model)]
    step, ends = 1e-5, []
    for sign in (1, -2):  # one step ahead of the model, then one behind
        with torch.no_grad():
            for p, d in zip(trained(model), direction, strict=True):
                p += sign * step * d
        ends.append(exact.objective(model, rewards).item())
    slope = (ends[0] - ends[1]) / (2 * step)
    assert (flat(gradient) @ flat(direction)).item() == pytest.approx(slope, rel=1e-6)
    assert abs(slope) > 1e-3


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: exact.all_sequences(3, 0), "length must be.*at least 1"),
        (lambda m: exact.all_sequences(0, 3), "vocabulary must be.*at least 1"),
        (lambda m: exact.all_sequences(2, 21), r"2\^21 sequences are too many.*1048576"),
        (lambda m: exact.objective(m, torch.ones(80)), r"3\^T.*not 80"),
        (lambda m: exact.objective(m, torch.ones(1)), r"3\^T.*not 1"),
        (lambda m: exact.gradient(m, torch.ones(0)), r"3\^T.*not 0"),
        (lambda m: exact.exact_action_values(m, torch.ones(9, 9)), "one for each"),
    ],
)
def test_wrong_worlds_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call(tiny_world()[0])


def test_the_largest_world_is_still_allowed():
    assert len(exact.all_sequences(2**20, 1)) == 2**20
    with pytest.raises(ValueError, match="1048577.1 sequences.*1048576 at most"):
        exact.all_sequences(2**20 + 1, 1)


# ---------------------------------------------------------------- roll-outs


def check_rollouts_are_exact(vocabulary=3, length=4, seed=0, rollouts=2_000):
    """Roll-out action values of all sequences against exact Q: each within 5 standard errors, all together by χ².

    The standard errors are exact too: the variance of one roll-out's verdict, E[r²] − Q², over N.
    """
    model, rewards, judge = tiny_world(vocabulary, length, seed)
    values = exact.exact_action_values(model, rewards)
    variance = exact.exact_action_values(model, rewards.square()) - values.square()
    everything = exact.all_sequences(vocabulary, length)
    estimate = rollout.action_values(model, everything, judge, rollouts=rollouts, generator=new_generator(seed + 1))
    z = ((estimate - values) / (variance / rollouts).sqrt())[:, :-1]
    assert z.abs().max() < 5, f"off by {z.abs().max():.1f} standard errors"
    assert LEAST_P < stats.chi2.sf(z.square().sum().item(), z.numel()) < 1 - LEAST_P
    assert torch.equal(estimate[:, -1], rewards.float()), "the last column is the verdict itself"


@pytest.mark.parametrize(
    ("vocabulary", "length", "seed", "rollouts"),
    [(3, 4, 0, 2_000), (4, 3, 1, 2_000), (5, 3, 2, 1_000), (3, 5, 3, 500), (2, 2, 4, 5_000)],
)
def test_rollouts_converge_to_the_exact_action_values(vocabulary, length, seed, rollouts):
    check_rollouts_are_exact(vocabulary, length, seed, rollouts)


def test_few_rollouts_are_as_right_on_average():
    """N = 1 and N = 3, many times over: the mean, and its spread, are those of Q."""
    model, rewards, judge = tiny_world()
    sequence, times = torch.tensor([[0, 2, 1, 1]]), 30_000
    number = judge.number(sequence).item()
    values = exact.exact_action_values(model, rewards)[number]
    variance = exact.exact_action_values(model, rewards.square())[number] - values.square()
    for n in (1, 3):
        many = rollout.action_values(model, sequence.repeat(times, 1), judge, rollouts=n, generator=new_generator(n))
        error = (variance / n / times).sqrt()[:-1]
        assert ((many.double().mean(0) - values)[:-1].abs() < 5 * error).all()
        assert many.double().var(0)[:-1].tolist() == pytest.approx((variance / n)[:-1].tolist(), rel=0.05)


def test_completions_of_every_prefix_follow_the_conditional_distribution():
    model, _, table = tiny_world()
    sequences, length = torch.tensor([[2, 0, 1, 1], [0, 0, 2, 1], [1, 2, 2, 0]]), 4
    finished = model.branch(sequences, DRAWS, generator=new_generator(0))  # (T-1, batch, N, T)
    probability = exact.distribution(model, length)
    for t, b in itertools.product(range(1, length), range(len(sequences))):
        begins = (exact.all_sequences(3, length)[:, :t] == sequences[b, :t]).all(1)
        conditional = probability * begins / (probability * begins).sum()
        assert chi_square(table.number(finished[t - 1, b]), conditional) > LEAST_P


def test_completions_do_not_depend_on_each_other():
    """Prefix lengths, sequences and repetitions each draw their own: their last tokens are independent in pairs."""
    model, times = tiny_world()[0], DRAWS
    finished = model.branch(torch.tensor([[2, 0, 1, 1], [0, 0, 2, 1]]), times, generator=new_generator(0))
    last = finished[..., -1]  # (T-1, batch, N)
    pairs = {
        "prefixes": (last[0, 0], last[1, 0]),
        "longer prefixes": (last[1, 0], last[2, 0]),
        "sequences": (last[1, 0], last[1, 1]),
        "repetitions": (last[1, 0, ::2], last[1, 0, 1::2]),
        "positions of two prefixes": (finished[0, 0, :, 2], last[1, 0]),
    }
    for name, (one, two) in pairs.items():
        table = torch.bincount(one * 3 + two, minlength=9).view(3, 3)
        assert stats.chi2_contingency(table.numpy()).pvalue > LEAST_P, name


# ---------------------------------------------------------------- the policy gradient


def expected_gradient(baseline, model, rewards, length=3):
    """What the estimate is on average, and its variance, without sampling: over all pairs of sequences, a batch of 2.

    The values are exact; those of roll-outs are right on average and independent of the tokens they weigh.
    """
    values = exact.exact_action_values(model, rewards)
    everything = exact.all_sequences(model.vocabulary, length)
    probability = exact.distribution(model, length).detach()
    mean, square = 0.0, 0.0
    for i, j in itertools.combinations_with_replacement(range(len(everything)), 2):
        pair, weight = [i, j], probability[i] * probability[j] * (1 if i == j else 2)
        loss = policy_gradient.policy_gradient_loss(model, everything[pair], values[pair], baseline)
        estimate = -flat(torch.autograd.grad(loss, trained(model))) / 2
        mean, square = mean + weight * estimate, square + weight * estimate.square().sum()
    return mean, (square - mean.square().sum()).item()


def check_the_gradient_is_unbiased(baseline="batch"):
    """Averaged over all batches of two by their probabilities, the estimate is ∇J to the rounding error."""
    model, rewards, _ = tiny_world(3, 3)
    mean, _ = expected_gradient(baseline, model, rewards)
    wanted = flat(exact.gradient(model, rewards))
    assert wanted.norm() > 0.02
    torch.testing.assert_close(mean, wanted, atol=TRIVIAL, rtol=0)


@pytest.mark.parametrize("baseline", policy_gradient.BASELINES)
def test_the_policy_gradient_is_right_on_average(baseline):
    check_the_gradient_is_unbiased(baseline)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_baseline_lowers_the_variance_and_leaves_the_mean(seed):
    model, rewards, _ = tiny_world(2, 3, seed)
    means, variances = zip(*(expected_gradient(b, model, rewards) for b in policy_gradient.BASELINES), strict=True)
    for mean in means:
        torch.testing.assert_close(mean, flat(exact.gradient(model, rewards)), atol=TRIVIAL, rtol=0)
    none, batch, prefix = variances
    assert batch < 0.8 * none and prefix < 0.8 * none


def sampled_gradients(baseline, model, judge, batches, batch, rollouts):
    """The estimate from each of many batches that ``model`` wrote and rolled out, (batches, parameters).

    A loss is linear in its advantages, so the gradient of each token's log-probability is computed once for each of
    the V^T sequences; test_the_loss_is_linear_in_the_advantages holds the two against each other.
    """
    generator = new_generator(7)
    sequences = model.sample(batches * batch, 3, generator=generator)
    values = rollout.action_values(model, sequences, judge, rollouts=rollouts, generator=generator).double()
    weights = torch.stack([policy_gradient.advantages(part, baseline) for part in values.split(batch)])
    scores = score_vectors(model, 3)[judge.number(sequences)].view(batches, batch, 3, -1)
    return torch.einsum("nbt,nbtp->np", weights, scores) / batch


def score_vectors(model, length):
    """∇ log G(y_t | Y_{1:t-1}) for every position of every sequence, (V^T, T, parameters)."""
    log_probs = model.log_probs(exact.all_sequences(model.vocabulary, length))
    rows = [flat(torch.autograd.grad(x, trained(model), retain_graph=True)) for x in log_probs.flatten()]
    return torch.stack(rows).view(*log_probs.shape, -1)


@pytest.mark.parametrize("baseline", policy_gradient.BASELINES)
def test_the_loss_is_linear_in_the_advantages(baseline):
    model, _, judge = tiny_world(3, 3)
    sequences = model.sample(5, 3, generator=new_generator(1))
    values = torch.rand(5, 3, generator=new_generator(2), dtype=torch.float64)
    loss = policy_gradient.policy_gradient_loss(model, sequences, values, baseline)
    weights = policy_gradient.advantages(values, baseline)
    log_probs = model.log_probs(sequences)
    torch.testing.assert_close(loss, -(weights * log_probs).sum())
    scores = score_vectors(model, 3)[judge.number(sequences)]
    wanted = -torch.einsum("bt,btp->p", weights, scores)
    torch.testing.assert_close(flat(torch.autograd.grad(loss, trained(model))), wanted, atol=TRIVIAL, rtol=0)


@pytest.mark.parametrize(("baseline", "rollouts"), [*((b, 2) for b in policy_gradient.BASELINES), ("batch", 0)])
def test_the_sampled_policy_gradient_converges_to_the_exact_one(baseline, rollouts):
    """8000 batches of 4: each parameter within 5 standard errors, all together by Hotelling's χ²."""
    model, rewards, judge = tiny_world(3, 3)
    estimates = sampled_gradients(baseline, model, judge, batches=8_000, batch=4, rollouts=rollouts)
    off = estimates.mean(0) - flat(exact.gradient(model, rewards))
    errors = estimates.std(0) / len(estimates) ** 0.5
    assert (off.abs() <= 5 * errors + TRIVIAL).all()
    sizes, directions = torch.linalg.eigh(estimates.T.cov() / len(estimates))
    real = sizes > 1e-6 * sizes.max()  # a softmax has directions in which nothing changes
    statistic = ((off @ directions[:, real]).square() / sizes[real]).sum().item()
    assert stats.chi2.sf(statistic, int(real.sum())) > LEAST_P
    # As many samples as it takes to see a gradient that is a tenth too short.
    short = ((flat(exact.gradient(model, rewards)) / 10) @ directions[:, real]).square() / sizes[real]
    assert stats.chi2.sf(short.sum().item(), int(real.sum())) < LEAST_P


def test_advantages_by_hand():
    values = torch.tensor([[0.1, 0.4, 0.5], [0.3, 0.2, 1.0], [0.8, 0.0, 0.6]])
    assert torch.equal(policy_gradient.advantages(values), values)
    batch = [
        [0.1 - 0.55, 0.4 - 0.1, 0.5 - 0.8],
        [0.3 - 0.45, 0.2 - 0.2, 1.0 - 0.55],
        [0.8 - 0.2, 0.0 - 0.3, 0.6 - 0.75],
    ]
    torch.testing.assert_close(policy_gradient.advantages(values, "batch"), torch.tensor(batch))
    prefix = [[0.1 - 0.55, 0.4 - 0.1, 0.5 - 0.4], [0.3 - 0.45, 0.2 - 0.3, 1.0 - 0.2], [0.8 - 0.2, 0.0 - 0.8, 0.6]]
    torch.testing.assert_close(policy_gradient.advantages(values, "prefix"), torch.tensor(prefix))


def test_advantages_leave_the_values_alone():
    values = torch.rand(4, 3, generator=new_generator(0))
    before = values.clone()
    for baseline in policy_gradient.BASELINES:
        policy_gradient.advantages(values, baseline)
    assert torch.equal(values, before)


@pytest.mark.parametrize(
    ("values", "baseline", "says"),
    [
        (torch.ones(2, 3), "mean", "no baseline 'mean'; there are none, batch, prefix"),
        (torch.ones(3), "none", r"\(batch, time\).*\(3,\)"),
        (torch.tensor([[0.5, float("nan")]]), "none", "action values must be finite, but 1 of 2"),
        (torch.tensor([[0.5], [float("inf")]]), "batch", "action values must be finite"),
        (torch.ones(1, 3), "batch", "at least 2"),
        (torch.ones(1, 3), "prefix", "at least 2"),
    ],
)
def test_wrong_values_are_refused(values, baseline, says):
    with pytest.raises(ValueError, match=says):
        policy_gradient.advantages(values, baseline)


def test_the_loss_refuses_values_of_another_shape():
    model, _, _ = tiny_world()
    with pytest.raises(ValueError, match="differ in shape"):
        policy_gradient.policy_gradient_loss(model, torch.zeros(2, 4, dtype=torch.int64), torch.ones(2, 3))

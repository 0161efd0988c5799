"""Draws are exact: chi-square against enumerated probabilities, on every path through the code."""

import itertools

import pytest
import torch
from scipy import stats

from seqgan_lib import LanguageModel, new_generator, resolve_device, sampling
from seqgan_lib.sampling import draw

# A fixed seed makes each of these tests pass or fail for good. Under a right sampler a p-value falls below this bound
# once in ten thousand seeds; 40 000 draws are enough to push a wrong one far under it (test_a_wrong_sampler_is_caught).
LEAST_P = 1e-4
DRAWS = 40_000


@pytest.fixture(autouse=True, params=["one level", "two levels"])
def levels(request, monkeypatch):
    """Everything is drawn once each way, whichever the number of weights would have chosen."""
    monkeypatch.setattr(sampling, "_ONE_LEVEL", 2**62 if request.param == "one level" else 0)


def chi_square(tokens: torch.Tensor, probabilities: torch.Tensor) -> float:
    """The p-value of the observed counts; outcomes that are expected under 5 times are put together."""
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    expected = probabilities.detach().double() * len(tokens)
    rare = expected < 5
    groups = [(counts[~rare], expected[~rare]), (counts[rare].sum()[None], expected[rare].sum()[None])]
    observed, wanted = (torch.cat(parts) for parts in zip(*groups, strict=True))
    keep = wanted > 0
    assert observed[~keep].sum() == 0, "an outcome of probability 0 was drawn"
    return stats.chisquare(observed[keep], wanted[keep] * observed.sum() / wanted[keep].sum()).pvalue


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 5, 7, 16, 17, 50, 5000])
def test_draws_follow_the_softmax(vocabulary):
    # Sizes below, at and above a whole number of blocks: the last block is full for some and short for others.
    generator = new_generator(vocabulary)
    logits = 2 * torch.randn(vocabulary, generator=generator)
    uniform = torch.rand(DRAWS, generator=generator, dtype=torch.float64)
    tokens = torch.cat([draw(logits.repeat(len(u), 1), u) for u in uniform.split(4000)])
    assert tokens.dtype == torch.int64
    if vocabulary > 1:
        assert chi_square(tokens, logits.softmax(0)) > LEAST_P
    else:
        assert (tokens == 0).all()


@pytest.mark.parametrize("vocabulary", [2, 9, 100, 5000])
def test_a_draw_is_the_inverse_of_the_cumulative_distribution(vocabulary):
    generator = new_generator(1)
    logits = torch.randn(200, vocabulary, generator=generator, dtype=torch.float64)
    uniform = torch.rand(200, generator=generator, dtype=torch.float64)
    expected = torch.searchsorted(logits.softmax(1).cumsum(1), uniform[:, None], right=True).squeeze(1)
    assert (draw(logits, uniform) == expected).all()


@pytest.mark.parametrize("vocabulary", [1, 3, 23, 5000])
def test_many_draws_from_a_row_are_those_from_copies_of_it(vocabulary):
    logits = 3 * torch.randn(40, vocabulary, generator=new_generator(0))
    uniform = torch.rand(40, 6, generator=new_generator(1), dtype=torch.float64)
    copies = draw(logits.repeat_interleave(6, 0), uniform.flatten())
    assert torch.equal(draw(logits, uniform), copies.view(40, 6))


@pytest.mark.parametrize("vocabulary", [3, 10, 23, 5000])
def test_the_ends_of_the_unit_interval_stay_inside_the_vocabulary(vocabulary):
    uniform = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    logits = torch.zeros(2, vocabulary)
    assert draw(logits, uniform).tolist() == [0, vocabulary - 1]


@pytest.mark.parametrize("vocabulary", [23, 4999, 5000])
def test_rounding_never_leaves_the_vocabulary(vocabulary):
    # Sums that are not exact, and the largest number under 1: where a block's own sum falls short of its part.
    logits = 3 * torch.randn(500, vocabulary, generator=new_generator(0))
    tokens = draw(logits, torch.full((500,), 1 - 2**-53, dtype=torch.float64))
    assert 0 <= tokens.min() and tokens.max() < vocabulary


def test_a_first_block_without_weight_is_passed_over():
    logits = torch.full((1, 40), -torch.inf)
    logits[0, 30] = 0.0
    assert draw(logits, torch.zeros(1, dtype=torch.float64)).item() == 30


@pytest.mark.parametrize("bad", [[0.0, float("nan")], [0.0, float("inf")], [-float("inf"), -float("inf")]])
def test_logits_that_are_no_distribution_are_refused(bad):
    with pytest.raises(FloatingPointError, match="nothing to draw from"):
        draw(torch.tensor([[0.0, 0.0], bad]), torch.tensor([0.5, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("levels", ["two levels"], indirect=True)  # a GPU draws in no other way
@pytest.mark.parametrize("vocabulary", [1, 3, 23, 50, 5000])  # the last block full or short
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_where_nobody_looks_they_become_some_token_of_the_vocabulary(vocabulary, bad, monkeypatch):
    """As on a GPU, where an index out of bounds would end the process, and a training looks once a round."""
    monkeypatch.setattr(torch.Tensor, "all", lambda self: True)
    logits = torch.zeros(3, vocabulary)
    logits[0], logits[1, vocabulary // 2] = bad, bad
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    for tokens in (draw(logits.clone(), uniform), draw(logits, uniform[:, None].repeat(1, 4))):
        assert 0 <= tokens.min() and tokens.max() < vocabulary


def test_impossible_tokens_are_never_drawn():
    logits = torch.full((1000, 40), -torch.inf)
    logits[:, [3, 17, 31]] = torch.tensor([0.0, 1.0, 2.0])
    uniform = torch.linspace(0, 1 - 2**-53, 1000, dtype=torch.float64)
    tokens = draw(logits, uniform)
    assert set(tokens.tolist()) == {3, 17, 31}
    assert (tokens.diff() >= 0).all()


def test_extreme_logits_neither_overflow_nor_vanish():
    logits = torch.tensor([[1e4, 0.0, -1e4], [-1e4, -1e4, -1e4 + 50]])
    assert draw(logits, torch.tensor([0.5, 0.5], dtype=torch.float64)).tolist() == [0, 2]


def test_a_wrong_sampler_is_caught():
    """The statistics have teeth: a softmax 2 % too warm fails the very test that the right one passes."""
    generator = new_generator(0)
    logits = 2 * torch.randn(50, generator=generator)
    uniform = torch.rand(DRAWS, generator=generator, dtype=torch.float64)
    assert chi_square(draw((logits / 1.02).repeat(DRAWS, 1), uniform), logits.softmax(0)) < LEAST_P


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("rows_at_once", [4096, 10**9])
def test_sequences_follow_the_enumerated_distribution(temperature, rows_at_once, monkeypatch):
    monkeypatch.setattr(LanguageModel, "_rows_at_once", lambda self: rows_at_once)
    model = LanguageModel(4, generator=new_generator(0), std=1.0)
    sequences = torch.tensor(list(itertools.product(range(4), repeat=3)))
    # At a temperature the probability is no longer that of log_probs: sharpen divides the logits instead.
    tempered = LanguageModel(4, generator=new_generator(0), std=1.0).sharpen(1 / temperature)
    probabilities = tempered.log_probs(sequences).sum(1).exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-6)
    written = model.sample(DRAWS, 3, generator=new_generator(5), temperature=temperature)
    assert chi_square((written * torch.tensor([16, 4, 1])).sum(1), probabilities) > LEAST_P


def test_completions_follow_the_conditional_distribution():
    model = LanguageModel(3, generator=new_generator(3), std=1.0, start_token=2)
    prefix = torch.tensor([[2, 1]])
    tails = torch.tensor(list(itertools.product(range(3), repeat=2)))
    whole = torch.cat([prefix.expand(len(tails), -1), tails], 1)
    probabilities = model.log_probs(whole)[:, 2:].sum(1).exp()
    written = model.complete(prefix.expand(DRAWS, -1), 4, generator=new_generator(0))
    assert (written[:, :2] == prefix).all()
    assert chi_square((written[:, 2:] * torch.tensor([3, 1])).sum(1), probabilities) > LEAST_P


def test_rewriting_follows_its_definition():
    """Kept with probability ω, else drawn given what was kept or drawn before: all 9 outcomes of two tokens."""
    model, omega, truth = LanguageModel(3, generator=new_generator(4), std=1.0), 0.3, torch.tensor([[1, 2]])
    pairs = torch.tensor(list(itertools.product(range(3), repeat=2)))
    drawn = model.log_probs(pairs).exp()
    probabilities = (omega * (pairs == truth) + (1 - omega) * drawn).prod(1)
    keep = torch.rand(DRAWS, 2, generator=new_generator(1)) < omega
    mixed = model.rewrite(truth.expand(DRAWS, -1), keep, generator=new_generator(0))
    assert chi_square((mixed * torch.tensor([3, 1])).sum(1), probabilities) > LEAST_P


def test_a_look_at_what_is_kept_changes_nothing():
    """On a CPU only the rows that need a draw get one: the tokens are those of drawing for all and keeping some."""
    model = LanguageModel(50, generator=new_generator(0), std=1.0)
    truth, keep = model.sample(40, 8, generator=new_generator(1)), torch.rand(40, 8, generator=new_generator(2)) < 0.7
    keep[:, 3], keep[:, 5] = True, False  # nothing, and everything, to draw
    mixed = model.rewrite(truth, keep, generator=new_generator(3))
    uniform = torch.rand(40, 8, generator=new_generator(3), dtype=torch.float64)
    state, token = model.initial_state(40), torch.zeros(40, dtype=torch.int64)
    for t in range(8):
        logits, state = model.step(token, state)
        token = torch.where(keep[:, t], truth[:, t], draw(logits, uniform[:, t]))
        assert torch.equal(mixed[:, t], token)


def test_the_same_seed_writes_the_same_and_global_randomness_is_left_alone():
    model = LanguageModel(30, generator=new_generator(0))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = (model.sample(50, 6, generator=new_generator(9)) for _ in range(2))
    assert (first == second).all()
    assert (model.sample(50, 6, generator=new_generator(10)) != first).any()
    assert (torch.get_rng_state() == before).all()


def test_what_is_written_does_not_depend_on_the_slices(monkeypatch):
    model = LanguageModel(30, generator=new_generator(0), std=1.0)
    whole = model.sample(100, 6, generator=new_generator(9))
    monkeypatch.setattr(LanguageModel, "_rows_at_once", lambda self: 7)
    assert (model.sample(100, 6, generator=new_generator(9)) == whole).all()


def test_devices():
    assert resolve_device("auto").type in ("cpu", "cuda")
    assert resolve_device("cpu") == torch.device("cpu")
    for elsewhere in ("mps", "meta", "gpu"):
        with pytest.raises(ValueError, match=f'no device "{elsewhere}"; use'):
            resolve_device(elsewhere)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU"):
            resolve_device("cuda")


@pytest.mark.parametrize("size", [1.0, 50.0, 90.0, 1e4])
def test_large_logits_are_drawn_with_more_care(size):
    """Where the exponential of a logit, unshifted, would overflow or vanish, the model still draws its distribution."""
    model = LanguageModel(4, generator=new_generator(0))
    with torch.no_grad():
        for sign in (1, -1):  # all logits large, or all very negative
            model.output_bias.copy_(sign * size + torch.tensor([0.0, 1.0, 2.0, -size]))
            tokens = model.sample(DRAWS, 1, generator=new_generator(1)).flatten()
            with_care = model(torch.zeros(1, 1, dtype=torch.int64))[0, 0].double().softmax(0)
            assert chi_square(tokens, with_care) > LEAST_P
    with pytest.raises(FloatingPointError, match="nothing to draw from"):
        draw(torch.full((1, 4), 200.0), torch.tensor([0.5], dtype=torch.float64), shift=False)

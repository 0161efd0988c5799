"""BLEU and self-BLEU against NLTK's, and the share of distinct sequences: how like the data, how like each other."""

import time

import pytest
import torch
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from seqgan_lib import LanguageModel, new_generator, random_oracle
from seqgan_lib.bleu import Bleu, self_bleu
from seqgan_lib.metrics import grade

METHOD_1 = SmoothingFunction().method1


def nltk_bleu(references, hypothesis, order):
    return sentence_bleu(references, hypothesis, weights=[1 / order] * order, smoothing_function=METHOD_1)


def rows(*tokens):
    return torch.tensor(tokens, dtype=torch.int64)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_bleu_equals_nltk(order):
    """60 random cases: few tokens and many, repeated and unknown ones, hypotheses of every length up to T."""
    lengths = set()
    for seed in range(60):
        generator = new_generator(1000 * order + seed)
        vocabulary, length, count = (int(torch.randint(1, n, (), generator=generator)) for n in (8, 9, 9))
        references = torch.randint(vocabulary, (count, length), generator=generator)
        shorter = int(torch.randint(1, length + 1, (), generator=generator))
        lengths.add((shorter, length))
        # The token that equals ``vocabulary`` is in no reference.
        hypotheses = torch.randint(vocabulary + 1, (5, shorter), generator=generator)
        ours = Bleu(references, order)(hypotheses)
        assert ours.shape == (5,) and ours.dtype == torch.float64
        for score, hypothesis in zip(ours.tolist(), hypotheses.tolist(), strict=True):
            assert score == pytest.approx(nltk_bleu(references.tolist(), hypothesis, order), abs=1e-9)
    assert any(shorter < length for shorter, length in lengths)
    assert order == 1 or any(shorter < order for shorter, _ in lengths), "some have no n-gram of the highest order"


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_self_bleu_equals_nltk_with_the_row_left_out(order):
    for seed in range(40):
        generator = new_generator(1000 * order + seed)
        vocabulary, length = (int(torch.randint(1, n, (), generator=generator)) for n in (8, 9))
        count = int(torch.randint(2, 9, (), generator=generator))
        sequences = torch.randint(vocabulary, (count, length), generator=generator)
        ours = self_bleu(sequences, order)
        assert ours.shape == (count,) and ours.dtype == torch.float64
        for i, score in enumerate(ours.tolist()):
            others = [row for j, row in enumerate(sequences.tolist()) if j != i]
            assert score == pytest.approx(nltk_bleu(others, sequences[i].tolist(), order), abs=1e-9)


def test_long_sequences_over_a_wide_vocabulary_equal_nltk():
    generator = new_generator(0)
    references = torch.randint(5_000, (100, 32), generator=generator)
    hypotheses = torch.cat([references[:20, :16], references[20:40, 16:]], 1)  # halves of two references
    hypotheses[::2, 3] = 2**31 - 1  # the largest token that is allowed
    ours = Bleu(references)(hypotheses)
    assert ours.min() > 0.1
    for score, hypothesis in zip(ours.tolist(), hypotheses.tolist(), strict=True):
        assert score == pytest.approx(nltk_bleu(references.tolist(), hypothesis, 4), abs=1e-9)


def test_bleu_by_hand():
    """Of 5 5 7 9, the reference 5 7 5 5 has three words, the pairs 5 5 and 5 7, and no triple."""
    (score,) = Bleu(rows([5, 7, 5, 5]), order=3)(rows([5, 5, 7, 9])).tolist()
    assert score == pytest.approx((3 / 4 * 2 / 3 * 0.1 / 2) ** (1 / 3))


def test_a_repeated_word_counts_as_often_as_one_reference_has_it():
    """Clipping is by the reference that has it most often, and not by all together."""
    bleu = Bleu(rows([1, 1, 2, 3], [1, 4, 4, 4]), order=1)
    assert bleu(rows([1, 1, 1, 1], [4, 4, 4, 4], [1, 1, 4, 4])).tolist() == pytest.approx([0.5, 0.75, 1.0])


def test_the_ends_of_the_scale():
    references = rows([1, 2, 3, 4], [4, 3, 2, 1])
    bleu = Bleu(references)
    assert bleu(references).tolist() == pytest.approx([1, 1])
    assert bleu(rows([5, 6, 7, 8], [0, 0, 0, 0])).tolist() == [0, 0], "not a token in common: 0 in spite of smoothing"
    assert 0 < bleu(rows([4, 2, 1, 3])).item() < 0.3
    assert bleu(rows([1, 2])).item() < bleu(rows([1, 2, 3])).item() < 1, "brevity is punished"


def test_self_bleu_knows_a_set_that_repeats_itself():
    assert self_bleu(rows([1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8])).tolist() == pytest.approx([1, 1, 0])
    generator = new_generator(0)
    few, many = (torch.randint(v, (200, 6), generator=generator) for v in (3, 50))
    assert self_bleu(few).mean() > self_bleu(many).mean() + 0.3


def test_the_order_of_the_references_does_not_matter():
    references = torch.randint(4, (30, 6), generator=new_generator(0))
    hypotheses = torch.randint(4, (20, 6), generator=new_generator(1))
    assert torch.equal(Bleu(references)(hypotheses), Bleu(references.flip(0))(hypotheses))
    assert torch.equal(Bleu(references)(hypotheses[:3]), Bleu(references)(hypotheses)[:3])


def test_ten_thousand_hypotheses_against_sixteen_thousand_references_take_seconds():
    generator = new_generator(0)
    references = torch.randint(5_000, (16_000, 20), generator=generator)
    hypotheses = torch.randint(5_000, (10_000, 20), generator=generator)
    start = time.perf_counter()
    scores = Bleu(references)(hypotheses)
    assert time.perf_counter() - start < 10
    assert scores.shape == (10_000,)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Bleu(torch.zeros(0, 4, dtype=torch.int64)), r"references must have shape.*\(0, 4\)"),
        (lambda: Bleu(torch.zeros(4, 0, dtype=torch.int64)), r"references must have shape.*\(4, 0\)"),
        (lambda: Bleu([]), "references must be an int64 tensor.*list"),
        (lambda: Bleu(torch.zeros(2, 3)), "references must be an int64 tensor.*float32"),
        (lambda: Bleu(rows([1, -2])), "references holds tokens -2"),
        (lambda: Bleu(rows([1, 2]), order=0), "order must be.*at least 1"),
        (lambda: Bleu(rows([1, 2]), order=1.5), "order must be"),
        (lambda: Bleu(rows([1, 2]))(rows([1, 2, 3])), "hypotheses of 3 tokens are longer than the references of 2"),
        (lambda: Bleu(rows([1, 2]))(torch.zeros(0, 2, dtype=torch.int64)), r"\(0, 2\)"),
        (lambda: Bleu(rows([1, 2]))(rows([1, -1])), "-1 to 1"),
        (lambda: self_bleu(rows([1, 2])), "at least 2"),
        (lambda: self_bleu(torch.zeros(0, 2, dtype=torch.int64)), "at least 2"),
        (lambda: self_bleu([[1, 2], [2, 1]]), "int64 tensor.*list"),
        (lambda: self_bleu(rows([1, 2], [1, 2]), order=0), "order must be"),
    ],
)
def test_wrong_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


# ---------------------------------------------------------------- distinct sequences


def test_distinct_is_the_share_of_different_sequences():
    oracle = random_oracle(6, generator=new_generator(0))
    model = LanguageModel(6, generator=new_generator(1), std=1.0)
    held_out = oracle.sample(80, 3, generator=new_generator(2))
    own = model.sample(80, 3, generator=new_generator(3))
    grades = grade(model, oracle, held_out, generator=new_generator(3))
    assert list(grades) == ["nll_oracle", "held_out", "entropy", "distinct"]
    assert grades["distinct"] == len({tuple(row) for row in own.tolist()}) / 80
    assert 0.1 < grades["distinct"] < 0.9


def test_a_model_that_repeats_itself_is_seen_through():
    oracle = random_oracle(6, generator=new_generator(0))
    held_out = oracle.sample(80, 3, generator=new_generator(2))
    stuck = LanguageModel(6, generator=new_generator(1))
    with torch.no_grad():
        stuck.output_bias[4] += 100
    assert grade(stuck, oracle, held_out, generator=new_generator(3))["distinct"] == 1 / 80


# ---------------------------------------------------------------- on a GPU


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cpu_and_cuda_agree():
    references = torch.randint(5, (50, 8), generator=new_generator(0))
    hypotheses = torch.randint(6, (40, 8), generator=new_generator(1))
    torch.testing.assert_close(Bleu(references.cuda())(hypotheses.cuda()).cpu(), Bleu(references)(hypotheses))

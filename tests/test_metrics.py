"""Grades of lines where there is no oracle, each against a slow version or NLTK's."""

import time

import pytest
import torch
from nltk import edit_distance, ngrams
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from seqgan_lib import LanguageModel, new_generator
from seqgan_lib.bleu import Bleu, self_bleu, self_bleu_scores
from seqgan_lib.metrics import LineGrader, distinct_ngrams, mean_nll, nearest_lines, squared_error

METHOD_1 = SmoothingFunction().method1


def some(seed, count, length, vocabulary=6):
    return torch.randint(vocabulary, (count, length), generator=new_generator(seed))


def rows(*tokens):
    return torch.tensor(tokens, dtype=torch.int64)


def grams(lines, n):
    """All n-grams, line by line."""
    return [list(ngrams(line, n)) for line in lines.tolist()]


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_distinct_ngrams_are_counted(n):
    for seed in range(20):
        lines = some(seed, 1 + seed, 7, vocabulary=1 + seed % 4)
        all_of_them = [gram for line in grams(lines, n) for gram in line]
        assert distinct_ngrams(lines, n) == len(set(all_of_them)) / len(all_of_them)


def test_ngrams_that_stand_in_some_reference():
    for seed in range(20):
        references, lines = some(seed, 12, 6, 4), some(100 + seed, 9, 5, 5)
        for n in range(1, 5):
            there = {gram for line in grams(references, n) for gram in line}
            known = Bleu(references, n).known(lines)
            assert known.tolist() == [[gram in there for gram in line] for line in grams(lines, n)]


def test_all_orders_of_bleu_at_once():
    references, lines = some(0, 30, 8), some(1, 20, 8)
    for scores, of_order in (
        (Bleu(references, 4).scores(lines), lambda n: Bleu(references, n)(lines)),
        (self_bleu_scores(lines, 4), lambda n: self_bleu(lines, n)),
    ):
        assert list(scores) == [1, 2, 3, 4]
        for n, score in scores.items():
            assert torch.equal(score, of_order(n))


@pytest.mark.parametrize(("length", "other"), [(1, 1), (5, 7), (7, 5), (20, 20), (32, 32), (62, 40), (63, 63)])
def test_the_nearest_line_is_the_one_of_least_edit_distance(length, other):
    for vocabulary in (2, 5, 40):
        lines, references = some(length, 6, length, vocabulary), some(other + 1, 15, other, vocabulary)
        references[3, : min(length, other) // 2] = lines[0, : min(length, other) // 2]
        distances = [[edit_distance(a, b) for b in references.tolist()] for a in lines.tolist()]
        places, least = nearest_lines(lines, references)
        assert least.tolist() == [min(row) for row in distances]
        assert places.tolist() == [row.index(min(row)) for row in distances], "the first of those equally near"


def test_a_line_that_is_shifted_is_near():
    place, distance = nearest_lines(rows([1, 2, 3, 4, 5]), rows([9, 1, 2, 3, 4], [1, 2, 9, 9, 9]))
    assert (place.item(), distance.item()) == (0, 2)


def test_squared_error_is_to_the_nearest():
    lines, references = rows([0, 0], [10, 12], [5, 5]), rows([0, 2], [10, 10])
    assert squared_error(lines, references).tolist() == pytest.approx([(0 + 4) / 2, (0 + 4) / 2, (25 + 9) / 2])
    lines, references = some(0, 1_500, 8, 88), some(1, 40, 8, 88)
    slow = ((lines[:, None] - references[None]) ** 2).double().mean(2).amin(1)
    torch.testing.assert_close(squared_error(lines, references), slow)


def test_a_grader_compares_lines_with_nltk():
    train, held_out, lines = some(0, 40, 7, 5), some(1, 25, 7, 5), some(2, 12, 7, 5)
    lines[3], lines[4] = train[7], lines[5]
    row = LineGrader(train, held_out, pitches=True).compare(lines)
    assert list(row) == ["distinct", "distinct_2", "distinct_3", "bleu_2", "bleu_3", "bleu_4", "self_bleu_2",
                         "self_bleu_3", "self_bleu_4", "copied", "overlap_4", "squared_error"]  # fmt: skip
    hypotheses = lines.tolist()
    for order in (2, 3, 4):
        how = {"weights": [1 / order] * order, "smoothing_function": METHOD_1}
        against_data = [sentence_bleu(held_out.tolist(), line, **how) for line in hypotheses]
        others = [hypotheses[:k] + hypotheses[k + 1 :] for k in range(12)]
        each_other = [sentence_bleu(*pair, **how) for pair in zip(others, hypotheses, strict=True)]
        assert row[f"bleu_{order}"] == pytest.approx(sum(against_data) / 12, abs=1e-9)
        assert row[f"self_bleu_{order}"] == pytest.approx(sum(each_other) / 12, abs=1e-9)
    assert row["distinct"] == len({tuple(line) for line in hypotheses}) / 12 < 1
    assert row["copied"] == sum(line in train.tolist() for line in hypotheses) / 12 >= 1 / 12
    learned = {gram for line in grams(train, 4) for gram in line}
    mine = [gram in learned for line in grams(lines, 4) for gram in line]
    assert row["overlap_4"] == pytest.approx(sum(mine) / len(mine))
    assert row["squared_error"] == pytest.approx(squared_error(lines, held_out).mean().item())


def test_the_training_lines_are_copies_of_themselves():
    train = some(0, 30, 6)
    row = LineGrader(train, some(1, 20, 6)).compare(train)
    assert row["copied"] == row["overlap_4"] == 1 and "squared_error" not in row
    assert LineGrader(train, train).compare(train)["bleu_4"] == pytest.approx(1)


def test_a_model_is_graded_by_as_many_lines_as_are_held_out():
    model = LanguageModel(6, generator=new_generator(0), std=1.0)
    train, held_out = some(0, 30, 6), some(1, 20, 6)
    grader = LineGrader(train, held_out)
    row = grader(model, generator=new_generator(5))
    own = model.sample(20, 6, generator=new_generator(5))
    assert row == {"held_out": mean_nll(model, held_out), "entropy": mean_nll(model, own), **grader.compare(own)}


def test_short_lines_have_the_ngrams_that_fit():
    row = LineGrader(some(0, 30, 2), some(1, 20, 2)).compare(some(2, 10, 2))
    assert "bleu_2" in row and "bleu_3" not in row and "distinct_3" not in row and "overlap_4" not in row


def test_thousands_of_lines_take_seconds():
    train, held_out, lines = some(0, 12_000, 20, 4_000), some(1, 1_500, 20, 4_000), some(2, 1_500, 20, 4_000)
    begin = time.process_time()
    grader = LineGrader(train, held_out)
    grader.compare(lines)
    assert time.process_time() - begin < 5
    begin = time.process_time()
    nearest_lines(lines[:200], train)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: distinct_ngrams(rows([1, 2]), 3), "n-grams of 3 tokens do not fit in lines of 2"),
        (lambda: distinct_ngrams(rows([1, 2]), 0), "n must be"),
        (lambda: squared_error(some(0, 2, 3), some(1, 2, 4)), "lines of 3 tokens have no distance to references of 4"),
        (lambda: nearest_lines(some(0, 2, 64), some(1, 2, 64)), "lines of 64 tokens are too long"),
        (lambda: nearest_lines(some(0, 2, 4), []), "references must be an int64 tensor.*list"),
        (lambda: Bleu(some(0, 4, 3), 4).known(some(0, 4, 3)), "n-grams of 4 tokens do not fit in sequences of 3"),
        (lambda: LineGrader(some(0, 4, 5), some(0, 4, 5)).compare(some(0, 1, 5)), "at least 2"),
    ],
)
def test_wrong_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()

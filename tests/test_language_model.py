"""The model against PyTorch's own modules, against enumeration, and against the published oracle's reference."""

import itertools

import pytest
import torch
from torch import nn

from seqgan_lib import LanguageModel, language_model, metrics, new_generator, random_oracle
from seqgan_lib.metrics import divergence_by_position, grade
from seqgan_lib.mle import scheduled_inputs


@pytest.fixture
def model():
    return LanguageModel(11, generator=new_generator(0), embedding=5, hidden=7, start_token=2, std=0.8)


@pytest.fixture
def sequences(model):
    return model.sample(6, 8, generator=new_generator(1))


def test_probabilities_of_all_sequences_sum_to_one():
    model = random_oracle(3, generator=new_generator(0)).double()
    everything = torch.tensor(list(itertools.product(range(3), repeat=5)))
    assert model.log_probs(everything).sum(1).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_step_by_step_equals_all_at_once(model, sequences):
    state, token, logits = model.initial_state(6), torch.full((6,), 2), []
    for t in range(8):
        out, state = model.step(token, state)
        logits.append(out)
        token = sequences[:, t]
    torch.testing.assert_close(torch.stack(logits, 1), model(sequences))


def test_log_probs_are_the_log_softmax_at_the_tokens(model, sequences):
    expected = model(sequences).log_softmax(-1).gather(-1, sequences[..., None]).squeeze(-1)
    torch.testing.assert_close(model.log_probs(sequences), expected)
    with torch.no_grad():
        torch.testing.assert_close(model.log_probs(sequences), expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradients_equal_the_textbook(model, sequences, weighted):
    model = model.double()
    weights = torch.rand(6, 8, generator=new_generator(2), dtype=torch.float64) if weighted else None
    per_token = nn.functional.cross_entropy(model(sequences).flatten(0, 1), sequences.flatten(), reduction="none")
    textbook = (per_token * weights.flatten()).sum() if weighted else per_token.mean()
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(textbook, parameters)
    loss = model.nll(sequences, weights=weights)
    torch.testing.assert_close(loss, textbook)
    for got, want in zip(torch.autograd.grad(loss * 3, parameters), expected, strict=True):
        torch.testing.assert_close(got, want * 3)
    with torch.no_grad():
        torch.testing.assert_close(model.nll(sequences, weights=weights), textbook)


def test_loss_and_gradients_are_the_same_in_slices(model, sequences, monkeypatch):
    parameters = [p for p in model.parameters() if p.requires_grad]
    whole = model.nll(sequences)
    expected = torch.autograd.grad(whole, parameters)
    monkeypatch.setattr(language_model, "_LOGITS_AT_ONCE", 5 * 12)  # five of 48 rows at once
    torch.testing.assert_close(model.nll(sequences), whole)
    for got, want in zip(torch.autograd.grad(model.nll(sequences), parameters), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_extreme_logits_have_finite_losses(model, sequences):
    with torch.no_grad():
        model.output_bias.copy_(torch.linspace(-1000, 1000, 11))
    expected = nn.functional.cross_entropy(model(sequences).flatten(0, 1), sequences.flatten())
    assert expected.isfinite()
    torch.testing.assert_close(model.nll(sequences), expected)
    with torch.no_grad():
        torch.testing.assert_close(-model.log_probs(sequences).mean(), expected)


def test_second_derivatives_of_the_loss_are_refused(model, sequences):
    (gradient,) = torch.autograd.grad(model.nll(sequences), model.output, create_graph=True)
    with pytest.raises(RuntimeError, match="grad"):
        gradient.square().sum().backward()


def test_weights_of_another_precision_are_taken(model, sequences):
    ones = torch.ones(sequences.shape, dtype=torch.float64)
    torch.testing.assert_close(model.nll(sequences, weights=ones), model.nll(sequences) * sequences.numel())


def test_log_probs_have_the_gradient_of_the_loss(model, sequences):
    parameters = [p for p in model.parameters() if p.requires_grad]
    one = torch.autograd.grad(-model.log_probs(sequences).mean(), parameters)
    two = torch.autograd.grad(model.nll(sequences), parameters)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b)


def test_weights_start_from_the_normal_distribution_asked_for():
    model = LanguageModel(400, generator=new_generator(0), std=0.1)
    drawn = torch.cat([p.flatten() for p in model.parameters() if p.requires_grad])
    assert drawn.std().item() == pytest.approx(0.1, rel=0.02)
    assert all(p.std() > 0.05 for p in model.parameters() if p.requires_grad), "biases too"
    assert abs(drawn.mean().item()) < 0.002
    assert not model.lstm.bias_hh_l0.any() and not model.lstm.bias_hh_l0.requires_grad


def test_sharper_is_colder(sequences):
    cold = random_oracle(11, generator=new_generator(0))
    logits = cold(sequences)
    torch.testing.assert_close(cold.sharpen(2.0)(sequences), 2 * logits)


def test_the_oracle_is_not_trained():
    assert not any(p.requires_grad for p in random_oracle(5, generator=new_generator(0)).parameters())


def test_complete_and_rewrite_keep_what_they_are_told(model, sequences):
    assert (model.complete(sequences, 8, generator=new_generator(0)) == sequences).all()
    keep = torch.rand(sequences.shape, generator=new_generator(1)) < 0.5
    rewritten = model.rewrite(sequences, keep, generator=new_generator(0))
    assert (rewritten[keep] == sequences[keep]).all() and (rewritten != sequences).any()
    untouched = sequences.clone()
    model.complete(sequences[:, :3], 8, generator=new_generator(0))
    assert (sequences == untouched).all()


def test_the_grades_are_the_means_they_say():
    oracle, model = (random_oracle(6, generator=new_generator(seed)) for seed in (0, 1))
    held_out = oracle.sample(50, 4, generator=new_generator(2))
    own = model.sample(50, 4, generator=new_generator(3))
    grades = grade(model, oracle, held_out, generator=new_generator(3))
    assert grades["nll_oracle"] == pytest.approx(-oracle.log_probs(own).mean().item(), abs=1e-6)
    assert grades["held_out"] == pytest.approx(-model.log_probs(held_out).mean().item(), abs=1e-6)
    assert grades["entropy"] == pytest.approx(-model.log_probs(own).mean().item(), abs=1e-6)


@pytest.mark.parametrize("at_once", [2**22, 1])
def test_divergence_by_position_equals_the_sum_over_the_vocabulary(at_once, monkeypatch):
    monkeypatch.setattr(metrics, "_LOGITS_AT_ONCE", at_once)
    p, q = (random_oracle(6, generator=new_generator(seed)).double() for seed in (0, 1))
    pasts = p.sample(9, 4, generator=new_generator(3))
    expected = torch.zeros(4, dtype=torch.float64)
    for row in pasts:
        for t in range(4):
            a, b = (m(row[None])[0, t].softmax(0) for m in (p, q))
            expected[t] += (a * (a.log() - b.log())).sum() / 9
    torch.testing.assert_close(divergence_by_position(p, q, pasts), expected)
    assert divergence_by_position(p, p, pasts).abs().max() < 1e-12


def int_rows(*rows):
    return torch.tensor(rows, dtype=torch.int64)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (int_rows([0, 11]), "0 to 11.*0 to 10"),
        (int_rows([0, -1]), "-1 to 0"),
        (torch.zeros(2, 3), "int64.*float32"),
        (torch.zeros(3, dtype=torch.int64), r"\(batch, time\).*\(3,\)"),
        (torch.zeros(0, 3, dtype=torch.int64), r"\(0, 3\)"),
        (torch.zeros(3, 0, dtype=torch.int64), r"\(3, 0\)"),
        ([[1, 2]], "list"),
    ],
)
def test_wrong_tokens_are_refused(model, wrong, says):
    for use in (model.log_probs, model.nll, lambda x: model.rewrite(x, None, generator=new_generator(0))):
        with pytest.raises(ValueError, match=says):
            use(wrong)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m, g: m.sample(4, 3, generator=g, temperature=0), "temperature.*above 0.*0"),
        (lambda m, g: m.sample(4, 3, generator=g, temperature=-1.0), "temperature"),
        (lambda m, g: m.sample(4, 3, generator=g, temperature=float("nan")), "temperature"),
        (lambda m, g: m.sample(4, 0, generator=g), "length must be.*at least 1"),
        (lambda m, g: m.sample(0, 3, generator=g), "count must be.*at least 1"),
        (lambda m, g: m.sample(4, 2.5, generator=g), "length.*2.5"),
        (lambda m, g: m.complete(int_rows([1, 2, 3]), 2, generator=g), "length must be.*at least 3"),
        (lambda m, g: scheduled_inputs(m, int_rows([1]), 1.5, generator=g), "0 to 1.*1.5"),
        (lambda m, g: m.initial_state(0), "batch"),
        (lambda m, g: m.step(torch.tensor([11]), m.initial_state(1)), "0 to 10"),
        (lambda m, g: m.step(torch.tensor([[1]]), m.initial_state(1)), "shape"),
        (lambda m, g: m.nll(int_rows([1, 2]), inputs=int_rows([1])), "differ in shape"),
        (lambda m, g: m.nll(int_rows([1, 2]), weights=torch.ones(2)), "differ in shape"),
        (lambda m, g: m.nll(int_rows([1, 2]), inputs=int_rows([1, 11])), "inputs holds tokens"),
        (lambda m, g: m.rewrite(int_rows([1, 2]), torch.ones(1, 3, dtype=torch.bool), generator=g), "keep must be"),
        (lambda m, g: m.rewrite(int_rows([1, 2]), torch.ones(1, 2), generator=g), "keep must be"),
        (lambda m, g: divergence_by_position(m, m, int_rows([11])), "0 to 10"),
        (lambda m, g: m.sharpen(0), "sharpness"),
        (lambda m, g: LanguageModel(0, generator=g), "vocabulary"),
        (lambda m, g: LanguageModel(5, generator=g, start_token=5), "start_token.*0 to 4"),
        (lambda m, g: LanguageModel(5, generator=g, std=0), "std"),
    ],
)
def test_wrong_settings_are_refused(model, call, says):
    with pytest.raises(ValueError, match=says):
        call(model, new_generator(0))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cpu_and_cuda_agree(model, sequences):
    on_cpu = model.log_probs(sequences)
    written = model.sample(1000, 8, generator=new_generator(4))
    on_gpu = model.to("cuda")
    torch.testing.assert_close(on_gpu.log_probs(sequences.cuda()).cpu(), on_cpu, atol=1e-5, rtol=0)
    again = on_gpu.sample(1000, 8, generator=new_generator(4)).cpu()
    assert (again == written).float().mean() > 0.99  # the same uniform numbers; rounding may move a rare boundary
    torch.testing.assert_close(on_gpu.nll(sequences.cuda()).cpu(), -on_cpu.mean(), atol=1e-5, rtol=0)

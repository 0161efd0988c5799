"""The discriminator against the textbook's modules with the same weights, its initial weights, its dropout."""

import copy

import pytest
import torch
from test_rollout import LENGTH, VOCABULARY, new_discriminator
from torch import nn

from seqgan_lib import new_generator
from seqgan_lib.discriminator import PAPER_WINDOWS, Discriminator, judging, verdict


@pytest.fixture
def judge():
    return new_discriminator()


@pytest.fixture
def sequences():
    return torch.randint(VOCABULARY, (9, LENGTH), generator=new_generator(1))


class Textbook(nn.Module):
    """Embedding, nn.Conv1d and max_pool1d for each window, highway of two nn.Linear, nn.Linear, softmax."""

    def __init__(self, judge):
        super().__init__()
        features = len(judge.biases)
        self.embedding = nn.Embedding.from_pretrained(judge.embedding.detach().clone(), freeze=False)
        width = judge.embedding.shape[1]
        self.convolutions = nn.ModuleList(nn.Conv1d(width, kernels, window) for window, kernels in judge.windows)
        self.transform, self.gate, self.output = (nn.Linear(features, n) for n in (features, features, 2))
        biases = judge.biases.split([kernels for _, kernels in judge.windows])
        with torch.no_grad():
            for convolution, kernel, bias in zip(self.convolutions, judge.kernels, biases, strict=True):
                # (window · embedding, kernels) → (kernels, embedding, window)
                laid_out = kernel.view(convolution.kernel_size[0], width, -1).permute(2, 1, 0)
                convolution.weight.copy_(laid_out)
                convolution.bias.copy_(bias)
            for linear, name in ((self.transform, "transform"), (self.gate, "gate"), (self.output, "output")):
                linear.weight.copy_(getattr(judge, name).t())
                linear.bias.copy_(getattr(judge, f"{name}_bias"))

    def forward(self, sequences):
        x = self.embedding(sequences).transpose(1, 2)  # (batch, embedding, time)
        found = [convolution(x).relu() for convolution in self.convolutions]
        pooled = torch.cat([nn.functional.max_pool1d(f, f.shape[2]).squeeze(2) for f in found], 1)
        gate = self.gate(pooled).sigmoid()
        highway = gate * self.transform(pooled).relu() + (1 - gate) * pooled
        return self.output(highway)


def check_the_discriminator_is_the_papers():
    """Logits and the gradients of all weights equal those of the textbook's network, in double precision."""
    sequences = torch.randint(VOCABULARY, (9, LENGTH), generator=new_generator(1))
    judge = new_discriminator(windows=((1, 3), (2, 4), (4, 2), (5, 5))).double().eval()
    textbook = Textbook(judge)
    textbook.double()
    logits, wanted = judge.logits(sequences), textbook(sequences)
    torch.testing.assert_close(logits, wanted)
    torch.testing.assert_close(judge(sequences), wanted.softmax(1)[:, 1])
    assert wanted.std(0).min() > 0.01, "the logits differ from sequence to sequence"
    up = torch.randn(9, 2, generator=new_generator(2), dtype=torch.float64)
    (logits * up).sum().backward()
    (wanted * up).sum().backward()
    for name in ("transform", "gate", "output"):
        torch.testing.assert_close(getattr(judge, name).grad, getattr(textbook, name).weight.grad.t())
        torch.testing.assert_close(getattr(judge, f"{name}_bias").grad, getattr(textbook, name).bias.grad)
    torch.testing.assert_close(judge.embedding.grad, textbook.embedding.weight.grad)
    torch.testing.assert_close(judge.biases.grad, torch.cat([c.bias.grad for c in textbook.convolutions]))
    for kernel, convolution in zip(judge.kernels, textbook.convolutions, strict=True):
        torch.testing.assert_close(kernel.grad, convolution.weight.grad.permute(2, 1, 0).flatten(0, 1))


def test_the_discriminator_equals_the_textbook():
    check_the_discriminator_is_the_papers()


def test_the_papers_windows():
    """Table and code of the paper: (window, kernels) for T = 20, and for T = 32 with another end."""
    twenty = {1: 100, 2: 200, 3: 200, 4: 200, 5: 200, 6: 100, 7: 100, 8: 100, 9: 100, 10: 100, 15: 160, 20: 160}
    assert dict(PAPER_WINDOWS[20]) == twenty and len(PAPER_WINDOWS[20]) == 12
    del twenty[15], twenty[20]
    assert dict(PAPER_WINDOWS[32]) == {**twenty, 16: 160, 24: 160, 32: 160} and len(PAPER_WINDOWS[32]) == 13
    assert set(PAPER_WINDOWS) == {20, 32}


def test_the_default_is_the_papers():
    for length in (20, 32):
        judge = Discriminator(5, length, generator=new_generator(0), embedding=3)
        assert judge.windows == PAPER_WINDOWS[length]
        assert len(judge.biases) == sum(kernels for _, kernels in PAPER_WINDOWS[length])
        assert judge(torch.zeros(2, length, dtype=torch.int64)).shape == (2,)
    judge = Discriminator(5, 20, generator=new_generator(0))
    assert judge.embedding.shape == (5, 64) and judge.dropout == 0.25 and judge.l2 == 0.2


def test_initial_weights_are_the_published_ones():
    judge = Discriminator(2_000, 20, generator=new_generator(0))
    features = 1_720
    glorot = (6 / (features + features)) ** 0.5
    for weight, limit in (
        (judge.embedding, 1.0),
        (judge.transform, glorot),
        (judge.gate, glorot),
        (judge.transform_bias, glorot),
        (judge.gate_bias, glorot),
    ):
        assert 0.99 * limit < weight.max() <= limit and -limit <= weight.min() < -0.99 * limit
        assert weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.05)  # of a uniform distribution
        assert abs(weight.mean().item()) < 0.05 * limit
    assert not torch.equal(judge.transform, judge.gate), "gate and transform have their own weights"
    for weight in (*judge.kernels, judge.output):
        assert 0.18 < weight.abs().max() <= 0.2, "a normal cut off at two standard deviations"
        assert weight.std().item() == pytest.approx(0.0880, rel=0.05)  # of N(0, 0.1²), cut off so
    assert (judge.biases == 0.1).all() and (judge.output_bias == 0.1).all()
    assert len(judge.biases) == features and judge.output.shape == (features, 2)


def test_the_same_seed_gives_the_same_weights(sequences):
    before = torch.get_rng_state()
    one, two, other = new_discriminator(5), new_discriminator(5), new_discriminator(6)
    assert torch.equal(torch.get_rng_state(), before), "global randomness is left alone"
    for name, weight in one.named_parameters():
        assert torch.equal(weight, two.get_parameter(name))
    assert not torch.equal(one.embedding, other.embedding)
    assert torch.equal(one.train()(sequences), two.train()(sequences)), "dropout too"
    assert not torch.equal(one.get_extra_state(), other.get_extra_state())


def test_probabilities_come_out_and_slices_equal_the_whole(judge):
    many = torch.randint(VOCABULARY, (300, LENGTH), generator=new_generator(3))
    judge.eval()
    whole = judge(many)
    assert whole.shape == (300,) and whole.dtype == torch.float32 and whole.requires_grad
    assert 0 <= whole.min() and whole.max() <= 1
    with torch.no_grad():
        torch.testing.assert_close(judge(many), whole.detach())


@pytest.mark.parametrize("rows", [1, 2, 300, 2_000])
@pytest.mark.parametrize(
    ("length", "windows"), [(1, ((1, 3),)), (5, ((5, 4),)), (5, ((1, 3), (2, 4), (5, 2))), (6, ((2, 3), (4, 5)))]
)
def test_tables_and_products_find_the_same(length, windows, rows):
    """Without gradients, few sequences go through products and many through tables: few tokens, so that both occur."""
    judge = Discriminator(VOCABULARY, length, generator=new_generator(0), windows=windows, embedding=4).eval()
    sequences = torch.randint(VOCABULARY, (rows, length), generator=new_generator(1))
    wanted, features = judge(sequences), judge.features(sequences)
    assert wanted.requires_grad and features.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(judge(sequences), wanted.detach())
        torch.testing.assert_close(judge.features(sequences), features.detach())
        torch.testing.assert_close(judge.double()(sequences).float(), wanted.detach())


# ---------------------------------------------------------------- loss


def test_the_loss_is_cross_entropy_and_the_penalty_on_the_output_layer(sequences):
    real = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0, 0])
    for l2 in (0.2, 0.0, 1.5):
        judge = new_discriminator(l2=l2).eval()
        wrong = torch.where(real == 1, 1 - judge(sequences), judge(sequences))
        penalty = (judge.output.square().sum() + judge.output_bias.square().sum()) / 2
        wanted = -(1 - wrong).log().mean() + l2 * penalty
        torch.testing.assert_close(judge.loss(sequences, real), wanted)


def test_the_loss_drops_while_training(judge, sequences):
    real = torch.ones(9, dtype=torch.int64)
    in_training = [judge.train().loss(sequences, real).item() for _ in range(2)]
    assert in_training[0] != in_training[1] != judge.eval().loss(sequences, real).item()


def test_it_learns_to_tell(sequences):
    judge = new_discriminator(dropout=0.25, l2=0.0)
    adam = torch.optim.Adam(judge.parameters(), lr=0.01)
    real = (sequences[:, 0] < sequences[:, 1]).long()
    for _ in range(100):
        adam.zero_grad()
        judge.loss(sequences, real).backward()
        adam.step()
    assert ((judge.eval()(sequences) > 0.5) == (real == 1)).all(), "column 1 of the logits is real"


# ---------------------------------------------------------------- dropout


def check_dropout_drops_its_share(share=0.25):
    """An output layer that shows one feature each: what is not dropped is enlarged so that the mean stays."""
    judge = new_discriminator(windows=((1, 2),), dropout=share)
    with torch.no_grad():
        judge.output.copy_(torch.eye(2))
        judge.output_bias.zero_()
    sequences = torch.arange(VOCABULARY)[:, None].repeat(3_000, LENGTH)
    whole, dropped = judge.eval().logits(sequences), judge.train().logits(sequences)
    assert whole.min() > 0.001, "so that a 0 is a drop"
    assert (dropped == 0).double().mean().item() == pytest.approx(share, abs=0.01)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / (1 - share))
    both = (dropped == 0).all(1).double().mean().item()
    assert both == pytest.approx(share**2, abs=0.01), "each number for itself"


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75])
def test_dropout_drops_its_share_and_keeps_the_mean(share):
    check_dropout_drops_its_share(share)


def test_dropout_has_a_stream_of_its_own(sequences):
    before = torch.get_rng_state()
    one, two = (new_discriminator(seed=3).train() for _ in range(2))
    first, second = one(sequences), one(sequences)
    assert torch.equal(two(sequences), first) and torch.equal(two(sequences), second)
    assert not torch.equal(first, second)
    stream = one.get_extra_state()
    assert torch.equal(one.eval()(sequences), two.eval()(sequences))
    assert torch.equal(one.get_extra_state(), stream), "nothing is drawn outside training"
    assert torch.equal(torch.get_rng_state(), before)


def test_the_stream_is_saved_with_the_weights(judge, sequences, tmp_path):
    judge.train()(sequences)
    torch.save(judge.state_dict(), tmp_path / "judge.pt")
    ahead = [judge(sequences) for _ in range(3)]
    again = new_discriminator(seed=99).train()
    again.load_state_dict(torch.load(tmp_path / "judge.pt", weights_only=True))
    assert all(torch.equal(again(sequences), wanted) for wanted in ahead)


def test_a_copy_goes_on_alike(judge, sequences):
    judge.train()(sequences)
    other = copy.deepcopy(judge)
    assert torch.equal(judge(sequences), other(sequences))


# ---------------------------------------------------------------- verdicts


class Fixed(nn.Module):
    """Says what it is told to, by the first token."""

    def __init__(self, *verdicts):
        super().__init__()
        self.verdicts = torch.tensor(verdicts)

    def forward(self, sequences):
        assert not self.training and not torch.is_grad_enabled()
        return self.verdicts[sequences[:, 0]]


def test_a_verdict_weighs_both_kinds_alike():
    judge = Fixed(0.8, 0.3, 0.5)
    real, generated = torch.tensor([[0], [1]]), torch.tensor([[0], [1], [2], [2]])
    told = verdict(judge, real, generated)
    log = torch.log
    costs = -log(torch.tensor([0.8, 0.3])).mean() - log(torch.tensor([0.2, 0.7, 0.5, 0.5])).mean()
    assert told["loss"] == pytest.approx(costs.item() / 2, abs=1e-6)
    assert told["accuracy"] == pytest.approx((1 / 2 + 3 / 4) / 2)  # 0.5 is not called real
    assert judge.training, "and the judge is back in training"


def test_a_sure_and_wrong_verdict_costs_a_finite_amount():
    told = verdict(Fixed(0.0, 1.0), torch.tensor([[0]]), torch.tensor([[1]]))
    assert told["accuracy"] == 0 and told["loss"] == pytest.approx(-torch.tensor(2.0**-23).log().item(), rel=1e-6)
    assert verdict(Fixed(0.0, 1.0), torch.tensor([[1]]), torch.tensor([[0]])) == {"loss": 0.0, "accuracy": 1.0}


def test_a_guess_costs_log_2():
    assert verdict(Fixed(0.5), torch.zeros(3, 1).long(), torch.zeros(5, 1).long())["loss"] == pytest.approx(0.6931472)


def test_a_judge_without_modes_may_judge():
    with judging(len):
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"windows": ((2, 4), (6, 4))}, "window of 6 tokens does not fit in sequences of 5"),
        ({"windows": ((0, 4),)}, "a window must be.*at least 1"),
        ({"windows": ((2, 0),)}, "number of kernels must be.*at least 1"),
        ({"windows": ()}, r"name the windows for length 5.*\[20, 32\]"),
        ({"windows": None}, r"name the windows for length 5.*\[20, 32\]"),
        ({"dropout": 1.0}, "dropout.*below 1, but is 1.0"),
        ({"dropout": -0.1}, "dropout.*-0.1"),
        ({"dropout": float("nan")}, "dropout"),
        ({"l2": -0.1}, "l2.*-0.1"),
        ({"l2": float("inf")}, "l2.*inf"),
        ({"embedding": 0}, "embedding must be"),
        ({"vocabulary": 0}, "vocabulary must be"),
        ({"length": 0}, "length must be"),
    ],
)
def test_wrong_settings_are_refused(settings, says):
    given = {"vocabulary": VOCABULARY, "length": LENGTH, "windows": ((2, 4),), **settings}
    with pytest.raises(ValueError, match=says):
        Discriminator(given.pop("vocabulary"), given.pop("length"), generator=new_generator(0), **given)


def test_windows_may_be_lists_as_a_json_file_has_them(sequences):
    one, two = (new_discriminator(windows=windows) for windows in ([[1, 3], [2, 4]], ((1, 3), (2, 4))))
    assert one.windows == two.windows
    hash(one.windows)  # a GPU's layouts are kept by them
    assert torch.equal(one.eval()(sequences), two.eval()(sequences))


def test_a_window_may_be_as_long_as_the_sequence():
    judge = new_discriminator(windows=((LENGTH, 3),))
    assert judge(torch.zeros(2, LENGTH, dtype=torch.int64)).shape == (2,)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (torch.zeros(2, 4, dtype=torch.int64), "reads sequences of 5 tokens, not 4"),
        (torch.zeros(2, 6, dtype=torch.int64), "reads sequences of 5 tokens, not 6"),
        (torch.full((2, LENGTH), VOCABULARY), "0 to 6 are allowed"),
        (torch.full((2, LENGTH), -1), "0 to 6 are allowed"),
        (torch.zeros(2, LENGTH), "int64.*float32"),
        (torch.zeros(0, LENGTH, dtype=torch.int64), r"\(0, 5\)"),
        ([[1] * LENGTH], "list"),
    ],
)
@pytest.mark.parametrize("gradients", [True, False])
def test_wrong_sequences_are_refused(judge, wrong, says, gradients):
    with torch.set_grad_enabled(gradients), pytest.raises(ValueError, match=says):
        judge(wrong)


# ---------------------------------------------------------------- on a GPU


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cpu_and_cuda_agree(judge, sequences):
    on_cpu = judge.eval()(sequences)
    judge.to("cuda")
    torch.testing.assert_close(judge(sequences.cuda()).cpu(), on_cpu, atol=1e-5, rtol=1e-4)
    ahead = judge.train()(sequences.cuda())
    assert judge._stream.device.type == "cuda" and not torch.equal(ahead.cpu(), on_cpu)


def test_a_stream_saved_on_another_device_begins_anew():
    """A GPU's state has another size; loading it may not break a training that wants its last good weights back."""
    judge = new_discriminator(dropout=0.5)
    begun = judge.state_dict()["_extra_state"].clone()
    judge.train()
    judge.logits(torch.zeros(2, LENGTH, dtype=torch.int64))
    assert not torch.equal(judge.state_dict()["_extra_state"], begun)
    judge.load_state_dict({**judge.state_dict(), "_extra_state": torch.zeros(16, dtype=torch.uint8)})
    assert torch.equal(judge.state_dict()["_extra_state"], begun)

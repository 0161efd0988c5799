"""What a GPU run rests on, as far as a CPU can tell: the fused loss, and steps that are recorded and replayed.

A double stands in for the CUDA graph. It keeps the recorded call with its own copies of the arguments and makes it
again at every replay, as a graph does; so it shows which arguments, shapes and addresses a recording depends on.
"""

import copy

import pytest
import torch
from test_adversarial import new_data, new_game, play, same, state_of
from test_rollout import LENGTH, VOCABULARY, new_discriminator

from seqgan_lib import LanguageModel, graphs, new_generator, rollout, training
from seqgan_lib.discriminator import Discriminator
from seqgan_lib.fused import fused_loss
from seqgan_lib.graphs import Graphed
from seqgan_lib.mle import train_mle
from seqgan_lib.sampling import stream_on
from seqgan_lib.training import TrainingDiverged

CPU = torch.device("cpu")
GIB = 2**30


class Recordings(list):
    """The shapes of all recordings so far, and how often one was replayed."""

    replays = 0


@pytest.fixture
def recorded(monkeypatch):
    """Let every Graphed record, on the CPU, with the double."""
    seen, begin = Recordings(), Graphed.__init__

    def on_the_cpu(self, *args):
        begin(self, *args)
        self._works = True

    def record(self, given):
        inputs, result = [x.clone() for x in given], torch.empty(0)
        seen.append([tuple(x.shape) for x in given])

        def replay():
            seen.replays += 1
            made = self.function(*inputs)
            result.resize_(made.shape).copy_(made)

        return replay, inputs, result

    monkeypatch.setattr(Graphed, "__init__", on_the_cpu)
    monkeypatch.setattr(Graphed, "_warm_up", lambda self, given: self.function(*given))
    monkeypatch.setattr(Graphed, "_record", record)
    return seen


# ---------------------------------------------------------------- the fused loss

WINDOWS = [
    (((1, 3), (2, 4), (4, 2), (5, 5)), 5),
    (((2, 3), (3, 2)), 10),  # no window of one token
    (((6, 3), (1, 2), (3, 2), (12, 3), (8, 2)), 12),  # in no order, several groups
    (((3, 2),), 3),  # one place
    (((1, 2),), 4),
    (None, 20),  # the paper's
]


@pytest.mark.parametrize(("windows", "length"), WINDOWS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_fused_loss_equals_the_plain_one(windows, length, dropout):
    """Value and all gradients, with the same dropout, equal tokens within and between sequences, a factor before it."""
    sizes = {"windows": windows, "embedding": 4, "dropout": dropout, "generator": new_generator(0)}
    plain = Discriminator(9, length, **sizes).double()
    fused = copy.deepcopy(plain)
    fused._stream.set_state(plain._stream.get_state())
    sequences = torch.randint(9, (6, length), generator=new_generator(1))
    real = torch.tensor([0, 1, 1, 0, 1, 0])
    wanted, value = plain.loss(sequences, real), fused_loss(fused, sequences, real)
    torch.testing.assert_close(value, wanted)
    (1.5 * wanted).backward()
    (1.5 * value).backward()
    for (name, p), q in zip(plain.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=lambda text, name=name: f"{name}: {text}")
        assert q.grad.is_contiguous() and p.grad.abs().max() > 0


def test_the_fused_loss_refuses_what_the_plain_one_refuses():
    judge = new_discriminator()
    with pytest.raises(ValueError, match="of 5 tokens, not 4"):
        fused_loss(judge, torch.zeros(2, 4, dtype=torch.int64), torch.tensor([0, 1]))
    sequences = torch.zeros(2, 5, dtype=torch.int64)
    for real in (torch.tensor([0]), torch.tensor([0.0, 1.0]), torch.tensor([True, False])):
        with pytest.raises(ValueError, match=r"real has to be \(2,\) int64"):
            fused_loss(judge, sequences, real)


def test_the_fused_loss_takes_few_kernels():
    """Each call below is one launch or a few on a GPU; the plain loss makes 180 of them and more."""
    from torch.utils._python_dispatch import TorchDispatchMode

    views = {"view", "_unsafe_view", "t", "transpose", "slice", "unsqueeze", "as_strided", "detach", "alias"}
    views |= {"split_with_sizes", "split", "empty", "new_empty", "empty_like", "expand", "select", "unfold"}
    free = views | {"aminmax", "_local_scalar_dense"}  # the look at the tokens, which a GPU is spared

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls += function.overloadpacket.__name__ not in free
            return function(*args, **(kwargs or {}))

    judge = Discriminator(50, 20, generator=new_generator(0))
    sequences, real = torch.randint(50, (4, 20), generator=new_generator(1)), torch.tensor([0, 1, 1, 0])
    fused_loss(judge, sequences, real)  # lays the windows out, once
    with Count() as fused:
        fused_loss(judge, sequences, real).backward()
    with Count() as plain:
        judge.loss(sequences, real).backward()
    assert fused.calls <= 70 and plain.calls > 2.5 * fused.calls


# ---------------------------------------------------------------- optimisers


@pytest.mark.parametrize(
    ("make", "ours"),
    [
        (lambda p: torch.optim.Adam(p, fused=True), True),
        (lambda p: torch.optim.Adam(p, weight_decay=0.1), False),
        (lambda p: torch.optim.Adam(p, amsgrad=True), False),
        (lambda p: torch.optim.Adam(p, betas=(0.0, 0.999)), False),
        (lambda p: torch.optim.Adam([{"params": p[:1]}, {"params": p[1:], "lr": 0.1}]), False),
        (lambda p: torch.optim.AdamW(p), False),
        (lambda p: torch.optim.SGD(p, lr=0.1), False),
    ],
)
def test_our_adam_takes_no_other_optimisers_step(make, ours, monkeypatch):
    """A GPU's own kernel does Adam and nothing else; everything else makes the step that it has by itself."""
    weights, theirs = ([torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)] for _ in range(2))
    for p in (*weights, *theirs):
        p.grad = torch.arange(1.0, len(p) + 1)
    optimiser, other = make(weights), make(theirs)
    training.adam_step(optimiser), other.step()
    for p, q in zip(weights, theirs, strict=True):
        assert torch.equal(p, q) and (p != 1).all()
    monkeypatch.setattr(training, "own_kernels", lambda device: True)
    assert training._does_the_same(optimiser) == ours
    weights[1].grad = None
    assert not training._does_the_same(optimiser)


# ---------------------------------------------------------------- recorded steps


def counted(**how):
    """A Graphed that adds its argument to a total kept in place."""
    total = torch.zeros(3)
    calls = []

    def add(x):
        calls.append(x)
        return total.add_(x.sum()).clone()

    return Graphed(add, CPU, how.get("baked", lambda: 0), lambda: []), total, calls


def test_on_a_cpu_it_is_a_plain_call():
    graphed, total, calls = counted()
    x = torch.ones(2)
    assert all(torch.equal(graphed(x), torch.full((3,), 2.0 * n)) for n in range(1, 9))
    assert len(calls) == 8 and all(call is x for call in calls)


def test_each_shape_is_recorded_once_after_plain_calls_with_its_own_arguments(recorded):
    graphed, total, calls = counted()
    for n in range(1, 7):
        assert torch.equal(graphed(torch.full((2,), float(n))), total)
        graphed(torch.zeros(1))
    assert total.tolist() == [2.0 * 21] * 3, "every call counts once, the recorded ones too"
    assert recorded == [[(2,)], [(1,)]] and recorded.replays == 6
    assert calls[-1] is calls[-3], "a replay reads where the recording read"


def test_what_is_baked_in_changes_and_all_is_recorded_anew(recorded):
    rate = [1]
    graphed, *_ = counted(baked=lambda: rate[0])
    for rate[0] in (1, 2):
        for _ in range(5):
            graphed(torch.ones(2))
    assert len(recorded) == 2


def test_graphs_can_be_turned_off(recorded, monkeypatch):
    monkeypatch.setenv("SEQGAN_NO_GRAPHS", "1")
    graphed, *_ = counted()
    for _ in range(6):
        graphed(torch.ones(2))
    assert recorded == []


def test_what_cannot_be_recorded_is_called_plainly_after_one_warning(recorded, monkeypatch):
    def fails(self, given):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Graphed, "_record", fails)
    graphed, total, _ = counted()
    with pytest.warns(RuntimeWarning, match="no CUDA graph, so training is slower: operation not permitted") as seen:
        for _ in range(6):
            graphed(torch.ones(2))
    assert len(seen) == 1 and total.tolist() == [12.0] * 3


@pytest.mark.parametrize("omega_decay", [0.0, 0.2])
def test_mle_is_the_same_recorded(recorded, omega_decay):
    """75 sequences in batches of 16: a smaller last batch is recorded, too."""
    models = [LanguageModel(VOCABULARY, generator=new_generator(2)) for _ in range(2)]
    how = {"epochs": 6, "batch_size": 16, "omega_decay": omega_decay, "progress": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQGAN_NO_GRAPHS", "1")
        plain = train_mle(models[0], new_data(75), generator=new_generator(3), **how)
    history = train_mle(models[1], new_data(75), generator=new_generator(3), **how)
    assert history.rows == plain.rows and same(models[0].state_dict(), models[1].state_dict())
    assert recorded == [[(16, LENGTH)], [(11, LENGTH)]] and recorded.replays >= 10


def test_a_game_is_the_same_recorded(recorded):
    """Two g-steps and two d-steps of two epochs a round, 44 sequences in batches of 8: the last has 4."""
    rules = {"g_steps": 2, "data": new_data(22)}
    plain, game = new_game(**rules), new_game(**rules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQGAN_NO_GRAPHS", "1")
        wanted = play(plain, 4)
    history = play(game, 4)
    assert history.rows == wanted.rows and same(state_of(game), state_of(plain))
    assert sorted(recorded) == [[], [(4, LENGTH), (4,)], [(8, LENGTH), (8,)]]


def test_a_game_that_diverged_goes_on_from_its_restored_state(recorded, monkeypatch):
    """The restored optimiser keeps its state elsewhere: a graph of before would go on with the old one."""
    plain, game = new_game(), new_game()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQGAN_NO_GRAPHS", "1")
        play(plain, 4)
        state = plain.generator.get_state()
        play(plain, 4)
    play(game, 4)
    count = len(recorded)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingDiverged):
        patch.setattr("seqgan_lib.adversarial.update_policy", fail)
        play(game, 1)
    game.generator.set_state(state)
    play(game, 4)
    assert same(state_of(game), state_of(plain)) and len(recorded) > count


def fail(*args):
    raise FloatingPointError("the end of a round")


def test_a_changed_learning_rate_is_noticed():
    model = LanguageModel(VOCABULARY, generator=new_generator(0))
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    before = training.baked(adam)
    adam.param_groups[0]["lr"] = 0.02
    assert training.baked(adam) != before


# ---------------------------------------------------------------- streams, precision, memory


def test_a_stream_stays_where_it_is_wanted():
    stream = new_generator(3)
    assert stream_on(stream, CPU) is stream


def test_tf32_is_allowed_only_where_it_is_asked_for():
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(KeyError), graphs.tf32():
        assert torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
        raise KeyError
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(("free", "least"), [(12 * GIB, 64), (70 * GIB, 64)])
def test_the_papers_run_fits(monkeypatch, free, least):
    """At paper scale all 64 sequences are rolled out at once, on a card with 12 GiB to spare as on one with 70.

    The sum below counts, generously, all that the largest step of a run holds at a time.
    """
    monkeypatch.setattr(rollout, "free_memory", lambda device: free)
    policy = LanguageModel(5_000, generator=new_generator(0))
    assert rollout.fitting_chunk(policy, 16, 20) >= least
    judge = Discriminator(5_000, 20, generator=new_generator(0))
    logits = 2 * 4 * 2**26  # LanguageModel._rows_at_once, on a GPU: logits, and the weights of a draw
    rows = 19 * 64 * 16
    rolled_out = rows * (20 * 8 + 19 * 8 + 2 * 4 * 32)  # tokens, uniform numbers, h and c
    judged = max(8192 * (21 - w) * (8 * w + 4 * 64 * w + 4 * k) for w, k in judge.windows)  # indices, windows, found
    weights = 4 * sum(p.numel() for p in [*judge.parameters(), *policy.parameters()])
    learning = weights * (4 + 3)  # weights, gradients and Adam's two; keep_last_good has three of them
    # The buffers of a D step by fused.Products, which lays windows out and packs kernels; Triton's needs less.
    step = 64 * 4 * (20 * 1280 + 3 * 20 * 1720 + 20 * 21 * 64) + 3 * 4 * 1_018_000 + weights
    total = 3 * logits + rolled_out + 2 * judged + learning + 2 * step  # graphs of two batch sizes
    assert total < 4 * GIB < free

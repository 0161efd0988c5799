"""On a GPU: graphs against plain calls, the GPU against the CPU, no waiting within a step, memory. `pytest -m cuda`."""

import contextlib
import copy
import warnings

import pytest
import torch
from test_adversarial import FEW, new_data, play, same, weights
from test_rollout import LENGTH, VOCABULARY, new_discriminator

from seqgan_lib import LanguageModel, fused, new_generator, random_oracle, rollout, training
from seqgan_lib.adversarial import Game, Rules, train_discriminator
from seqgan_lib.discriminator import Discriminator
from seqgan_lib.graphs import Graphed
from seqgan_lib.mle import train_mle

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
GIB = 2**30


@pytest.fixture(autouse=True)
def no_warnings():
    """A warning means here that no graph was made."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


@contextlib.contextmanager
def without_graphs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQGAN_NO_GRAPHS", "1")
        yield


@contextlib.contextmanager
def without_waiting():
    """Any wait of the host for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def new_model(vocabulary=VOCABULARY, std=0.1):
    return LanguageModel(vocabulary, generator=new_generator(2), std=std).to("cuda")


def new_game(data=None, judge=None, **rules):
    judge = (judge or new_discriminator(seed=3)).to("cuda")
    data = new_data() if data is None else data
    return Game(new_model(std=0.5), judge, data, generator=new_generator(4), rules=Rules(**{**FEW, **rules}))


def paper_judge():
    return Discriminator(5_000, 20, generator=new_generator(0)).to("cuda")


def paper_batch():
    sequences = torch.randint(5_000, (64, 20), generator=new_generator(1)).to("cuda")
    return sequences, torch.arange(64, device="cuda") % 2


def close(one, two):
    torch.testing.assert_close(weights(one), weights(two), atol=1e-4, rtol=1e-3)


# ---------------------------------------------------------------- graphs against plain calls


@pytest.mark.parametrize("omega_decay", [0.0, 0.2])
def test_mle_with_graphs_and_without(omega_decay):
    """Six epochs of four batches and a smaller one."""
    models = [new_model() for _ in range(2)]
    how = {"epochs": 6, "batch_size": 16, "omega_decay": omega_decay, "progress": False}
    with without_graphs():
        plain = train_mle(models[0], new_data(75), generator=new_generator(3), **how)
    history = train_mle(models[1], new_data(75), generator=new_generator(3), **how)
    close(*models)
    assert history["loss"][1:] == pytest.approx(plain["loss"][1:], rel=1e-4)


def train_judge(judge, epochs=5):
    """So many epochs of five batches of 8 and one of 4 sequences."""
    data, adam = new_data(44).to("cuda"), torch.optim.Adam(judge.parameters(), lr=1e-3, fused=True)
    how = {"epochs": epochs, "generator": new_generator(0, "cuda"), "batch_size": 8}
    train_discriminator(judge, adam, data[:22], data[22:].flip(1), **how)
    return judge, adam


def test_the_discriminator_with_graphs_and_without():
    """The same dropout, too: its numbers are those that the same stream gives to plain calls."""
    with without_graphs():
        plain, _ = train_judge(new_discriminator().to("cuda"))
    judge, adam = train_judge(new_discriminator().to("cuda"))
    close(judge, plain)
    assert torch.equal(judge.get_extra_state(), plain.get_extra_state()), "the stream has come as far"
    assert len(adam._graphed_step[1]._graphs) == 2, "both batch sizes were recorded"


def test_a_game_with_graphs_and_without():
    plain, game = (new_game(g_steps=2) for _ in range(2))
    with without_graphs():
        wanted = play(plain, 5)
    history = play(game, 5)
    assert len(game._graphed_g_step._graphs) == 1
    close(game.model, plain.model)
    close(game.judge, plain.judge)
    assert history["reward_1"][1:] == pytest.approx(wanted["reward_1"][1:], abs=1e-4)


def test_the_same_seed_gives_the_same_game_to_the_bit():
    one, two = (new_game(g_steps=2) for _ in range(2))
    assert play(one, 5).rows == play(two, 5).rows
    assert same(one.model.state_dict(), two.model.state_dict()) and same(one.judge.state_dict(), two.judge.state_dict())


def test_each_replay_draws_new_numbers_and_a_plain_call_goes_on_from_there():
    stream, twin = (new_generator(5, "cuda") for _ in range(2))
    draw = Graphed(lambda: torch.rand(4, generator=stream, device="cuda"), stream.device, lambda: 0, lambda: [stream])
    drawn = [draw().clone() for _ in range(8)]
    drawn.append(torch.rand(4, generator=stream, device="cuda"))
    for numbers in drawn:
        assert torch.equal(numbers, torch.rand(4, generator=twin, device="cuda"))


def test_what_looks_at_a_number_is_called_plainly_and_all_else_still_works():
    """The recording breaks; stream, memory and later recordings are sound."""
    stream, twin = (new_generator(5, "cuda") for _ in range(2))

    def looks():
        numbers = torch.rand(4, generator=stream, device="cuda")
        return numbers * numbers.sum().item()

    broken = Graphed(looks, stream.device, lambda: 0, lambda: [stream])
    with pytest.warns(RuntimeWarning, match="no CUDA graph, so training is slower") as seen:
        drawn = [broken().clone() for _ in range(6)]
    assert len(seen) == 1 and torch.cuda.current_stream() == torch.cuda.default_stream()
    for numbers in drawn:
        expected = torch.rand(4, generator=twin, device="cuda")
        assert torch.equal(numbers, expected * expected.sum().item())
    test_each_replay_draws_new_numbers_and_a_plain_call_goes_on_from_there()


def test_a_restored_optimiser_is_recorded_anew():
    """As after a round that is undone: its state lies elsewhere."""
    judge, adam = train_judge(new_discriminator().to("cuda"))
    adam.load_state_dict(copy.deepcopy(adam.state_dict()))
    step, batch = adam._graphed_step[1], new_data(8).to("cuda")
    real, state = torch.arange(8, device="cuda") % 2, next(iter(adam.state.values()))
    before = float(state["step"])
    for _ in range(6):
        step(batch, real)
    assert float(state["step"]) == before + 6 and len(step._graphs) == 1


# ---------------------------------------------------------------- the GPU against the CPU


def test_log_probabilities_agree():
    """At the published generator's sizes, in float32, for likely and unlikely tokens."""
    model = random_oracle(5_000, generator=new_generator(0))
    sequences = model.sample(64, 20, generator=new_generator(1))
    sequences[32:] = torch.randint(5_000, (32, 20), generator=new_generator(2))
    wanted = model.double().log_probs(sequences)
    model.float()
    with torch.no_grad():
        on_cpu, on_gpu = model.log_probs(sequences), model.to("cuda").log_probs(sequences.to("cuda")).cpu()
    # The logits reach ± 30 here, where float32 itself has steps of 2e-6.
    torch.testing.assert_close(on_gpu, on_cpu, atol=1e-5, rtol=1e-6)
    assert (on_gpu - wanted).abs().max() < 2e-5
    # In training cuDNN's LSTM is used, which is quicker and less exact.
    torch.testing.assert_close(model.log_probs(sequences.to("cuda")).cpu(), on_cpu, atol=2e-4, rtol=0)
    with torch.enable_grad():
        nll = model.nll(sequences.to("cuda"))
    torch.testing.assert_close(nll.cpu(), -on_cpu.mean(), atol=1e-5, rtol=1e-5)


def test_action_values_agree_within_monte_carlo_error():
    model, judge = LanguageModel(VOCABULARY, generator=new_generator(0), std=1.0), new_discriminator()
    sequences = model.sample(32, LENGTH, generator=new_generator(1))
    on_cpu = rollout.action_values(model, sequences, judge, rollouts=400, generator=new_generator(3))
    model.to("cuda"), judge.to("cuda")
    stream = new_generator(3, "cuda")
    on_gpu = rollout.action_values(model, sequences.to("cuda"), judge, rollouts=400, generator=stream).cpu()
    torch.testing.assert_close(on_gpu[:, -1], on_cpu[:, -1], atol=1e-5, rtol=0)  # no roll-outs there
    spread = judge(model.sample(2_000, LENGTH, generator=new_generator(4))).std().item()
    error = spread * (2 / 400) ** 0.5
    assert (on_gpu - on_cpu).abs().max() < 5 * error and (on_gpu - on_cpu).mean().abs() < error


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "TF32"])
def test_the_fused_loss_agrees_with_the_cpu(dtype):
    """TF32 has a wide margin: where two places are nearly equal, rounding decides which of them gets the gradient."""
    judge, (sequences, real) = paper_judge().to(dtype), paper_batch()
    judge.dropout = 0.0
    plain = copy.deepcopy(judge).cpu()
    value, wanted = judge.loss(sequences, real), plain.loss(sequences.cpu(), real.cpu())
    assert value.item() == pytest.approx(wanted.item(), abs=1e-9 if dtype == torch.float64 else 1e-2)
    value.backward(), wanted.backward()
    for p, q in zip(judge.parameters(), plain.parameters(), strict=True):
        error = (p.grad.cpu() - q.grad).norm() / q.grad.norm()
        assert error < (1e-9 if dtype == torch.float64 else 0.3)


SIZES = [(((1, 3), (2, 4), (5, 70)), 7, 5, 11), (((3, 6), (2, 9)), 12, 20, 70), (None, 20, 64, 64), (None, 20, 64, 32)]


@pytest.mark.parametrize(("windows", "length", "embedding", "batch"), SIZES)
def test_the_kernels_agree_with_the_cpu(windows, length, embedding, batch, monkeypatch):
    """Without TF32: the loss and every gradient, for windows and batches that fill no block and such that do."""
    monkeypatch.setattr(fused, "tf32", contextlib.nullcontext)
    how = {"windows": windows, "embedding": embedding, "dropout": 0.25, "generator": new_generator(0)}
    plain = Discriminator(50, length, **how)
    judge = copy.deepcopy(plain).to("cuda")
    dropped = torch.rand(batch, len(plain.biases), generator=new_generator(2))  # the same on both
    monkeypatch.setattr(torch, "rand", lambda *shape, device, **_: dropped.to(device))
    assert fused.own_kernels(judge.embedding.device), "they run on this card"
    sequences, real = torch.randint(50, (batch, length), generator=new_generator(1)), torch.arange(batch) % 2
    value, wanted = judge.loss(sequences.to("cuda"), real.to("cuda")), plain.double().loss(sequences, real)
    assert value.item() == pytest.approx(wanted.item(), abs=1e-5)
    value.backward(), wanted.backward()
    for (name, p), q in zip(plain.named_parameters(), judge.parameters(), strict=True):
        # Where two places are nearly equal, rounding decides which of them gets the gradient, one in 100 000.
        assert ((q.grad.cpu() - p.grad).norm() / p.grad.norm()) < 5e-3, name


def test_adam_agrees_with_pytorchs():
    """Six steps, from the first on, on tensors of many blocks and of two numbers."""
    sizes, stream = [(300, 1_000), (2,), (2_048,), (7, 5)], new_generator(0, "cuda")
    ours, theirs = ([torch.ones(size, device="cuda", requires_grad=True) for size in sizes] for _ in range(2))
    adams = [torch.optim.Adam(weights, lr=0.01, fused=True) for weights in (ours, theirs)]
    for _ in range(6):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=stream, device="cuda") ** 3
            q.grad = p.grad.clone()
        training.adam_step(adams[0]), adams[1].step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-6)
        for name, value in adams[1].state[q].items():  # PyTorch's 1 − 0.999 is a float32, off by 1.3e-5
            torch.testing.assert_close(adams[0].state[p][name], value, atol=1e-6, rtol=1e-4)


def test_tf32_leaves_the_training_curve_where_it_is(monkeypatch):
    """Three seeds of 40 steps at the paper's sizes: TF32 moves the last losses less than a seed does."""
    sequences, real = paper_batch()
    losses = {}
    for exact in (True, False):
        with monkeypatch.context() as patch:
            if exact:
                patch.setattr(fused, "tf32", contextlib.nullcontext)
            for seed in range(3):
                judge = Discriminator(5_000, 20, generator=new_generator(seed)).to("cuda").train()
                adam = torch.optim.Adam(judge.parameters(), lr=1e-4, fused=True)
                step = training.graphed_step(judge.loss, adam, float("inf"), [judge.stream])
                curve = torch.stack([step(sequences, real).clone() for _ in range(40)])
                losses[exact, seed] = curve[-10:].mean().item()
    exact, rounded = (torch.tensor([losses[kind, seed] for seed in range(3)]) for kind in (True, False))
    assert (exact - rounded).abs().max() < max(0.02, exact.std().item())


# ---------------------------------------------------------------- no waiting, memory, failures


def test_no_step_waits_for_the_gpu():
    """Neither a plain one nor a replay: of MLE, with true and with mixed pasts, of D, of G with its roll-outs."""
    game, model, data = new_game(), new_model(), new_data(8).to("cuda")
    weights_of = [p for p in model.parameters() if p.requires_grad]
    adam, real = torch.optim.Adam(weights_of, lr=0.01, fused=True), torch.arange(8, device="cuda") % 2
    d_adam, stream = torch.optim.Adam(game.judge.parameters(), lr=1e-4, fused=True), new_generator(0, "cuda")

    def mixed(batch):
        return model.nll(batch, model.shift(model.rewrite(batch, batch > 2, generator=stream)))

    steps = [
        lambda: training.graphed_step(model.nll, adam, 5.0, [])(data),
        lambda: training.graphed_step(game.judge.loss, d_adam, float("inf"), [game.judge.stream])(data, real),
        game._g_step,
        lambda: game.model.sample(50, LENGTH, generator=game.generator),
        lambda: training.graphed_step(mixed, adam, 5.0, [stream])(data),
    ]
    game.judge.train()
    for step in steps:
        step()  # libraries start up
        with without_graphs(), without_waiting():
            step()
        for _ in range(5):
            step()  # warms up and records, which waits
        with without_waiting():
            step()


def test_a_number_that_is_not_finite_undoes_the_round(monkeypatch):
    game = new_game()
    play(game, 5)
    before = copy.deepcopy(game.model.state_dict())
    with torch.no_grad():
        good = game.judge.output_bias.clone()
        game.judge.output_bias.fill_(float("nan"))
    game._verdicts = dict
    with pytest.raises(training.TrainingDiverged, match="not finite in round 1"):
        play(game, 1)
    assert same(game.model.state_dict(), before)
    with torch.no_grad():
        game.judge.output_bias.copy_(good)
    play(game, 5)
    assert torch.isfinite(weights(game.model)).all()


def test_weights_that_are_not_finite_do_not_end_the_process():
    """The second g-step draws from what the first has spoilt; an index out of bounds would be the GPU's last word."""
    game = new_game(g_steps=3)
    before = copy.deepcopy(game.model.state_dict())
    real, calls = game._play_g_step, []

    def spoilt():
        numbers = real()
        calls.append(1)
        with torch.no_grad():
            game.model.output.fill_(float("nan"))
        return numbers

    game._graphed_g_step = spoilt
    with pytest.raises(training.TrainingDiverged, match="not finite in round 1"):
        play(game, 1)
    assert len(calls) == 3 and same(game.model.state_dict(), before)


def test_the_papers_step_fits_a_small_card():
    """Five rounds at the paper's sizes, with 640 sequences: well under the 15 GiB that a Colab T4 offers."""
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    data = random_oracle(5_000, generator=new_generator(0)).to("cuda").sample(640, 20, generator=new_generator(1))
    model = LanguageModel(5_000, generator=new_generator(2)).to("cuda")
    game = Game(model, paper_judge(), data, generator=new_generator(4), rules=Rules(d_steps=1, k=1))
    play(game, 5)
    model.sample(10_000, 20, generator=game.generator)
    assert torch.cuda.max_memory_reserved() - held < 8 * GIB


def test_graphs_are_quicker():
    """A generous bound, so that it holds on a busy machine; the numbers are tests/bench.py's."""
    judge, (sequences, real) = paper_judge().train(), paper_batch()
    adam = torch.optim.Adam(judge.parameters(), lr=1e-4, fused=True)
    step = training.graphed_step(judge.loss, adam, float("inf"), [judge.stream])

    def milliseconds(count=50):
        for _ in range(6):
            step(sequences, real)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            step(sequences, real)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / count

    with without_graphs():
        plain = milliseconds()
    assert milliseconds() < plain

"""The game: Algorithm 1 step by step, repeatable, watched without being disturbed, stopped by hand or by reason."""

import copy
import math

import pytest
import torch
from test_exact import tiny_world
from test_rollout import LENGTH, VOCABULARY, new_discriminator, share_of_token_1

from seqgan_lib import LanguageModel, adversarial, exact, new_generator, policy_gradient, random_oracle
from seqgan_lib.adversarial import Game, Rules
from seqgan_lib.bleu import Bleu
from seqgan_lib.discriminator import Discriminator, verdict
from seqgan_lib.metrics import mean_nll
from seqgan_lib.training import TrainingDiverged

FEW = {"rollouts": 2, "batch_size": 8, "d_steps": 2, "k": 2}


@pytest.fixture
def data():
    return new_data()


def new_data(count=24):
    return random_oracle(VOCABULARY, generator=new_generator(0)).sample(count, LENGTH, generator=new_generator(1))


def new_game(judge=None, seed=4, held_out=None, data=None, **rules):
    model = LanguageModel(VOCABULARY, generator=new_generator(2), std=0.5)
    judge = new_discriminator(seed=3) if judge is None else judge
    data = new_data() if data is None else data
    rules = Rules(**{**FEW, **rules})
    return Game(model, judge, data, generator=new_generator(seed), held_out=held_out, rules=rules)


def play(game, rounds=2, **settings):
    return game.play(rounds, **{"progress": False, **settings})


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def state_of(game):
    """All that a round may change: weights, optimisers, the dropout's stream."""
    modules = [game.model, game.policy] + ([game.judge] if isinstance(game.judge, torch.nn.Module) else [])
    optimisers = [game._adam] + ([game._d_adam] if len(modules) == 3 else [])
    state = [copy.deepcopy(part.state_dict()) for part in modules]
    for optimiser in optimisers:
        state += [copy.deepcopy(dict(enumerate(optimiser.state_dict()["state"].values())))]
    return state


def same(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))


# ---------------------------------------------------------------- Algorithm 1


def check_the_rollout_policy_follows():
    """β = θ before the first update; then β ← rate · β + (1 − rate) · θ after each round, embeddings copied."""
    for rate in (0.8, 0.0):
        game = new_game(update_rate=rate, learning_rate=0.1)
        for _ in range(2):
            before = copy.deepcopy(game.policy)
            play(game, 1)
            assert not torch.equal(weights(game.model), weights(before)), "the generator has learnt"
            for (name, new), old in zip(game.policy.named_parameters(), before.parameters(), strict=True):
                target = game.model.get_parameter(name)
                wanted = target if name == "embedding" else rate * old + (1 - rate) * target
                torch.testing.assert_close(new, wanted.detach())


def check_the_negatives_are_new():
    """Each step of the discriminator sees other negatives, as many as positives; the positives are the data."""
    seen, real_one = [], adversarial.train_discriminator
    game = new_game(d_steps=3)

    def spy(judge, optimiser, real, generated, **how):
        assert torch.equal(real, game.data) and generated.shape == real.shape
        seen.append(generated)
        return real_one(judge, optimiser, real, generated, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adversarial, "train_discriminator", spy)
        game.train_discriminator(2, epochs=1, progress=False)
        play(game, 2)
    assert len(seen) == 2 + 2 * 3
    # 24 sequences of 5 from 7 tokens: two fresh draws are never the same.
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i]), "the same negatives again"


def check_a_generator_step_leaves_the_judge_alone():
    """No gradient reaches the discriminator while the generator learns from it."""
    game = new_game(d_steps=0)
    before = weights(game.judge)
    play(game, 2)
    assert all(p.grad is None for p in game.judge.parameters()), "the judge's weights got a gradient"
    assert torch.equal(weights(game.judge), before)


def test_the_rollout_policy_follows():
    check_the_rollout_policy_follows()


def test_the_negatives_are_new():
    check_the_negatives_are_new()


def test_a_generator_step_leaves_the_judge_alone():
    check_a_generator_step_leaves_the_judge_alone()


def test_the_negatives_are_written_by_the_generator_as_it_is(monkeypatch):
    """Not by the roll-out policy, nor by the generator as it was before the round."""
    game, negatives = new_game(d_steps=1, learning_rate=0.5, update_rate=1.0), []
    with torch.no_grad():
        game.model.output_bias[1] += 20  # the generator has moved to one token since β was copied

    def spy(judge, optimiser, real, generated, **how):
        negatives.append(generated)

    monkeypatch.setattr(adversarial, "train_discriminator", spy)
    play(game, 1)
    assert (negatives[0] == 1).double().mean() > 0.9
    assert (game.policy.sample(50, LENGTH, generator=new_generator(0)) == 1).double().mean() < 0.5


def test_the_first_round_rolls_out_the_generator_itself(monkeypatch):
    game, seen = new_game(), []
    assert torch.equal(weights(game.policy), weights(game.model))
    assert not any(p.requires_grad for p in game.policy.parameters())
    values_of = adversarial.action_values

    def spy(policy, sequences, judge, **how):
        seen.append((policy, judge, weights(policy), how["rollouts"], sequences.shape))
        return values_of(policy, sequences, judge, **how)

    monkeypatch.setattr(adversarial, "action_values", spy)
    before = weights(game.model)
    play(game, 2)
    assert all(policy is game.policy and judge is game.judge for policy, judge, *_ in seen)
    assert torch.equal(seen[0][2], before) and not torch.equal(seen[1][2], before)
    assert seen[0][3:] == (2, (8, LENGTH))


def test_a_round_is_g_steps_then_d_steps_then_the_update(monkeypatch):
    calls = []
    for name in ("_g_step", "_d_step"):
        monkeypatch.setattr(Game, name, lambda self, *how, name=name: calls.append((name, *how)) or torch.zeros(2))
    monkeypatch.setattr(adversarial, "update_policy", lambda policy, model, rate: calls.append(("update", rate)))
    play(new_game(g_steps=2, d_steps=3, k=4, update_rate=0.6), 1)
    assert calls == [("_g_step",)] * 2 + [("_d_step", 4)] * 3 + [("update", 0.6)]


@pytest.mark.parametrize("baseline", policy_gradient.BASELINES)
def test_one_generator_step_equals_the_textbook(baseline):
    """Sample, roll out, −Σ log G · advantage, clip, Adam: from the same stream, by hand."""
    game, judge = new_game(d_steps=0, baseline=baseline, clip=0.3, learning_rate=0.02), share_of_token_1
    game = Game(game.model, judge, game.data, generator=new_generator(9), rules=game.rules)
    textbook, stream = copy.deepcopy(game.model), new_generator(9)
    torch.randint(2**31, (), generator=stream)  # the watcher's seed
    sequences = textbook.sample(8, LENGTH, generator=stream)
    values = adversarial.action_values(textbook, sequences, judge, rollouts=2, generator=stream)
    trained = [p for p in textbook.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trained, lr=0.02)
    chosen = textbook(sequences).log_softmax(-1).gather(-1, sequences[..., None]).squeeze(-1)
    loss = -(chosen * policy_gradient.advantages(values, baseline)).sum()
    loss.backward()
    assert torch.nn.utils.clip_grad_norm_(trained, 0.3) > 0.3, "clipping matters here"
    adam.step()
    history = play(game, 1)
    torch.testing.assert_close(weights(game.model), weights(textbook), atol=1e-4, rtol=1e-3)
    rewards = [history[f"reward_{t}"][1] for t in range(1, LENGTH + 1)]
    assert rewards == pytest.approx(values.mean(0).tolist())


def test_a_discriminator_step_equals_the_textbook(data):
    """Two epochs over positives and negatives shuffled together, the last batch short; no dropout to follow."""
    ours = new_discriminator(dropout=0.0)
    textbook = copy.deepcopy(ours)
    negatives = new_data(20).flip(1)
    adams = [torch.optim.Adam(judge.parameters(), lr=0.003) for judge in (ours, textbook)]
    how = {"epochs": 2, "generator": new_generator(5), "batch_size": 16}
    mean = adversarial.train_discriminator(ours, adams[0], data, negatives, **how)
    both, real, stream = torch.cat([data, negatives]), torch.tensor([1] * 24 + [0] * 20), new_generator(5)
    for _ in range(2):
        total = 0.0
        for batch in torch.randperm(44, generator=stream).split(16):
            loss = textbook.loss(both[batch], real[batch])
            adams[1].zero_grad()
            loss.backward()
            adams[1].step()
            total += loss.item() * len(batch)
    assert mean == pytest.approx(total / 44, rel=1e-5)
    torch.testing.assert_close(weights(ours), weights(textbook))


def test_a_game_trains_its_discriminator_by_the_rules():
    """On what the generator writes, with the judge's own rate and batches, for as many epochs as it is told."""
    game, by_hand = (new_game(d_learning_rate=0.003, learning_rate=0.2, batch_size=7) for _ in range(2))
    negatives = by_hand.model.sample(24, LENGTH, generator=by_hand.generator)
    adam = torch.optim.Adam(by_hand.judge.parameters(), lr=0.003)
    how = {"epochs": 3, "generator": by_hand.generator, "batch_size": 7}
    adversarial.train_discriminator(by_hand.judge, adam, by_hand.data, negatives, **how)
    game.train_discriminator(1, epochs=3, progress=False)
    torch.testing.assert_close(weights(game.judge), weights(by_hand.judge))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"real": new_data()[:0]}, r"\(0, 5\)"),
        ({"generated": new_data()[:0]}, r"\(0, 5\)"),
        ({"generated": new_data()[:, :4]}, "reads sequences of 5 tokens, not 4"),
        ({"real": new_data() + 1}, "0 to 6 are allowed"),
        ({"batch_size": 0}, "batch_size must be"),
    ],
)
def test_the_discriminator_learns_from_nothing_else(data, changed, says):
    judge = new_discriminator()
    before = weights(judge)
    given = {"real": data, "generated": data.flip(1), "epochs": 1, "generator": new_generator(0), **changed}
    with pytest.raises(ValueError, match=says):
        adversarial.train_discriminator(judge, torch.optim.Adam(judge.parameters()), **given)
    assert torch.equal(weights(judge), before)


def test_the_discriminator_learns_with_dropout_and_is_left_so(data):
    judge = new_discriminator().eval()
    adam = torch.optim.Adam(judge.parameters())
    stream = judge.get_extra_state()
    adversarial.train_discriminator(judge, adam, data, data.flip(1), epochs=1, generator=new_generator(0))
    assert judge.training and not torch.equal(judge.get_extra_state(), stream)


# ---------------------------------------------------------------- learning


@pytest.mark.parametrize("baseline", policy_gradient.BASELINES)
def test_the_exact_objective_goes_up(baseline):
    """Tiny worlds with a judge that knows: J climbs in each of five, by 0.15 of 1 on average."""
    gains = []
    for seed in range(5):
        model, rewards, judge = tiny_world(3, 4, seed)
        rules = Rules(batch_size=32, rollouts=4, baseline=baseline, learning_rate=0.05, update_rate=0.0)
        game = Game(model, judge, exact.all_sequences(3, 4), generator=new_generator(seed), rules=rules)
        before = exact.objective(model, rewards).item()
        play(game, 40, evaluate_every=40)
        gains.append(exact.objective(model, rewards).item() - before)
    assert min(gains) > 0.01 and sum(gains) / len(gains) > 0.15


def test_the_discriminator_learns_to_tell():
    game = new_game(d_learning_rate=5e-3, held_out=new_data(48)[24:])
    history = game.train_discriminator(15, progress=False)
    assert history["round"].tolist() == list(range(16))
    assert history.columns == ["round", "d_loss", "d_accuracy", "d_loss_fresh", "d_accuracy_fresh"]
    assert history["d_accuracy"][-1] > history["d_accuracy"][0] + 0.15
    assert history["d_loss"][-1] < history["d_loss"][0]


def test_pg_bleu_comes_to_write_what_bleu_rewards(data):
    bleu = Bleu(data[:1], order=2)
    game = new_game(bleu, baseline="batch", learning_rate=0.05, batch_size=32, update_rate=0.0)
    history = play(
        game,
        40,
        evaluate=lambda m: {"bleu": bleu(m.sample(500, LENGTH, generator=new_generator(0))).mean().item()},
        evaluate_every=40,
    )
    start, end = history["bleu"]
    assert end > start + 0.3


# ---------------------------------------------------------------- repeatable


@pytest.mark.parametrize("baseline", policy_gradient.BASELINES)
def test_the_same_seed_gives_the_same_game(baseline):
    before = torch.get_rng_state()
    games = [new_game(seed=seed, baseline=baseline) for seed in (4, 4, 5)]
    histories = []
    for game in games:
        game.train_discriminator(1, epochs=1, progress=False)
        histories.append(play(game))
    one, two, other = games
    assert same(state_of(one), state_of(two)) and histories[0].rows == histories[1].rows
    assert not same(state_of(one), state_of(other))
    assert torch.equal(torch.get_rng_state(), before), "global randomness is left alone"


def test_how_often_one_looks_does_not_change_the_training():
    often, seldom, watched = new_game(), new_game(), new_game(held_out=new_data(40)[24:])
    play(often, 4)
    play(seldom, 4, evaluate_every=3)
    play(watched, 4, evaluate=lambda m: {"nll": mean_nll(m, new_data())})
    assert same(state_of(often), state_of(seldom)) and same(state_of(often), state_of(watched))


def test_play_may_be_continued():
    whole, parts = new_game(), new_game()
    play(whole, 4)
    for _ in range(2):
        play(parts, 2)
    assert same(state_of(whole), state_of(parts))


# ---------------------------------------------------------------- history


def test_the_history_has_what_a_reader_plots(data):
    game = new_game(held_out=new_data(40)[24:])
    history = play(game, 3, evaluate=lambda m: {"nll": mean_nll(m, data)})
    rewards = [f"reward_{t}" for t in range(1, LENGTH + 1)]
    watched = ["d_loss", "d_accuracy", "d_loss_fresh", "d_accuracy_fresh"]
    assert set(history.columns) == {"round", *rewards, *watched, "nll"}
    assert history["round"].tolist() == [0, 1, 2, 3]
    for name in rewards:
        assert math.isnan(history[name][0]) and all(0 < x < 1 for x in history[name][1:])
    for name in (*watched, "nll"):
        assert all(math.isfinite(x) for x in history[name])


def test_without_held_out_data_nothing_fresh_is_noted_and_without_a_learner_nothing_of_it(data):
    assert "d_loss_fresh" not in play(new_game(), 1).columns
    columns = play(new_game(Bleu(data)), 1).columns
    assert columns == ["round", *(f"reward_{t}" for t in range(1, LENGTH + 1))]


def test_the_watched_numbers_are_the_verdicts(data):
    """Round 0: the same judge on the data, on as many of the held-out, and on what the watcher's own stream draws."""
    held_out = new_data(64)[24:]
    game = new_game(held_out=held_out)
    watcher = new_generator(int(torch.randint(2**31, (), generator=new_generator(4))))
    negatives = game.model.sample(len(data), LENGTH, generator=watcher)
    wanted = [verdict(game.judge, real[: len(data)], negatives) for real in (data, held_out)]
    row = play(game, 1).rows[0]
    assert {name: row[f"d_{name}"] for name in wanted[0]} == wanted[0]
    assert {name: row[f"d_{name}_fresh"] for name in wanted[1]} == wanted[1]


def test_no_more_than_two_thousand_of_each_kind_are_watched(monkeypatch):
    seen = []

    def spy(judge, real, generated):
        seen.append((len(real), len(generated)))
        return {"loss": 0.0, "accuracy": 0.0}

    monkeypatch.setattr(adversarial, "verdict", spy)
    play(new_game(data=new_data(2_003), held_out=new_data(2_001), d_steps=0), 1)
    assert set(seen) == {(2_000, 2_000)}


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4, 5]), (5, [0, 5]), (9, [0, 5])])
def test_the_first_and_the_last_round_are_always_noted(data, every, expected):
    assert play(new_game(Bleu(data)), 5, evaluate_every=every)["round"].tolist() == expected


def scripted(numbers, kept):
    """An evaluation that gives ``numbers`` in turn and keeps the weights it saw."""

    def evaluate(model):
        kept.append(weights(model))
        return {"nll": numbers[len(kept) - 1]}

    return evaluate


@pytest.mark.parametrize(
    ("numbers", "best"), [([5, 3, 4, 4], 1), ([2, 3, 4, 5], 0), ([5, 4, 4, 3], 3), ([5, 3, 3, 4], 1)]
)
def test_the_best_weights_are_kept(data, numbers, best):
    kept, game = [], new_game(Bleu(data))
    history = play(game, 3, evaluate=scripted(numbers, kept), keep_best="nll")
    assert history["nll"].tolist() == numbers, "the game went on to the end"
    assert torch.equal(weights(game.model), kept[best])
    assert len({tuple(w.tolist()) for w in kept}) == 4


def test_without_keep_best_the_last_weights_stay(data):
    kept, game = [], new_game(Bleu(data))
    play(game, 3, evaluate=scripted([1, 2, 3, 4], kept))
    assert torch.equal(weights(game.model), kept[-1])


@pytest.mark.parametrize(("patience", "rows"), [(1, 4), (2, 5), (3, 9), (4, 10), (20, 11)])
def test_patience_stops_after_so_many_rows_without_a_new_best(data, patience, rows):
    kept, game = [], new_game(Bleu(data))
    numbers = [9, 8, 7, 7.5, 7.2, 6, 6, 6.1, 6.2, 6.3, 6.4]
    expected = {1: 4, 2: 5, 3: 9, 4: 10, 20: 11}[patience]
    history = play(game, 10, evaluate=scripted(numbers, kept), keep_best="nll", patience=patience)
    assert len(history.rows) == expected == rows
    assert torch.equal(weights(game.model), kept[5 if rows > 5 else 2])


def test_progress_is_shown_where_asked_for(data, capsys):
    game = new_game()
    game.train_discriminator(1, epochs=1)
    play(game, 1, progress=True)
    shown = capsys.readouterr().err
    assert "discriminator" in shown and "game" in shown and "accuracy" in shown
    game.train_discriminator(1, epochs=1, progress=False)
    play(game, 1)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- stopped


def test_interrupting_returns_the_history_so_far(data, capsys):
    kept = []

    def stop_at_the_third(model):
        kept.append(weights(model))
        if len(kept) == 3:
            raise KeyboardInterrupt
        return {"nll": 5 - len(kept)}

    game = new_game(Bleu(data))
    history = play(game, 50, evaluate=stop_at_the_third)
    assert history["round"].tolist() == [0, 1] and history["nll"].tolist() == [4, 3]
    assert "stopped by hand; the history holds 2 evaluations" in capsys.readouterr().out
    assert torch.equal(weights(game.model), kept[2])


def test_interrupting_a_game_that_keeps_the_best_leaves_the_best(data):
    kept = []

    def stop_at_the_third(model):
        kept.append(weights(model))
        if len(kept) == 3:
            raise KeyboardInterrupt
        return {"nll": len(kept)}

    game = new_game(Bleu(data))
    play(game, 50, evaluate=stop_at_the_third, keep_best="nll")
    assert torch.equal(weights(game.model), kept[0])


def test_a_round_that_is_interrupted_is_undone(monkeypatch):
    """Half of it is done: the generator has moved, the discriminator has not. Played again, it is the same round."""
    game, other, step = new_game(), new_game(), Game._d_step
    play(game, 1), play(other, 2)
    before = state_of(game)

    def stop(self, epochs):
        assert not same(self.model.state_dict(), before[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(Game, "_d_step", stop)
    assert play(game, 1)["round"].tolist() == [0]
    assert same(state_of(game), before)
    monkeypatch.setattr(Game, "_d_step", step)
    play(game, 1)
    assert same(state_of(game), state_of(other))


def test_interrupting_the_discriminators_pre_training_returns_its_history(monkeypatch):
    game, calls, step = new_game(), [], Game._d_step

    def stop_at_the_second(self, epochs):
        calls.append(epochs)
        if len(calls) == 2:
            raise KeyboardInterrupt
        step(self, epochs)

    monkeypatch.setattr(Game, "_d_step", stop_at_the_second)
    assert game.train_discriminator(9, epochs=1, progress=False)["round"].tolist() == [0, 1]


def diverging(monkeypatch, what, value, when=2):
    """From round ``when`` on, ``Discriminator.what`` gives ``value``; returns an evaluation that keeps the states."""
    states, usual = [], getattr(Discriminator, what)

    def spoilt(self, *args):
        return usual(self, *args) * (value if len(states) == when else 1)

    def evaluate(model):
        states.append(state_of(game))
        return {"rows": len(states)}

    game = new_game()
    monkeypatch.setattr(Discriminator, what, spoilt)
    return game, states, evaluate


@pytest.mark.parametrize(("what", "quantity"), [("forward", "rewards"), ("loss", "loss")], ids=["rewards", "D's loss"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_undoes_the_round(monkeypatch, what, quantity, value):
    game, states, evaluate = diverging(monkeypatch, what, value)
    with pytest.raises(TrainingDiverged, match=f"{quantity} not finite in round 2") as error:
        play(game, 5, evaluate=evaluate)
    assert error.value.step == "round 2 (game)" and error.value.quantity.endswith(quantity)
    assert error.value.history["round"].tolist() == [0, 1]
    assert len(states) == 2 and same(state_of(game), states[1]) and not same(states[0], states[1])


def test_a_generator_loss_that_is_not_finite_undoes_the_round(monkeypatch):
    game, before = new_game(), []
    monkeypatch.setattr(adversarial, "policy_gradient_loss", lambda model, *how: model.output.sum() * float("nan"))
    before.append(state_of(game))
    with pytest.raises(TrainingDiverged, match="the generator's loss or gradient not finite in round 1"):
        play(game, 2)
    assert same(state_of(game), before[0])


def test_a_generator_gradient_that_is_not_finite_undoes_the_round(monkeypatch):
    """A finite loss with an infinite slope: √x at 0."""
    game = new_game()
    before = state_of(game)
    monkeypatch.setattr(adversarial, "policy_gradient_loss", lambda model, *how: (model.output * 0).sum().sqrt())
    with pytest.raises(TrainingDiverged, match="loss or gradient not finite"):
        play(game, 2)
    assert same(state_of(game), before)


def test_weights_that_are_not_finite_are_named(data):
    game = new_game()
    with torch.no_grad():
        game.model.output[0, 0] = float("nan")
    game._verdicts = dict  # watching would meet them first
    with pytest.raises(TrainingDiverged, match="logits not finite in round 1"):
        play(game, 1)


def test_a_discriminator_that_diverges_in_pre_training_is_restored(monkeypatch):
    game, calls, loss = new_game(), [], Discriminator.loss

    def spoilt_from_the_third_batch(self, *args):
        calls.append(1)
        return loss(self, *args) * (float("nan") if len(calls) > 6 else 1)  # 6 batches of 8 an epoch

    monkeypatch.setattr(Discriminator, "loss", spoilt_from_the_third_batch)
    states, step = [], Game._d_step
    monkeypatch.setattr(Game, "_d_step", lambda self, epochs: states.append(state_of(self)) or step(self, epochs))
    with pytest.raises(TrainingDiverged, match="loss not finite in round 2 \\(discriminator") as error:
        game.train_discriminator(3, epochs=1, progress=False)
    assert error.value.history["round"].tolist() == [0, 1]
    assert len(states) == 2 and same(state_of(game), states[1])


# ---------------------------------------------------------------- what is refused


def test_pg_bleu_has_no_discriminator_to_train(data):
    with pytest.raises(ValueError, match="Bleu does not learn"):
        new_game(Bleu(data)).train_discriminator(1)


@pytest.mark.parametrize(
    ("judge", "says"),
    [
        (lambda: Discriminator(8, LENGTH, generator=new_generator(0), windows=((1, 2),)), "vocabulary is 8, .* 7"),
        (lambda: Discriminator(7, 4, generator=new_generator(0), windows=((1, 2),)), "length is 4, .* 5"),
        (lambda: Bleu(new_data()[:, :4]), "length is 4, .* 5"),
    ],
)
def test_a_judge_of_another_world_is_refused(judge, says):
    with pytest.raises(ValueError, match=f"the judge's {says}"):
        new_game(judge())


def test_data_of_another_vocabulary_are_refused(data):
    with pytest.raises(ValueError, match="data holds tokens"):
        new_game(data=data + 1)
    with pytest.raises(ValueError, match="data must be an int64 tensor"):
        new_game(data=data.tolist())
    with pytest.raises(ValueError, match="held_out holds tokens"):
        new_game(held_out=data + 1)
    with pytest.raises(ValueError, match="held_out must be an int64 tensor.*list"):
        new_game(held_out=data.tolist())
    with pytest.raises(ValueError, match="held_out has sequences of 4 tokens, and the data of 5"):
        new_game(Bleu(data), held_out=data[:, :4])


def test_a_judge_that_gives_logits_is_refused(data):
    with pytest.raises(ValueError, match="not logits"):
        play(new_game(lambda x: x.double().sum(1) - 9), 1)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"g_steps": 0}, "g_steps must be.*at least 1"),
        ({"d_steps": -1}, "d_steps must be.*at least 0"),
        ({"k": 0}, "k must be.*at least 1"),
        ({"rollouts": -1}, "rollouts must be.*at least 0"),
        ({"rollouts": 0, "baseline": "prefix"}, "without roll-outs"),
        ({"rollouts": 1.5}, "rollouts"),
        ({"batch_size": 0}, "batch_size must be.*at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be.*above 0"),
        ({"d_learning_rate": -1.0}, "d_learning_rate must be.*above 0"),
        ({"clip": float("inf")}, "clip must be"),
        ({"update_rate": 1.2}, "update_rate.*from 0 to 1, but is 1.2"),
        ({"update_rate": -0.2}, "update_rate"),
        ({"baseline": "mean"}, "no baseline 'mean'; there are none, batch, prefix"),
    ],
)
def test_wrong_rules_are_refused(setting, says):
    with pytest.raises(ValueError, match=says):
        Rules(**setting)


def test_the_default_rules_are_the_published_ones():
    rules = Rules()
    assert (rules.g_steps, rules.d_steps, rules.k, rules.rollouts, rules.update_rate) == (1, 5, 3, 16, 0.8)
    assert (rules.batch_size, rules.learning_rate, rules.d_learning_rate, rules.clip) == (64, 0.01, 1e-4, 5.0)
    assert rules.baseline == "none"
    assert new_game().rules != rules == Game(*parts_of(new_game()), generator=new_generator(0)).rules


def parts_of(game):
    return game.model, game.judge, game.data


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda g: g.play(0), "rounds must be"),
        (lambda g: g.play(1, evaluate_every=0), "evaluate_every must be"),
        (lambda g: g.play(1, keep_best="d_loss", patience=0), "patience must be"),
        (lambda g: g.play(1, patience=2), "name it with keep_best"),
        (lambda g: g.train_discriminator(0), "rounds must be"),
        (lambda g: g.train_discriminator(1, epochs=0), "epochs must be"),
    ],
)
def test_wrong_settings_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call(new_game())


def test_a_column_that_nobody_fills_cannot_be_the_best():
    with pytest.raises(KeyError, match="no column 'nll' to keep the best by"):
        play(new_game(), 1, keep_best="nll")


# ---------------------------------------------------------------- on a GPU


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_game_on_cuda(data):
    judge, model = new_discriminator().to("cuda"), LanguageModel(VOCABULARY, generator=new_generator(2)).to("cuda")
    game = Game(model, judge, data, generator=new_generator(0), held_out=data, rules=Rules(**FEW))
    history = play(game, 2, evaluate=lambda m: {"nll": mean_nll(m, game.data)})
    assert all(math.isfinite(x) for x in history["nll"]) and history["round"].tolist() == [0, 1, 2]


def test_an_epoch_of_nothing_is_refused(data):
    game = new_game()
    with pytest.raises(ValueError, match="epochs must be.*at least 1"):
        game.train_discriminator(1, 0, progress=False)


def test_a_module_that_is_no_discriminator_rewards_and_is_not_trained(data):
    class Share(torch.nn.Module):
        def forward(self, sequences):
            return share_of_token_1(sequences)

    game = new_game(Share())
    columns = play(game, 1).columns
    assert not any(name.startswith("d_") for name in columns)
    with pytest.raises(ValueError, match="Share does not learn"):
        game.train_discriminator(1, progress=False)

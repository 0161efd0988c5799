"""Training: it learns, it repeats itself to the bit, it stops by hand or by reason, and its history holds."""

import copy

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn

from seqgan_lib import LanguageModel, new_generator, random_oracle
from seqgan_lib.history import History
from seqgan_lib.metrics import mean_nll
from seqgan_lib.mle import scheduled_inputs, train_mle
from seqgan_lib.training import TrainingDiverged

matplotlib.use("agg")


@pytest.fixture
def data():
    return random_oracle(12, generator=new_generator(0)).sample(200, 6, generator=new_generator(1))


def fresh():
    return LanguageModel(12, generator=new_generator(2))


def train(model, data, **settings):
    return train_mle(model, data, **{"epochs": 2, "generator": new_generator(3), "progress": False, **settings})


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_one_step_equals_the_textbook_loop(data):
    ours, textbook = fresh(), fresh()
    train(ours, data, epochs=1, batch_size=len(data))  # one batch, so the shuffle only reorders a mean
    adam = torch.optim.Adam(textbook.parameters(), lr=0.01)
    nn.functional.cross_entropy(textbook(data).flatten(0, 1), data.flatten()).backward()
    nn.utils.clip_grad_norm_(textbook.parameters(), 5.0)
    adam.step()
    torch.testing.assert_close(weights(ours), weights(textbook), atol=1e-5, rtol=1e-4)


def test_several_batches_equal_the_textbook_loop(data):
    """Two epochs of three batches, the last one short; another rate, so that no default hides it."""
    ours, textbook = fresh().double(), fresh().double()
    history = train(ours, data[:150], learning_rate=0.003, generator=new_generator(7))
    adam, generator, losses = torch.optim.Adam(textbook.parameters(), lr=0.003), new_generator(7), []
    for _ in range(2):
        total = 0.0
        for rows in torch.randperm(150, generator=generator).split(64):
            batch = data[rows]
            loss = nn.functional.cross_entropy(textbook(batch).flatten(0, 1), batch.flatten())
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(textbook.parameters(), 5.0)
            adam.step()
            total += loss.item() * len(batch)
        losses.append(total / 150)
    np.testing.assert_allclose(history["loss"][1:], losses, rtol=1e-6)
    torch.testing.assert_close(weights(ours), weights(textbook), atol=1e-8, rtol=1e-6)


def test_scheduled_sampling_reads_mixed_inputs_and_predicts_the_truth(data, monkeypatch):
    """One step at ω < 1 against the textbook: true targets, mixed inputs."""
    mixed = fresh().shift(data.flip(1))  # any inputs that are not the true past
    monkeypatch.setattr("seqgan_lib.mle.scheduled_inputs", lambda model, batch, omega, generator: mixed)
    monkeypatch.setattr("torch.randperm", lambda n, **how: torch.arange(n))
    ours, textbook = fresh(), fresh()
    train(ours, data, epochs=1, batch_size=len(data), omega_decay=0.0)
    teacher_forced = weights(ours)
    ours = fresh()
    train(ours, data, epochs=2, batch_size=len(data), omega_decay=0.5)
    adam = torch.optim.Adam(textbook.parameters(), lr=0.01)
    for inputs in (textbook.shift(data), mixed):
        adam.zero_grad()
        hidden = textbook.lstm(nn.functional.embedding(inputs, textbook.embedding))[0]
        logits = hidden @ textbook.output + textbook.output_bias
        nn.functional.cross_entropy(logits.flatten(0, 1), data.flatten()).backward()
        nn.utils.clip_grad_norm_(textbook.parameters(), 5.0)
        adam.step()
    torch.testing.assert_close(weights(ours), weights(textbook), atol=1e-4, rtol=1e-3)
    assert (weights(ours) - teacher_forced).abs().max() > 1e-3


def test_the_last_epoch_is_always_recorded(data):
    assert train(fresh(), data, epochs=5, evaluate_every=2)["epoch"].tolist() == [0, 2, 4, 5]


def test_it_learns(data):
    model = fresh()
    history = train(model, data, epochs=20, evaluate=lambda m: {"train": mean_nll(m, data)}, evaluate_every=10)
    assert history["epoch"].tolist() == [0, 10, 20]
    assert history["train"][0] > history["train"][1] + 0.2 > history["train"][2]
    assert np.isnan(history["loss"][0])


@pytest.mark.parametrize("omega_decay", [0.0, 0.5])
def test_the_same_seed_gives_the_same_weights(data, omega_decay):
    one, two, other = fresh(), fresh(), fresh()
    train(one, data, omega_decay=omega_decay)
    train(two, data, omega_decay=omega_decay)
    train(other, data, omega_decay=omega_decay, generator=new_generator(4))
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(other))


def test_gradients_are_clipped(data):
    model = fresh()
    before = weights(model)
    train(model, data, epochs=1, clip=1e-12, learning_rate=0.01)
    # Adam divides by the gradient's own size, so only its ε = 1e-8 lets a clipped step be seen to be small.
    assert (weights(model) - before).abs().max() < 1e-3


def test_the_zero_bias_stays_zero(data):
    model = fresh()
    train(model, data)
    assert not model.lstm.bias_hh_l0.any()


def test_scheduled_inputs_start_with_the_start_token_and_mix_the_past(data):
    model = fresh()
    assert torch.equal(scheduled_inputs(model, data, 1.0, generator=new_generator(0)), model.shift(data))
    mixed = scheduled_inputs(model, data, 0.6, generator=new_generator(0))
    assert (mixed[:, 0] == model.start_token).all()
    kept = (mixed[:, 1:] == data[:, :-1]).float().mean().item()
    assert kept == pytest.approx(0.6 + 0.4 / 12, abs=0.05)  # an untrained model hits the true token one time in 12


def test_omega_falls_by_the_decay_each_epoch_and_not_below_zero(data, monkeypatch):
    seen = []

    def spy(model, batch, omega, generator):
        seen.append(omega)
        return model.shift(batch)

    monkeypatch.setattr("seqgan_lib.mle.scheduled_inputs", spy)
    train(fresh(), data, epochs=4, omega_decay=0.4, batch_size=200)
    assert seen == pytest.approx([0.6, 0.2, 0.0])  # the first epoch, ω = 1, is plain teacher forcing


def test_interrupting_returns_the_history_so_far(data, capsys):
    def stop_at_third(model, calls=[]):  # noqa: B006 (the list is the counter)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"calls": len(calls)}

    history = train(fresh(), data, epochs=50, evaluate=stop_at_third)
    assert history["calls"].tolist() == [1, 2]
    assert "stopped by hand" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_training(data):
    model = fresh()
    before = []

    def spoil_after_the_second(model):
        before.append(weights(model))
        if len(before) == 3:
            with torch.no_grad():
                model.output[0, 0] = float("nan")
        return {}

    with pytest.raises(TrainingDiverged, match="the loss not finite in epoch 3") as error:
        train(model, data, epochs=5, evaluate=spoil_after_the_second)
    assert error.value.step == "epoch 3 (MLE)" and error.value.quantity == "the loss"
    assert error.value.history["epoch"].tolist() == [0, 1, 2]


def test_the_last_good_weights_are_kept(data, monkeypatch):
    model, kept = fresh(), []
    nll = LanguageModel.nll

    def fails_in_the_second_epoch(self, *args):
        loss = nll(self, *args)
        return loss * float("inf") if len(kept) == 2 else loss

    monkeypatch.setattr(LanguageModel, "nll", fails_in_the_second_epoch)
    with pytest.raises(TrainingDiverged, match="epoch 2"):
        train(model, data, epochs=5, evaluate=lambda m: kept.append(weights(m)) or {})
    assert len(kept) == 2 and torch.equal(weights(model), kept[1])


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"clip": -1.0}, "clip"),
        ({"omega_decay": -0.1}, "omega_decay.*-0.1"),
        ({"omega_decay": float("nan")}, "omega_decay"),
    ],
)
def test_wrong_settings_are_refused(data, setting, says):
    with pytest.raises(ValueError, match=says):
        train(fresh(), data, **setting)


def test_wrong_data_is_refused_before_any_step(data):
    model = fresh()
    before = copy.deepcopy(weights(model))
    with pytest.raises(ValueError, match="data holds tokens"):
        train(model, data + 1)
    assert torch.equal(weights(model), before)


def test_progress_is_shown_where_asked_for(data, capsys):
    train(fresh(), data, progress=True)
    assert "MLE" in capsys.readouterr().err
    train(fresh(), data, progress=False)
    assert capsys.readouterr().err == ""


def test_history_survives_a_file_to_the_last_digit(tmp_path):
    history = History([{"epoch": 0, "held_out": 1 / 3}, {"epoch": 1, "held_out": 2 / 3, "loss": 0.1}])
    history.to_csv(tmp_path / "h.csv")
    again = History.from_csv(tmp_path / "h.csv")
    assert again.columns == ["epoch", "held_out", "loss"]
    for column in history.columns:
        np.testing.assert_array_equal(again[column], history[column])


def test_history_plots_itself_and_names_what_it_has():
    history = History([{"epoch": 0, "loss": 2.0, "held_out": 2.5}, {"epoch": 1, "loss": 1.0, "held_out": 2.0}])
    ax = history.plot()
    assert [line.get_label() for line in ax.lines] == ["loss", "held out"]
    assert [line.get_label() for line in history.plot("loss", ax=ax, color="red").lines] == ["loss", "held out", "loss"]
    with pytest.raises(KeyError, match="nll_oracle.*epoch, loss, held_out"):
        history["nll_oracle"]

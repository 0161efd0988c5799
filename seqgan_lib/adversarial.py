"""The game: the paper's Algorithm 1, and its relatives with another judge or another baseline."""

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from .checks import check_at_least, check_finite, check_positive, check_share, check_tokens
from .discriminator import Discriminator, verdict
from .graphs import Graphed
from .history import History
from .language_model import LanguageModel
from .policy_gradient import check_baseline, policy_gradient_loss
from .rollout import Judge, action_values, fitting_chunk, update_policy
from .sampling import new_generator, stream_on
from .training import Keeper, Part, adam_step, baked, run_steps, train_epoch


@dataclass(frozen=True)
class Rules:
    """The numbers in Algorithm 1 and its optimisers. The defaults are the published code's (``sequence_gan.py``).

    They are the game's; the imitation before it has batches of 64 and Adam at 0.01, whatever stands here.
    """

    g_steps: int = 1  # generator steps a round, each on ``batch_size`` new sequences
    d_steps: int = 5  # discriminator steps a round, each with new negatives, as many as there are positives
    k: int = 3  # epochs over positives and negatives in one discriminator step
    rollouts: int = 16  # N; 0 gives every token the verdict on the finished sequence
    update_rate: float = 0.8  # of the roll-out policy, see :func:`~seqgan_lib.rollout.update_policy`
    baseline: str = "none"  # see :func:`~seqgan_lib.policy_gradient.advantages`
    batch_size: int = 64  # of both
    learning_rate: float = 0.01  # of the generator's Adam
    d_learning_rate: float = 1e-4  # of the discriminator's
    clip: float = 5.0  # the largest norm of the generator's gradient

    def __post_init__(self) -> None:
        for name in ("g_steps", "d_steps", "k", "rollouts", "batch_size"):
            check_at_least(getattr(self, name), 0 if name in ("d_steps", "rollouts") else 1, name)
        for name in ("learning_rate", "d_learning_rate", "clip"):
            check_positive(getattr(self, name), name)
        check_share(self.update_rate, "update_rate")
        check_baseline(self.baseline, self.batch_size)
        if self.baseline == "prefix" and self.rollouts == 0:
            raise ValueError("baseline 'prefix' is the value of the token before; without roll-outs that is the same")


def train_discriminator(
    discriminator: Discriminator,
    optimiser: torch.optim.Optimizer,
    real: Tensor,
    generated: Tensor,
    *,
    epochs: int,
    generator: Generator,
    batch_size: int = 64,
) -> float:
    """Teach ``discriminator`` to tell ``real`` from ``generated`` sequences, each (sequences, T) int64, in place.

    Every epoch shuffles both together. Returns the mean loss of the last one (nats, with dropout and penalty). Raises
    ValueError for sequences that ``discriminator`` cannot read, none of a kind among them.
    """
    check_at_least(epochs, 1, "epochs")
    check_at_least(batch_size, 1, "batch_size")
    for kind in (real, generated):
        discriminator.check(kind)
    sequences = torch.cat([real, generated])
    labels = torch.arange(len(sequences), device=real.device).lt(len(real)).long()
    discriminator.train()

    how = {"batch_size": batch_size, "quantity": "the discriminator's loss", "streams": [discriminator.stream]}
    data = sequences, labels
    return [train_epoch(discriminator.loss, data, optimiser, generator, **how) for _ in range(epochs)][-1]


class Game:
    """Generator against judge: first ``game.train_discriminator(…)``, then ``game.play(rounds)``.

    ``judge`` is a :class:`~seqgan_lib.discriminator.Discriminator`, which learns (SeqGAN), or any other
    :data:`~seqgan_lib.rollout.Judge`, which does not: with :class:`~seqgan_lib.bleu.Bleu` on the training data the
    game is PG-BLEU. ``data`` (sequences, T) int64 are the positives; ``held_out``, likewise, is never trained on and
    only watched. Model and judge are trained in place; ``generator`` is the only randomness, and how often one
    evaluates does not change the training.
    """

    def __init__(
        self,
        model: LanguageModel,
        judge: Discriminator | Judge,
        data: Tensor,
        *,
        generator: Generator,
        held_out: Tensor | None = None,
        rules: Rules | None = None,
    ) -> None:
        for name, tokens in ("data", data), ("held_out", data if held_out is None else held_out):
            check_tokens(tokens.cpu() if isinstance(tokens, Tensor) else tokens, model.vocabulary, name)
        if held_out is not None and held_out.shape[1] != data.shape[1]:
            raise ValueError(f"held_out has sequences of {held_out.shape[1]} tokens, and the data of {data.shape[1]}")
        for name, ours in ("vocabulary", model.vocabulary), ("length", data.shape[1]):
            if (theirs := getattr(judge, name, ours)) != ours:
                raise ValueError(f"the judge's {name} is {theirs}, that of the generator and the data {ours}")
        self.model, self.judge, self.rules = model, judge, rules or Rules()
        self.generator = stream_on(generator, model.device)
        self.data = data.to(model.device)
        self.held_out = None if held_out is None else held_out.to(model.device)
        model.lstm.flatten_parameters()  # a copied model's lie apart, which cuDNN would mend at every step
        self.policy = copy.deepcopy(model).requires_grad_(False)  # β ← θ
        self._weights = [p for p in model.parameters() if p.requires_grad]
        self._adam = torch.optim.Adam(self._weights, lr=self.rules.learning_rate, fused=True)
        self._parts: list[Part] = [model, self.policy, self._adam, self.generator]
        self._learns = isinstance(judge, Discriminator)
        if self._learns:
            self._d_adam = torch.optim.Adam(judge.parameters(), lr=self.rules.d_learning_rate, fused=True)
            self._parts += [judge, self._d_adam]
        # A judge of another kind may look at its numbers, which cannot be recorded.
        device = model.device if self._learns else torch.device("cpu")
        self._graphed_g_step = Graphed(self._play_g_step, device, self._baked, lambda: [self.generator])
        # Once, and not at every step: a recorded step cannot ask for it, and the numbers drawn depend on it.
        self._chunk = fitting_chunk(self.policy, self.rules.rollouts, data.shape[1]) if device.type == "cuda" else None
        # Watching draws from a stream of its own.
        seed = int(torch.randint(2**31, (), generator=self.generator, device=self.generator.device))
        self._watcher = new_generator(seed, self.generator.device)
        self._parts.append(self._watcher)

    def train_discriminator(
        self, rounds: int, epochs: int = 3, progress: bool = True, keeper: Keeper | None = None
    ) -> History:
        """Pre-train the discriminator: ``rounds`` times new negatives and ``epochs`` epochs on them (published: 50, 3).

        Returns a history of what :meth:`play` notes of the discriminator, row 0 before the first round.
        """
        if not self._learns:
            raise ValueError(f"a {type(self.judge).__name__} does not learn; only a discriminator is trained")
        how = {"unit": "round", "progress": progress, "keeper": keeper}
        note, step = (lambda _: self._verdicts()), (lambda _: self._d_step(epochs))
        return run_steps("discriminator", rounds, step, note, self._parts, **how)

    def play(
        self,
        rounds: int,
        *,
        evaluate: Callable[[LanguageModel], dict[str, float]] | None = None,
        evaluate_every: int = 1,
        keep_best: str | None = None,
        patience: int | None = None,
        progress: bool = True,
        keeper: Keeper | None = None,
    ) -> History:
        """Play ``rounds`` rounds of g-steps, d-steps and an update of the roll-out policy.

        Returns a history with one row before the first round, every ``evaluate_every`` and after the last: ``round``;
        ``reward_1`` … ``reward_T``, the mean action values of that round's last batch; ``d_loss`` and ``d_accuracy`` on
        positives and new negatives, ``d_loss_fresh`` and ``d_accuracy_fresh`` with ``held_out`` for positives; and what
        ``evaluate`` gives for the model. With ``keep_best``, a column where less is better, the model ends as it was
        in the row with the least; with ``patience`` too, the game stops after so many rows without a new least.

        What happens when it is interrupted, meets a number that is not finite, or has a ``keeper``:
        :func:`~seqgan_lib.training.run_steps`; what is undone is the whole round.
        """
        if patience is not None:
            check_at_least(patience, 1, "patience")
            if keep_best is None:
                raise ValueError("patience waits for a column to improve; name it with keep_best")
        best = _Best(keep_best)

        def note(_: int) -> dict[str, float]:
            row = self._verdicts() | (evaluate(self.model) if evaluate else {})
            best.see(row, self.model)
            return row

        how = {"unit": "round", "note_every": evaluate_every, "progress": progress, "keeper": keeper}
        how["enough"] = lambda: patience is not None and best.rows_since >= patience
        history = run_steps("game", rounds, lambda _: self._round(), note, [*self._parts, best], **how)
        if best.weights is not None:
            self.model.load_state_dict(best.weights)
        return history

    def _round(self) -> dict[str, float]:
        """One round of Algorithm 1; returns the mean action values of its last batch."""
        for _ in range(self.rules.g_steps):
            numbers = self._g_step()
        *rewards, loss, norm = numbers.tolist()  # the host looks once a round
        check_finite(torch.tensor([loss, norm]), "the generator's loss or gradient")
        if self._learns:
            for _ in range(self.rules.d_steps):
                self._d_step(self.rules.k)
        update_policy(self.policy, self.model, self.rules.update_rate)
        return {f"reward_{t}": value for t, value in enumerate(rewards, 1)}

    def _g_step(self) -> Tensor:
        return self._graphed_g_step()

    def _baked(self) -> Hashable:
        return baked(self._adam, self.policy, self.judge)

    def _play_g_step(self) -> Tensor:
        """One step of the generator: (T + 2,), the mean action values, the loss and the norm of its gradient."""
        rules = self.rules
        sequences = self.model.sample(rules.batch_size, self.data.shape[1], generator=self.generator)
        draws = {"rollouts": rules.rollouts, "generator": self.generator, "chunk": self._chunk}
        values = action_values(self.policy, sequences, self.judge, **draws)  # (batch, T)
        loss = policy_gradient_loss(self.model, sequences, values, rules.baseline)
        self._adam.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._weights, rules.clip)
        loss_and_norm = torch.stack([loss.detach(), norm])
        if loss_and_norm.device.type == "cpu":  # on a GPU once a round: what is not finite makes all after it so
            check_finite(loss_and_norm, "the generator's loss or gradient")
        adam_step(self._adam)
        return torch.cat([values.mean(0), loss_and_norm])

    def _d_step(self, epochs: int) -> None:
        negatives = self.model.sample(*self.data.shape, generator=self.generator)
        how = {"epochs": epochs, "generator": self.generator, "batch_size": self.rules.batch_size}
        train_discriminator(self.judge, self._d_adam, self.data, negatives, **how)

    def _verdicts(self) -> dict[str, float]:
        """How the discriminator does on its positives and on fresh ones, against the same new negatives."""
        if not self._learns:
            return {}
        row, count = {}, min(len(self.data), 2_000)  # of each kind
        negatives = self.model.sample(count, self.data.shape[1], generator=self._watcher)
        for suffix, real in ("", self.data), ("_fresh", self.held_out):
            if real is not None:
                row |= {f"d_{k}{suffix}": v for k, v in verdict(self.judge, real[:count], negatives).items()}
        return row


class _Best:
    """The weights that had the least of a column; a part of a game like its players, saved and restored with them."""

    def __init__(self, column: str | None) -> None:
        self.column, self.least, self.rows_since, self.weights = column, float("inf"), 0, None

    def see(self, row: dict[str, float], model: LanguageModel) -> None:
        """Look at a new row of the history, and keep the model's weights if it is the best so far."""
        if self.column is None:
            return
        if self.column not in row:
            raise KeyError(f"no column {self.column!r} to keep the best by; a row has {', '.join(row)}")
        self.rows_since += 1
        if row[self.column] < self.least:
            self.least, self.rows_since, self.weights = row[self.column], 0, copy.deepcopy(model.state_dict())

    def state_dict(self) -> dict:
        return {"least": self.least, "rows_since": self.rows_since, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.__dict__.update(state)

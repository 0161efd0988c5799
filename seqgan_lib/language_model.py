"""One LSTM language model. With large random weights it is the oracle, with small trained ones the generator."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from .checks import check_at_least, check_positive, check_tokens
from .sampling import draw

__all__ = ["LanguageModel", "random_oracle"]

State = tuple[torch.Tensor, torch.Tensor]  # h and c, each (batch, hidden)


class LanguageModel(nn.Module):
    """A distribution over sequences of tokens: p(Y) = Π_t p(y_t | y_1 … y_{t-1}), each factor a softmax over an LSTM.

    embedding → LSTM → logits = h W + b, as in the published code (``generator.py``, ``target_lstm.py``): the state
    starts at zero, the first input is ``start_token``, the LSTM has one bias and no peepholes.

    Args:
        vocabulary: number of tokens V; tokens are 0 … V−1.
        generator: where the initial weights come from.
        embedding, hidden: sizes of the token vectors and of the LSTM's state.
        start_token: what the model reads before it writes the first token.
        std: every weight and bias starts from N(0, std²); the published generator has 0.1, the oracle 1.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        generator: torch.Generator,
        embedding: int = 32,
        hidden: int = 32,
        start_token: int = 0,
        std: float = 0.1,
    ) -> None:
        super().__init__()
        for size, name in ((vocabulary, "vocabulary"), (embedding, "embedding"), (hidden, "hidden")):
            check_at_least(size, 1, name)
        check_positive(std, "std")
        check_tokens(torch.tensor([[start_token]]), vocabulary, "start_token")
        self.vocabulary, self.hidden, self.start_token = vocabulary, hidden, start_token
        self.embedding = nn.Parameter(torch.empty(vocabulary, embedding))
        # Made without its own initial weights, which would come from PyTorch's global randomness.
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True, device="meta").to_empty(device="cpu")
        # (hidden, V) and not (V, hidden) as nn.Linear has it: the product with a wide, contiguous matrix is faster.
        self.output = nn.Parameter(torch.empty(hidden, vocabulary))
        self.output_bias = nn.Parameter(torch.empty(vocabulary))
        with torch.no_grad():
            for parameter in self.parameters():
                # Drawn where the generator lives, so that a CPU generator gives the same weights everywhere.
                parameter.copy_(torch.randn(parameter.shape, generator=generator, device=generator.device) * std)
            # PyTorch keeps two biases for the LSTM's gates and adds them up. One is enough; the other stays at zero.
            self.lstm.bias_hh_l0.zero_().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @torch.no_grad()
    def sharpen(self, sharpness: float) -> LanguageModel:
        """Multiply the logits, in place, by ``sharpness``: above 1 the model is surer of every next token."""
        check_positive(sharpness, "sharpness")
        self.output *= sharpness
        self.output_bias *= sharpness
        return self

    # -- one token at a time ---------------------------------------------------------------------------------------

    def initial_state(self, batch: int) -> State:
        """The state before anything is read: h = c = 0, each (batch, hidden)."""
        check_at_least(batch, 1, "batch")
        zeros = self.embedding.new_zeros(batch, self.hidden)
        return zeros, zeros

    def step(self, tokens: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Read one token a row, (batch,) int64. Returns the next token's logits (batch, vocabulary) and the state."""
        check_tokens(tokens[:, None], self.vocabulary, "tokens")
        state = self._advance(self._gate_inputs()[tokens], state)
        return torch.addmm(self.output_bias, state[0], self.output), state

    def _gate_inputs(self) -> torch.Tensor:
        """What each token adds to the four gates, (vocabulary, 4 · hidden): one product instead of one a step."""
        return torch.addmm(self.lstm.bias_ih_l0, self.embedding, self.lstm.weight_ih_l0.t())

    def _advance(self, gate_inputs: torch.Tensor, state: State) -> State:
        """One step of the LSTM, gates in PyTorch's order: input, forget, candidate, output."""
        h, c = state
        gates = torch.addmm(gate_inputs, h, self.lstm.weight_hh_l0.t())  # (batch, 4 · hidden)
        i, f, _, o = gates.sigmoid().chunk(4, 1)
        c = f * c + i * gates.chunk(4, 1)[2].tanh()
        return o * c.tanh(), c

    # -- known sequences: all positions at once --------------------------------------------------------------------

    def forward(self, sequences: torch.Tensor, inputs: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (batch, time, vocabulary); position t has read the tokens before t (teacher forcing).

        ``inputs`` (batch, time) replaces what the LSTM reads, as scheduled sampling needs.
        """
        flat = torch.addmm(self.output_bias, self._hidden(sequences, inputs).flatten(0, 1), self.output)
        return flat.view(*sequences.shape, self.vocabulary)

    def _hidden(self, sequences: torch.Tensor, inputs: torch.Tensor | None) -> torch.Tensor:
        """The LSTM's h at every position, (batch, time, hidden)."""
        check_tokens(sequences, self.vocabulary)
        if inputs is None:
            inputs = self.shift(sequences)
        elif inputs.shape != sequences.shape:
            raise ValueError(f"inputs {tuple(inputs.shape)} and sequences {tuple(sequences.shape)} differ in shape")
        return self.lstm(nn.functional.embedding(inputs, self.embedding))[0]

    def shift(self, sequences: torch.Tensor) -> torch.Tensor:
        """What the model reads while it predicts ``sequences``: the start token, then all tokens but the last."""
        start = sequences.new_full((len(sequences), 1), self.start_token)
        return torch.cat([start, sequences[:, :-1]], 1)

    def log_probs(self, sequences: torch.Tensor) -> torch.Tensor:
        """log p(y_t | y_1 … y_{t-1}) in nats, (batch, time), of every token of ``sequences`` (batch, time) int64.

        Differentiable. Without gradients the logits live in one small buffer that is overwritten slice by slice.
        """
        if torch.is_grad_enabled():
            return self(sequences).log_softmax(-1).gather(-1, sequences[..., None]).squeeze(-1)
        hidden, tokens, log_probs = self._hidden(sequences, None).flatten(0, 1), sequences.reshape(-1, 1), []
        for rows in _slices(len(tokens), self._rows_at_once()):
            logits = torch.addmm(self.output_bias, hidden[rows], self.output)
            logits -= logits.amax(1, keepdim=True)
            log_probs.append(logits.gather(1, tokens[rows]) - logits.exp_().sum(1, keepdim=True).log_())
        return torch.cat(log_probs).view_as(sequences)

    def nll(
        self, sequences: torch.Tensor, inputs: torch.Tensor | None = None, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Σ weights · (−log p(y_t | …)): a scalar to minimise, with gradients made in the same pass as the value.

        Without ``weights`` (batch, time) it is the mean, in nats per token: the loss of maximum likelihood.
        With action values for weights it is the loss of policy gradient. Nothing flows back into the weights.
        """
        hidden = self._hidden(sequences, inputs)
        if weights is None:
            weights = hidden.new_full(sequences.shape, 1 / sequences.numel())
        elif weights.shape != sequences.shape:
            raise ValueError(f"weights {tuple(weights.shape)} and sequences {tuple(sequences.shape)} differ in shape")
        flat = hidden.flatten(0, 1), self.output, self.output_bias, sequences.flatten(), weights.flatten()
        return _WeightedNLL.apply(*flat, torch.is_grad_enabled())

    # -- sequences still to be written -----------------------------------------------------------------------------

    def sample(self, count: int, length: int, *, generator: torch.Generator, temperature: float = 1.0) -> torch.Tensor:
        """Write ``count`` sequences of ``length`` tokens: (count, length) int64, on the model's device.

        ``temperature`` divides the logits: below 1 the model keeps to its likeliest tokens, above 1 it scatters.
        """
        check_at_least(count, 1, "count")
        nothing = torch.empty(count, 0, dtype=torch.int64, device=self.device)
        return self.complete(nothing, length, generator=generator, temperature=temperature)

    def complete(
        self, prefixes: torch.Tensor, length: int, *, generator: torch.Generator, temperature: float = 1.0
    ) -> torch.Tensor:
        """Keep ``prefixes`` (batch, t) int64, t ≥ 0, and write the rest: (batch, length) int64, t ≤ length."""
        check_tokens(prefixes, self.vocabulary, "prefixes", empty_time=True)
        check_at_least(length, max(1, prefixes.shape[1]), "length")
        given = nn.functional.pad(prefixes, (0, length - prefixes.shape[1]))
        return self._write(given, None, prefixes.shape[1], generator, temperature)

    def mix(self, sequences: torch.Tensor, keep: float, *, generator: torch.Generator) -> torch.Tensor:
        """Replace each token, with probability 1 − ``keep``, by one the model draws there; (batch, time) int64.

        The model reads its own replacements as it goes on. This is what scheduled sampling feeds (Bengio et al. 2015).
        """
        check_tokens(sequences, self.vocabulary)
        if not 0 <= keep <= 1:
            raise ValueError(f"keep is a probability from 0 to 1, but is {keep!r}")
        coins = torch.rand(sequences.shape, generator=generator, device=generator.device).to(self.device)
        return self._write(sequences, coins < keep, 0, generator, 1.0)

    @torch.no_grad()
    def _write(
        self,
        given: torch.Tensor,
        keep: torch.Tensor | None,
        first: int,
        generator: torch.Generator,
        temperature: float,
    ) -> torch.Tensor:
        """Copy ``given`` (batch, time) where t < ``first`` or where ``keep`` (batch, time) says so; draw the rest."""
        check_positive(temperature, "temperature")
        batch, length = given.shape
        written = given.to(self.device, copy=True)
        # All randomness at once: the tokens do not depend on how the rows are sliced.
        uniform = torch.rand(batch, length - first, generator=generator, device=generator.device, dtype=torch.float64)
        uniform = uniform.to(self.device)
        gate_inputs = self._gate_inputs()
        output, bias = self.output / temperature, self.output_bias / temperature
        for rows in _slices(batch, self._rows_at_once()):
            state = self.initial_state(rows.stop - rows.start)
            token = written.new_full((rows.stop - rows.start,), self.start_token)
            for t in range(length):
                state = self._advance(gate_inputs[token], state)
                if t >= first:
                    token = draw(torch.addmm(bias, state[0], output), uniform[rows, t - first])
                    if keep is not None:
                        token = torch.where(keep[rows, t], written[rows, t], token)
                    written[rows, t] = token
                token = written[rows, t]
        return written

    def _rows_at_once(self) -> int:
        """How many rows of logits to hold: on a CPU as many as stay in its cache (4 MB), on a GPU some 512 MB."""
        return max(16, (2**27 if self.device.type == "cuda" else 2**20) // self.vocabulary)


def random_oracle(vocabulary: int, *, generator: torch.Generator, **sizes: int) -> LanguageModel:
    """The paper's world: a language model whose every weight is drawn from N(0, 1) and never trained.

    ``sizes`` are those of :class:`LanguageModel`: embedding, hidden, start_token.
    """
    return LanguageModel(vocabulary, generator=generator, std=1.0, **sizes).requires_grad_(False)


def _slices(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


class _WeightedNLL(torch.autograd.Function):
    """Σ_i weights_i · (−log softmax(h_i W + b)[y_i]) for hidden (n, H), W (H, V), b (V,), tokens and weights (n,).

    The gradient at the logits is weights · (softmax − one-hot). It is known as soon as the softmax is, so both are
    made in one pass over the one buffer that holds the logits, a slice at a time: less memory to fill and to read
    than log-softmax, its loss and their two backward passes, each with a (n, V) matrix of its own.
    """

    @staticmethod
    def forward(ctx, hidden, output, bias, tokens, weights, with_gradients):
        wide = torch.cat([output, bias[None]])  # the bias rides along as one more row, read by a constant 1
        hidden = nn.functional.pad(hidden, (0, 1), value=1.0)  # (n, H + 1)
        loss, grad_wide, grad_hidden = hidden.new_zeros(()), torch.zeros_like(wide), []
        for rows in _slices(len(hidden), max(64, 2**27 // wide.shape[1]) if hidden.is_cuda else 1280):
            h, y, w = hidden[rows], tokens[rows, None], weights[rows, None]
            logits = h @ wide  # (rows, V)
            top = logits.amax(1, keepdim=True)
            chosen = logits.gather(1, y) - top
            total = logits.sub_(top).exp_().sum(1, keepdim=True)  # logits now hold total · softmax
            loss += (w * (total.log() - chosen)).sum()
            if with_gradients:
                scale = w / total
                logits.scatter_add_(1, y, -total)  # total · (softmax − one-hot)
                grad_hidden.append((logits @ output.t()) * scale)
                grad_wide.addmm_((h * scale).t(), logits)
        if with_gradients:
            ctx.save_for_backward(torch.cat(grad_hidden), grad_wide[:-1], grad_wide[-1])
        return loss

    @staticmethod
    def backward(ctx, grad):
        return *(grad * saved for saved in ctx.saved_tensors), None, None, None

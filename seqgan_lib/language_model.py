"""One LSTM language model. With large random weights it is the oracle, with small trained ones the generator."""

import torch
from torch import Generator, Tensor, nn

from .checks import check_at_least, check_positive, check_tokens
from .sampling import draw

State = tuple[Tensor, Tensor]  # h and c, each (batch, hidden)
_LOGITS_AT_ONCE = 2**27  # that the loss holds: 512 MB in float32


class LanguageModel(nn.Module):
    """A distribution over sequences of tokens 0 … V−1: p(Y) = Π_t p(y_t | y_1 … y_{t-1}).

    embedding → LSTM → logits = h W + b, as in the published code (``generator.py``, ``target_lstm.py``): the state
    starts at zero, the first input is ``start_token``, the LSTM has one bias and no peepholes. Every weight and bias
    starts from N(0, std²), drawn from ``generator``; the published generator has std 0.1, the oracle 1.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        generator: Generator,
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
        # Without its own initial weights, which would come from PyTorch's global randomness.
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
    def sharpen(self, sharpness: float) -> "LanguageModel":
        """Multiply the logits, in place, by ``sharpness``: above 1 the model is surer of every next token."""
        check_positive(sharpness, "sharpness")
        self.output *= sharpness
        self.output_bias *= sharpness
        return self

    def initial_state(self, batch: int) -> State:
        """The state before anything is read: h = c = 0, each (batch, hidden)."""
        check_at_least(batch, 1, "batch")
        zeros = self.embedding.new_zeros(batch, self.hidden)
        return zeros, zeros

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token a row, (batch,) int64; return the next token's logits (batch, vocabulary) and the state."""
        check_tokens(tokens[:, None], self.vocabulary, "tokens")
        read = self.embedding[tokens]  # not the whole table of gate inputs, which pays over many steps only
        state = self._advance(torch.addmm(self.lstm.bias_ih_l0, read, self.lstm.weight_ih_l0.t()), state)
        return torch.addmm(self.output_bias, state[0], self.output), state

    def _gate_inputs(self) -> Tensor:
        """What each token adds to the four gates, (vocabulary, 4 · hidden): one product instead of one a step."""
        return torch.addmm(self.lstm.bias_ih_l0, self.embedding, self.lstm.weight_ih_l0.t())

    def _advance(self, gate_inputs: Tensor, state: State) -> State:
        """One step of the LSTM, gates in PyTorch's order: input, forget, candidate, output."""
        h, c = state
        gates = torch.addmm(gate_inputs, h, self.lstm.weight_hh_l0.t())  # (batch, 4 · hidden)
        i, f, _, o = gates.sigmoid().chunk(4, 1)
        c = f * c + i * gates.chunk(4, 1)[2].tanh()
        return o * c.tanh(), c

    def forward(self, sequences: Tensor) -> Tensor:
        """Logits (batch, time, vocabulary); those of position t have read the tokens before t (teacher forcing)."""
        flat = torch.addmm(self.output_bias, self._hidden(sequences).flatten(0, 1), self.output)
        return flat.view(*sequences.shape, self.vocabulary)

    def _hidden(self, sequences: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The LSTM's h at every position, (batch, time, hidden)."""
        check_tokens(sequences, self.vocabulary)
        inputs = self.shift(sequences) if inputs is None else inputs
        check_tokens(inputs, self.vocabulary, "inputs")
        if inputs.shape != sequences.shape:
            raise ValueError(f"inputs {tuple(inputs.shape)} and sequences {tuple(sequences.shape)} differ in shape")
        if inputs.is_cuda and not torch.is_grad_enabled():
            # cuDNN's LSTM is quick and a little wrong: ten times as far from float64 as float32 need be.
            gate_inputs, state, hidden = self._gate_inputs(), self.initial_state(len(inputs)), []
            for token in inputs.unbind(1):
                state = self._advance(gate_inputs[token], state)
                hidden.append(state[0])
            return torch.stack(hidden, 1)
        return self.lstm(nn.functional.embedding(inputs, self.embedding))[0]

    def shift(self, sequences: Tensor) -> Tensor:
        """What the model reads while it predicts ``sequences``: the start token, then all tokens but the last."""
        start = sequences.new_full((len(sequences), 1), self.start_token)
        return torch.cat([start, sequences[:, :-1]], 1)

    def log_probs(self, sequences: Tensor) -> Tensor:
        """log p(y_t | y_1 … y_{t-1}) in nats, differentiable, of every token of ``sequences``, both (batch, time)."""
        if torch.is_grad_enabled():
            return self(sequences).log_softmax(-1).gather(-1, sequences[..., None]).squeeze(-1)
        # Without gradients the logits live in one small buffer, overwritten slice by slice.
        hidden, tokens = self._hidden(sequences).flatten(0, 1), sequences.reshape(-1, 1)
        log_probs, rows = [], self._rows_at_once()
        for h, y in zip(hidden.split(rows), tokens.split(rows), strict=True):
            logits = torch.addmm(self.output_bias, h, self.output)
            logits -= logits.amax(1, keepdim=True)
            log_probs.append(logits.gather(1, y) - logits.exp_().sum(1, keepdim=True).log_())
        return torch.cat(log_probs).view_as(sequences)

    def nll(self, sequences: Tensor, inputs: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Σ weights · (−log p(y_t | …)), a scalar to minimise; its gradients are made in the same pass.

        Without ``weights`` (batch, time) it is the mean, in nats per token: the loss of maximum likelihood. With action
        values for weights it is that of policy gradient; no gradient flows into them. ``inputs`` (batch, time) replaces
        what the LSTM reads, as scheduled sampling needs.
        """
        hidden = self._hidden(sequences, inputs)
        if weights is None:
            weights = hidden.new_full(sequences.shape, 1 / sequences.numel())
        elif weights.shape != sequences.shape:
            raise ValueError(f"weights {tuple(weights.shape)} and sequences {tuple(sequences.shape)} differ in shape")
        flat = hidden.flatten(0, 1), self.output, self.output_bias, sequences.flatten(), weights.to(hidden).flatten()
        return _WeightedNLL.apply(*flat, torch.is_grad_enabled())

    def sample(self, count: int, length: int, *, generator: Generator, temperature: float = 1.0) -> Tensor:
        """Write ``count`` sequences of ``length`` tokens: (count, length) int64, on the model's device.

        ``temperature`` divides the logits: below 1 the model keeps to its likeliest tokens, above 1 it scatters.
        """
        check_at_least(count, 1, "count")
        nothing = torch.empty(count, 0, dtype=torch.int64, device=self.device)
        return self.complete(nothing, length, generator=generator, temperature=temperature)

    def complete(self, prefixes: Tensor, length: int, *, generator: Generator, temperature: float = 1.0) -> Tensor:
        """Keep ``prefixes`` (batch, t) int64, t ≥ 0, and write the rest: (batch, length) int64, t ≤ length."""
        check_tokens(prefixes, self.vocabulary, "prefixes", empty_time=True)
        check_at_least(length, max(1, prefixes.shape[1]), "length")
        given = nn.functional.pad(prefixes, (0, length - prefixes.shape[1]))
        keep = (torch.arange(length, device=given.device) < prefixes.shape[1]).expand_as(given)
        return self.rewrite(given, keep, generator=generator, temperature=temperature)

    @torch.no_grad()
    def rewrite(self, sequences: Tensor, keep: Tensor, *, generator: Generator, temperature: float = 1.0) -> Tensor:
        """Copy ``sequences`` where ``keep``, both (batch, time), and draw the rest, each given all before it."""
        check_tokens(sequences, self.vocabulary)
        check_positive(temperature, "temperature")
        if keep.dtype != torch.bool or keep.shape != sequences.shape:
            raise ValueError(f"keep must be a bool tensor of shape {tuple(sequences.shape)}, like the sequences")
        written, keep = sequences.to(self.device, copy=True), keep.to(self.device)
        # All randomness at once: the tokens do not depend on how the rows are sliced.
        uniform = torch.rand(written.shape, generator=generator, device=generator.device, dtype=torch.float64)
        gate_inputs, rows = self._gate_inputs(), self._rows_at_once()
        wide = self._wide_output() / temperature
        look = written.device.type == "cpu" and bool(keep.any())  # at which rows need a draw; a GPU would have to wait
        parts = (x.split(rows) for x in (written, keep, uniform.to(self.device)))
        for tokens, kept, u in zip(*parts, strict=True):  # views: what is written here is in ``written``
            state, token = self.initial_state(len(tokens)), torch.full_like(tokens[:, 0], self.start_token)
            for t in range(tokens.shape[1]):
                state = self._advance(gate_inputs[token], state)
                if not look:
                    tokens[:, t] = torch.where(kept[:, t], tokens[:, t], _draw(state[0], wide, u[:, t]))
                elif len(drawn := (~kept[:, t]).nonzero().squeeze(1)):
                    tokens[drawn, t] = _draw(state[0][drawn], wide, u[drawn, t])
                token = tokens[:, t]
        return written

    @torch.no_grad()
    def branch(self, sequences: Tensor, times: int, *, generator: Generator) -> Tensor:
        """Finish every prefix of every sequence ``times`` times: (batch, T) int64 → (T−1, batch, times, T).

        Row ``[t-1, b, n]`` keeps the first t tokens of sequence b. All prefix lengths advance together: T−1 wide steps.
        """
        check_tokens(sequences, self.vocabulary)
        check_at_least(times, 1, "times")
        sequences = sequences.to(self.device)
        (batch, length), width = sequences.shape, len(sequences) * times  # rows a prefix length
        shape = (batch, times, length - 1, length - 1)
        uniform = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).to(self.device)
        uniform = uniform.permute(3, 2, 0, 1).flatten(1)  # (position, rows), a prefix length after the other
        written = sequences[None, :, None].repeat(length - 1, 1, times, 1).view(-1, length)  # the same rows
        h, c = (x.repeat(max(1, (length - 1) * times), 1) for x in self.initial_state(batch))
        gate_inputs, wide, slices = self._gate_inputs(), self._wide_output(), self._rows_at_once()
        state = self._advance(gate_inputs[self.start_token].expand(batch, -1), self.initial_state(batch))
        for t in range(1, length):
            begun, active = (t - 1) * width, t * width
            for first in range(0, begun, slices):  # the branches of shorter prefixes go one token on
                rows = slice(first, min(first + slices, begun))
                h[rows], c[rows] = self._advance(gate_inputs[written[rows, t - 1]], (h[rows], c[rows]))
                written[rows, t] = _draw(h[rows], wide, uniform[t - 1, rows])
            state = self._advance(gate_inputs[sequences[:, t - 1]], state)  # each prefix is read once ...
            for ours, read in ((h, state[0]), (c, state[1])):  # ... for all its rows
                ours[begun:active].view(batch, times, -1).copy_(read[:, None])
            new = uniform[t - 1, begun:active].view(batch, times)
            parts = zip(state[0].split(slices), new.split(slices), strict=True)
            written[begun:active, t] = torch.cat([_draw(x, wide, u) for x, u in parts]).flatten()
        return written.view(length - 1, batch, times, length)

    def _wide_output(self) -> Tensor:
        """W with b as one more row, (hidden + 1, vocabulary), for :func:`_with_one`: the sum is a pass of its own."""
        return torch.cat([self.output, self.output_bias[None]])

    def _rows_at_once(self) -> int:
        """How many rows of logits to hold: on a CPU as many as stay in its cache (16 MB), on a GPU 256 MB, twice."""
        return max(16, (2**26 if self.device.type == "cuda" else 2**22) // self.vocabulary)


def _with_one(hidden: Tensor) -> Tensor:
    """(rows, hidden) → (rows, hidden + 1): a constant 1 that reads the bias in the last row of the wide matrix."""
    return nn.functional.pad(hidden, (0, 1), value=1.0)


def _draw(hidden: Tensor, wide: Tensor, uniform: Tensor) -> Tensor:
    """Draw the next tokens after the states ``hidden`` (rows, hidden): as many as there are numbers in ``uniform``."""
    hidden = _with_one(hidden)
    if hidden.device.type == "cpu":
        try:
            return draw(hidden @ wide, uniform, shift=False)
        except FloatingPointError:  # logits of a size that no trained model has: begin again, with more care
            pass
    return draw(hidden @ wide, uniform)


def random_oracle(vocabulary: int, *, generator: Generator, **sizes: int) -> LanguageModel:
    """The paper's world: a :class:`LanguageModel` whose every weight is drawn from N(0, 1) and never trained."""
    return LanguageModel(vocabulary, generator=generator, std=1.0, **sizes).requires_grad_(False)


class _WeightedNLL(torch.autograd.Function):
    """Σ_i weights_i · (−log softmax(h_i W + b)[y_i]) for hidden (n, H), W (H, V), b (V,), tokens and weights (n,).

    The gradient at the logits, weights · (softmax − one-hot), is known as soon as the softmax is: one pass makes both.
    """

    @staticmethod
    def forward(ctx, hidden, output, bias, tokens, weights, with_gradients):
        wide, hidden = torch.cat([output, bias[None]]), _with_one(hidden)  # (H + 1, V), (n, H + 1)
        loss, grad_wide, grad_hidden = hidden.new_zeros(()), torch.zeros_like(wide), []
        rows = max(1, _LOGITS_AT_ONCE // wide.shape[1])
        for h, y, w in zip(*(x.split(rows) for x in (hidden, tokens[:, None], weights[:, None])), strict=True):
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
    @torch.autograd.function.once_differentiable  # a second derivative is refused rather than wrong
    def backward(ctx, grad):
        return *(grad * saved for saved in ctx.saved_tensors), None, None, None

"""Batched generation with a cache of keys and values.

Prompts are sorted by length and go through in batches of about one size. The keys and values of a prompt are
computed, stored and read once for the whole group of its samples; beside them each sample has a cache of its
own, and all samples write their next key and value to the same column of it. Rows that have finished leave.

Shapes: P prompts of a batch, W columns of the longest, G samples of each (a group), R ≤ P * G rows still in
the batch, S columns of their own, L layers, H query heads, K key/value heads, D head width, V vocabulary.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from lab.device import capture, takes_graphs, with_cast_weights
from lab.options import CheckedOptions, UserError, opt
from lab.replicas import shared_threads

import numpy as np
import torch

PREFILL_TOKENS = 1 << 11, 1 << 16  # of prompts that go through the model at once: on a CPU, on a GPU
LOOK_EVERY = 8  # steps between looks at which rows have finished, on a GPU


@dataclass(frozen=True)
class Sampling(CheckedOptions):
    """The settings of `generate`."""

    group_size: int = opt(1, "samples of each prompt", within="[1, inf)")
    max_new_tokens: int = opt(256, "longest completion, the stop token included", within="[1, inf)")
    temperature: float = opt(1.0, "0: greedy; log-probs are then those at temperature 1")
    top_p: float = opt(1.0, "sample from the smallest set of tokens of this probability", within="(0, 1]")
    stop_id: int = opt(-1, "the token that ends a completion (-1: none does)", within="[-1, inf)")
    seed: int = opt(0, "of the random numbers", within="[0, 18446744073709551616)")
    batch_size: int = opt(256, "most rows at once; samples do not depend on it", within="[1, inf)")
    workers: int = opt(1, "on a CPU: batches at once, in threads; nor on this", within="[1, 256]")


@dataclass
class Samples:
    """Completions, prompt-major: sample g of prompt p is number p * group_size + g."""

    ids: list  # of lists of token ids, the stop token included
    logprobs: list  # of lists: log-probability of each of them under softmax(logits / temperature)
    finished: list  # whether the stop token came before max_new_tokens


def generate(model, prompts, *, indices=None, progress=None, **sampling):
    """Sample a group of completions of each prompt (lists of ids) → Samples. sampling: fields of `Sampling`.

    A sample is a function of the model and (seed, prompt index, group index), whatever batch_size, group_size
    and its neighbours are. Log-probs are those of the full distribution, also where top_p cuts it.
    indices: the prompts' indices, if these are some of a larger set's prompts. progress: whose
    advance(n) counts samples as they are finished: a lab.runs.Progress.
    Raises UserError where prompt and new tokens do not fit the model's context, or a setting is out of range.
    """
    o = Sampling(**sampling)
    if not prompts or min(map(len, prompts)) == 0:
        raise UserError("nothing to sample: there is no prompt, or an empty one")
    W, S, context = max(map(len, prompts)), o.max_new_tokens, model.config.max_position_embeddings
    if context < W + S:
        raise UserError(f"{W} tokens of a prompt and {S} new ones exceed the context of {context}")
    indices = range(len(prompts)) if indices is None else indices
    if 0 < o.temperature < 1e-3:
        raise UserError(f"a temperature of {o.temperature} is too near 0: give 0, which is greedy")
    G, samples = o.group_size, [None] * (len(prompts) * o.group_size)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    workers = o.workers if next(model.parameters()).device.type == "cpu" else 1
    batches = balanced(by_length, max(1, o.batch_size // G), workers)
    shares = [batches[w::workers] for w in range(min(workers, len(batches)))]

    @torch.inference_mode()
    def work(batches):
        decoder = Decoder(model, o, max(map(len, batches)), W)
        for batch in batches:
            uniforms = uniform_numbers(o.seed, [indices[i] for i in batch], G, S)
            decoder.prefill([prompts[i] for i in batch], uniforms)
            decoder.decode_batch(progress.advance if progress else lambda n: None)
            numbers = [i * G + g for i in batch for g in range(G)]  # a smaller batch leaves rows unused
            for number, ids, logprobs in zip(numbers, decoder.ids.tolist(), decoder.logprobs.tolist()):
                finished = o.stop_id in ids
                length = ids.index(o.stop_id) + 1 if finished else S
                samples[number] = ids[:length], logprobs[:length], finished

    if len(shares) == 1:  # in this thread, which knows its GPU
        work(batches)
    else:
        with shared_threads(len(shares)), ThreadPoolExecutor(len(shares)) as pool:
            list(pool.map(work, shares))
    return Samples(*map(list, zip(*samples)))


def balanced(items, most, least=1):
    """A list in as few batches of at most `most` as there can be, and at least `least`, whose sizes differ by
    one at most.
    """
    n = max(-(-len(items) // most), min(least, len(items)))
    return [items[len(items) * i // n : len(items) * (i + 1) // n] for i in range(n)]


def uniform_numbers(seed, indices, group, columns):
    """Numbers within [0, 1), (P * group, columns): each row a function of (seed, prompt, sample)."""
    # without a type numpy would make floats of 2^63 and 1
    keys = [np.array([seed, i], dtype=np.uint64) for i in indices]
    streams = [np.random.Philox(key=key, counter=[0, 0, 0, g]) for key in keys for g in range(group)]
    return np.stack([np.random.Generator(stream).random(columns) for stream in streams])


class Decoder:
    """Writes one token a step to every row of a batch, at fixed shapes and addresses: on a GPU, a CUDA graph.

    Finished rows leave now and then, and the others move together to the front, as many as the next of the
    `buckets`: the numbers of rows that a step is made for. A row is known by its number n in the whole batch,
    sample n % G of prompt n // G.
    """

    def __init__(self, model, sampling, prompts, width):
        """For batches of at most `prompts` prompts of at most `width` tokens. sampling: as `Sampling`."""
        self.sampling, self.device = sampling, next(model.parameters()).device
        self.group, self.graphed = sampling.group_size, takes_graphs(self.device)
        self.own, self.chunk = [], model.backend.chunk(sampling.max_new_tokens, self.device)
        self.model = with_cast_weights(model) if self.graphed else model
        rows, columns = prompts * self.group, sampling.max_new_tokens
        self.cached = model.compute_dtype if self.graphed else torch.float32
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        with self.device:
            self.ids = torch.zeros(rows, columns, dtype=torch.long)
            self.logprobs = torch.zeros(rows, columns)
            self.uniforms = torch.zeros(rows, columns, dtype=exact)
            self.stopped = torch.zeros(rows, dtype=torch.bool)
            self.lengths = torch.zeros(prompts, dtype=torch.int32)  # of the prompts
            self.at = torch.zeros(1, dtype=torch.long)  # the column that is written
            self.rows = torch.zeros(rows, dtype=torch.long)  # the numbers of the rows in the batch, ascending
            self.seats = torch.zeros(rows, dtype=torch.long)  # the same, counting the prompts in the cache
        self.graphs = {}
        if self.graphed:
            self.prompt = self.cache(prompts, width)
        self.buckets = [rows]
        while self.buckets[-1] > 8:
            self.buckets.append(max(8, self.buckets[-1] * 3 // 4 // 8 * 8))

    def prefill(self, prompts, uniforms):
        """Keep keys and values of prompts (lists of ids); sample each row's first token. uniforms (R, S)."""
        P, G, W = len(prompts), self.group, max(map(len, prompts))
        if not self.graphed:
            self.prompt, self.own = self.cache(P, W), []
        self.asked = None  # for the flags of stopped rows, by the last look
        self.live = np.arange(P * G)  # `rows`, on the host
        self.rows[: P * G] = self.seats[: P * G] = torch.arange(P * G)
        self.lengths[:P] = torch.tensor([len(ids) for ids in prompts])
        self.uniforms[: P * G] = torch.from_numpy(uniforms).to(self.uniforms.dtype)
        self.stopped.zero_()
        self.at.zero_()
        for part in balanced(range(P), max(1, PREFILL_TOKENS[self.graphed] // W)):
            some, tokens = slice(part.start, part.stop), [torch.tensor(prompts[i]) for i in part]
            tokens = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(self.device)
            positions = torch.arange(tokens.shape[1], device=self.device).expand(tokens.shape)
            with self.model.autocast():
                x = self.model.hidden(tokens, positions, self._layers(self._within_prompts, some))
                logits = self.model.head(x[range(len(part)), self.lengths[some] - 1])
            self._sample(logits.repeat_interleave(G, 0), self.rows[part.start * G : part.stop * G])

    def cache(self, items, columns):
        """Zeros for keys and values of prompts or rows, (L, 2, items, K, columns, D)."""
        c = self.model.config
        shape = c.num_hidden_layers, 2, items, c.num_key_value_heads, columns, c.head_dim
        return torch.zeros(shape, dtype=self.cached, device=self.device)

    def decode_batch(self, count):
        """The other tokens, until each row has stopped or is full. count: function of how many rows have
        finished.
        """
        going = len(self.live)
        for column in range(1, self.sampling.max_new_tokens):
            if (stopped := self.look(column)) is not None:
                before, going = going, int((~stopped[self.live]).sum())
                count(before - going)
                if not going:
                    break
                self.drop(stopped, column)
            self.step(column)
        count(going)

    def look(self, column):
        """Which rows have stopped, on the host, or None. A GPU answers the next look: nobody waits for it."""
        if not self.graphed:
            return self.stopped.cpu().numpy()
        if column % LOOK_EVERY:
            return None
        before, flags = self.asked, self.stopped.to("cpu", non_blocking=True, copy=True)  # in pinned memory
        self.asked = flags, torch.cuda.current_stream().record_event()
        if before is None:
            return None
        before[1].synchronize()
        return before[0].numpy()

    def step(self, column):
        """Write this column of every row that is still in the batch."""
        self.at.fill_(column)
        n, chunks = len(self.live), -(-column // self.chunk)
        if chunks > len(self.own):
            self.own.append(self.cache(len(self.rows) if self.graphed else n, self.chunk))
        if not self.graphed:
            return self._next_token(n, chunks)
        if (n, chunks) not in self.graphs:
            self.graphs[n, chunks] = capture(partial(self._next_token, n, chunks), self.graphs)
        self.graphs[n, chunks].replay()

    def drop(self, stopped, column):
        """Before a column is written: let rows go that have stopped, if the others fit a smaller bucket."""
        done = stopped[self.live]
        n = next(size for size in reversed(self.buckets) if size >= len(done) - done.sum())
        if n < len(self.live):
            stay = np.sort(np.argsort(done, kind="stable")[:n])  # all that go on; stopped ones fill up
            self.live, moved = self.live[stay], torch.from_numpy(stay).to(self.device)
            for layer in itertools.chain(*self.own):
                layer[:, :n, :, :column] = layer[:, moved, :, :column]
            self.rows[:n], self.seats[:n] = self.rows[moved], self.seats[moved]
            if not self.graphed:  # so do prompts that no row has left, and the columns that only they filled
                kept, place = (self.seats[:n] // self.group).unique(return_inverse=True)
                self.seats[:n] = place * self.group + self.seats[:n] % self.group
                self.lengths[: len(kept)] = self.lengths[kept]
                self.prompt = self.prompt[:, :, kept, :, : self.lengths[: len(kept)].max()]

    def _next_token(self, n, chunks):
        """Column `at` of the first n rows, from the one before. Doing it twice changes nothing."""
        rows, seats, before = self.rows[:n], self.seats[:n], self.at - 1
        positions = self.lengths[seats // self.group] + before
        with self.model.autocast():
            attend = self._layers(self._over_the_cache, seats, chunks)
            x = self.model.hidden(self.ids[rows, before.expand(n)][:, None], positions[:, None], attend)
            logits = self.model.head(x[:, 0])
        self._sample(logits, rows)

    def _layers(self, attend, *arguments):
        return [partial(attend, layer, *arguments) for layer in range(len(self.prompt))]

    def _within_prompts(self, layer, some, q, k, v):  # (P, W, H or K, D)
        """Causal attention; what pads a prompt stands after it, so nobody sees it."""
        self.prompt[layer, :, some, :, : k.shape[1]] = torch.stack((k, v)).transpose(2, 3)
        return self.model.backend.attend(q, k, v, None)

    def _over_the_cache(self, layer, seats, chunks, q, k, v):  # (R, 1, H or K, D)
        own = [chunk[layer, :, : len(seats)] for chunk in self.own[:chunks]]
        new = torch.stack((k, v)).transpose(2, 3).to(self.cached)  # (2, R, K, 1, D)
        own[-1].index_copy_(3, (self.at - 1) % self.chunk, new)
        known = self.prompt[layer], self.lengths, seats, self.group, self.at
        return self.model.backend.decode(q[:, 0], own, *known)

    def _sample(self, logits, rows):
        """A token of each row from its logits, into its place."""
        place, o = (rows, self.at.expand(len(rows))), self.sampling
        token, self.logprobs[place] = sample_tokens(logits, o.temperature, o.top_p, self.uniforms[place])
        self.ids[place] = token
        self.stopped[rows] |= token == o.stop_id


def sample_tokens(logits, temperature, top_p, uniform):
    """Invert each row's distribution function at its uniform number.

    logits (R, V), uniform (R,) → ids (R,) and their log-probs (R,) at this temperature (0: greedy, at 1).
    """
    logp = torch.log_softmax(logits.float() / (temperature or 1.0), -1)  # (R, V)
    if temperature == 0:
        token = logp.argmax(-1)
    else:
        p = logp.exp()
        if top_p < 1:
            ranked, index = p.sort(-1, descending=True)
            beyond = ranked.cumsum(-1) - ranked >= top_p  # tokens that the likelier ones already make up for
            beyond[:, 0] = False
            p = p.masked_fill(torch.zeros_like(beyond).scatter(-1, index, beyond), 0.0)
        cumulative = p.cumsum(-1, dtype=uniform.dtype)
        below_one = uniform.clamp(max=1 - torch.finfo(uniform.dtype).eps)  # float32 rounds some up to 1
        token = torch.searchsorted(cumulative, (below_one * cumulative[:, -1])[:, None], right=True)[:, 0]
    return token, logp.gather(-1, token[:, None])[:, 0]

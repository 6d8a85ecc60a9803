"""Batched generation with a KV cache; and from the command line, a talk with a checkpoint about one problem.

    python sampler.py --ckpt out/demo/grpo/latest --op 5
    echo "The bears in Fernhollow number 3. … What is …?" | python sampler.py --ckpt out/demo/grpo/latest

Prompts are sorted by length and go through in batches. The keys and values of each prompt are computed, stored and read once for the
group of its samples, beside which each sample has a cache of its own; all write their next key and value to the same column. Rows that
have finished leave.

Shapes: P prompts of a batch, W columns of the longest, G samples of each (a group), R ≤ P * G rows still in the batch, S columns of their
own, L layers, K key/value heads, D head width, V vocabulary.
"""

import copy
import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

import cli
from attention import attention, decode, decode_window


@dataclass
class Samples:
    """Completions, prompt-major: sample g of prompt p is number p * group_size + g."""

    ids: list  # of lists of token ids, the stop token included
    logprobs: list  # of lists: log-probability of each of them under softmax(logits / temperature)
    finished: list  # whether the stop token came before max_new_tokens


PREFILL_TOKENS = 1 << 16  # of prompts that go through the model at once
LOOK_EVERY = {False: 1, True: 8}  # steps between looks at which rows have finished, without and with a GPU


@torch.inference_mode()
def generate(model, prompts, *, group_size=1, max_new_tokens, temperature=1.0, top_p=1.0, stop_id, seed=0, batch_size=256, indices=None, progress=None):
    """Sample group_size completions of each prompt (lists of ids) → Samples.

    temperature 0 is greedy (log-probs then at temperature 1). top_p: sample from the smallest set of tokens that holds this
    much probability; log-probs stay those of the full distribution. A sample depends on (seed, prompt index, group index) and
    the model, not on batch_size or its neighbours. indices: the prompts' indices, if these are some of a larger set's prompts.
    progress: text of a tqdm bar.
    Raises UserError where prompt and max_new_tokens do not fit the model's context, or an argument is out of range.
    """
    if not prompts or min(map(len, prompts)) == 0:
        raise cli.UserError("nothing to sample: there is no prompt, or an empty one")
    if temperature < 0 or not 0 < top_p <= 1:
        raise cli.UserError(f"temperature must be >= 0 and top_p within (0, 1], not {temperature} and {top_p}")
    longest = max(map(len, prompts))
    context = model.config.max_position_embeddings
    if longest + max_new_tokens > context:
        raise cli.UserError(f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's context of {context}; "
                            "lower --max-new-tokens")  # fmt: skip
    indices = range(len(prompts)) if indices is None else indices
    n = len(prompts) * group_size
    out = Samples([None] * n, [None] * n, [False] * n)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    per_batch = min(len(prompts), max(1, batch_size // group_size))
    decoder = Decoder(model, per_batch, group_size, longest, max_new_tokens, temperature, top_p, stop_id)
    bar = tqdm(total=n, desc=progress, unit="sample", leave=False, disable=progress is None)
    for first in range(0, n // group_size, per_batch):
        chosen = order[first : first + per_batch]
        keys = [indices[i] * group_size + g for i in chosen for g in range(group_size)]
        decoder.start([prompts[i] for i in chosen], randomness(seed, keys, max_new_tokens))
        flags, finished = Flags(decoder.stopped[: len(keys)]), bar.n
        for column in range(1, max_new_tokens):
            if column % LOOK_EVERY[decoder.on_gpu] == 0 and (stopped := flags.look()) is not None:
                bar.update(finished + int(stopped.sum()) - bar.n)
                if stopped.all():
                    break
                decoder.leave(stopped, column - 1)
            decoder.step(column)
        bar.update(finished + len(keys) - bar.n)
        ids, logprobs = decoder.ids[: len(keys)].cpu().numpy(), decoder.logprobs[: len(keys)].cpu().numpy()
        stops = ids == stop_id
        lengths = np.where(stops.any(1), stops.argmax(1) + 1, max_new_tokens)
        for row, length in enumerate(lengths.tolist()):
            sample = chosen[row // group_size] * group_size + row % group_size
            out.ids[sample], out.logprobs[sample] = ids[row, :length].tolist(), logprobs[row, :length].tolist()
            out.finished[sample] = bool(stops[row].any())
    bar.close()
    return out


def randomness(seed, keys, columns):
    """Uniform numbers (R, columns), a row of them a function of (seed, key) alone."""
    return np.stack([np.random.Generator(np.random.Philox(key=[seed, key])).random(columns) for key in keys])


class Decoder:
    """Writes one token a step to every row of a batch, at fixed shapes and addresses: on a GPU a step is one CUDA graph.

    Finished rows leave now and then, and the others move together to the front, as many as the next of the `buckets`: the numbers of rows
    that a step is made for. A row is known by its number n in the whole batch, sample n % G of prompt n // G.
    """

    def __init__(self, model, prompts, group, width, columns, temperature, top_p, stop_id):
        """For batches of at most `prompts` prompts of at most `width` tokens, `group` samples of each, and `columns` new tokens of each sample."""
        self.device, config = next(model.parameters()).device, model.config
        self.model, self.group, self.columns, self.temperature, self.top_p, self.stop_id = model, group, columns, temperature, top_p, stop_id
        self.on_gpu, rows, heads = self.device.type == "cuda", prompts * group, (config.num_key_value_heads,)
        if self.on_gpu:  # the layers' weights as autocast would make them at every call
            self.model = copy.deepcopy(model).requires_grad_(False)
            for module in self.model.model.modules():
                if isinstance(module, torch.nn.Linear):
                    module.to(model.compute_dtype)
        dtype = model.compute_dtype if self.on_gpu else torch.float32

        def empty(*shape, dtype=dtype):
            return torch.zeros(shape, dtype=dtype, device=self.device)

        shape = (config.num_hidden_layers, 2)  # keys and values
        self.prompt = empty(*shape, prompts, *heads, width, config.head_dim)  # (L, 2, P, K, W, D)
        self.own = empty(*shape, rows, *heads, columns, config.head_dim)  # (L, 2, R, K, S, D)
        self.ids, self.logprobs = empty(rows, columns, dtype=torch.long), empty(rows, columns, dtype=torch.float32)
        self.uniforms = empty(rows, columns, dtype=torch.float32 if self.device.type == "mps" else torch.float64)
        self.stopped = empty(rows, dtype=torch.bool)
        self.lengths, self.at = empty(prompts, dtype=torch.int32), empty(1, dtype=torch.long)  # of the prompts; column to write
        self.rows = empty(rows, dtype=torch.long)  # the numbers of the rows still in the batch, ascending
        self.buckets, self.graphs = [rows], {}
        while self.buckets[-1] > 8:
            self.buckets.append(max(8, self.buckets[-1] * 3 // 4 // 8 * 8))

    def start(self, prompts, uniforms):
        """Prefill the prompts (lists of ids), and sample the first token of each row. uniforms (R, columns): the randomness of each."""
        P, W, G = len(prompts), max(map(len, prompts)), self.group
        tokens = torch.zeros(P, W, dtype=torch.long)
        for i, ids in enumerate(prompts):
            tokens[i, : len(ids)] = torch.tensor(ids)
        tokens = tokens.to(self.device)
        self.shape, self.live = self.prompt.shape[2:5:2] if self.on_gpu else (P, W), np.arange(P * G)
        self.lengths[:P] = torch.tensor([len(ids) for ids in prompts])
        self.rows[: P * G] = torch.arange(P * G)
        self.uniforms[: P * G] = torch.from_numpy(uniforms).to(self.uniforms.dtype)
        self.stopped.zero_()
        self.at.zero_()
        for some in range(0, P, per := max(1, PREFILL_TOKENS // W)):
            part = slice(some, min(P, some + per))

            def attend(q, k, v, layer):  # causal, and what pads a prompt stands after it: nobody sees it
                self.prompt[layer, 0, part, :, :W], self.prompt[layer, 1, part, :, :W] = k.transpose(1, 2), v.transpose(1, 2)  # noqa: B023
                return attention(q, k, v)

            positions = torch.arange(W, device=self.device).expand(part.stop - part.start, W)
            with self.model.autocast():
                x = self.model.hidden(tokens[part], positions, self._layers(attend))
                logits = self.model.head(x[torch.arange(len(x), device=self.device), self.lengths[part] - 1])
            self._write(logits.repeat_interleave(G, 0), self.rows[part.start * G : part.stop * G])

    def _layers(self, attend):
        return [partial(attend, layer=i) for i in range(len(self.own))]

    def _write(self, logits, rows):
        """Sample a token of each row from its logits, into its place."""
        at = self.at.expand(len(rows))
        token, logp = _choose(logits, self.temperature, self.top_p, self.uniforms[rows, at])
        self.ids[rows, at], self.logprobs[rows, at] = token, logp
        self.stopped[rows] |= token == self.stop_id

    def _step(self, n, window):
        """The rows' next token, column `at`, from the one before. Doing it twice changes nothing."""
        (P, W), rows, before = self.shape, self.rows[:n], self.at - 1
        lengths = self.lengths[:P]

        def attend(q, k, v, layer):  # (R, 1, H or K, D)
            own = self.own[layer, :, :n]
            own.index_copy_(3, before, torch.stack((k, v)).transpose(2, 3).to(own.dtype))
            return decode(q[:, 0], own, self.prompt[layer, :, :P, :, :W], lengths, rows, self.group, self.at, window)

        with self.model.autocast():
            positions = lengths[rows // self.group] + before
            x = self.model.hidden(self.ids[rows, before.expand(n)][:, None], positions[:, None], self._layers(attend))
            logits = self.model.head(x[:, 0])
        self._write(logits, rows)

    def step(self, column):
        """Write this column of every row that is still in the batch."""
        n = len(self.live)
        self.at.fill_(column)
        window = decode_window(column, self.columns, self.device)
        if not self.on_gpu:
            return self._step(n, window)
        if (n, window) in self.graphs:
            return self.graphs[n, window].replay()
        stream = torch.cuda.Stream()  # once as it is, and off the main stream: a capture must find everything set up
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(n, window)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=next(iter(self.graphs.values())).pool() if self.graphs else None):
            self._step(n, window)
        self.graphs[n, window] = graph

    def leave(self, stopped, filled):
        """Rows that have stopped may leave, given the flags of all rows on the host, until the batch is a smaller bucket. filled: columns to keep."""
        done = stopped[self.live]
        n = next(b for b in reversed(self.buckets) if b >= len(done) - done.sum())
        if n >= len(self.live):
            return
        stay = np.sort(np.argsort(done, kind="stable")[:n])  # all live ones, and some that have stopped to fill the bucket
        moved = torch.from_numpy(stay).to(self.device)
        self.live = self.live[stay]
        for layer in self.own:
            layer[:, :n, :, :filled] = layer[:, moved, :, :filled]
        self.rows[:n] = self.rows[moved]


class Flags:
    """The rows' done flags on the host. A GPU is not waited for: what one look asks for, the next one gets."""

    def __init__(self, stopped):
        self.stopped, self.asked = stopped, None

    def look(self):
        """→ numpy bools, or None if there are none yet."""
        if self.stopped.device.type != "cuda":
            return self.stopped.cpu().numpy()
        before = self.asked
        self.asked = torch.empty(self.stopped.shape, dtype=torch.bool, pin_memory=True), torch.cuda.Event()
        self.asked[0].copy_(self.stopped, non_blocking=True)
        self.asked[1].record()
        if before is None:
            return None
        before[1].synchronize()
        return before[0].numpy()


def _choose(logits, temperature, top_p, uniform):
    """One token of each row of logits (R, V), by inverting the distribution function at uniform (R,). Returns ids, log-probs."""
    logp = torch.log_softmax(logits.float() / (temperature or 1.0), -1)  # (R, V)
    if temperature == 0:
        token = logp.argmax(-1)
    else:
        p = logp.to(uniform.dtype).exp()
        if top_p < 1:
            ranked, index = p.sort(-1, descending=True)
            beyond = ranked.cumsum(-1) - ranked >= top_p  # tokens that the more probable ones already make up for
            p = p.masked_fill(torch.zeros_like(beyond).scatter(-1, index, beyond), 0.0)
        cumulative = p.cumsum(-1)
        token = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
        token = token.clamp(max=p.shape[-1] - 1)
    return token, logp.gather(-1, token[:, None])[:, 0]


# ----------------------------------------------------------------------------------------------------------------------
# Command line


@dataclass(frozen=True)
class Options:
    ckpt: str | None = cli.opt(None, "checkpoint folder")
    op: int = cli.opt(0, "operations of a problem to draw from the world it was trained in (0: problems come from stdin, one a line)")
    n: int = cli.opt(1, "tries")
    seed: int = cli.opt(0, "seed of the problem and of the samples")
    temperature: float = cli.opt(1.0, "of sampling (0: greedy)")
    top_p: float = cli.opt(1.0, "of sampling")
    max_new_tokens: int = cli.opt(256, "longest completion, in tokens")
    device: str = cli.opt("auto", "auto, cpu, cuda or mps")


def main():
    import common  # what only the command line needs stays out of the sampler proper
    import data
    import datagen
    import verify

    o = cli.parse_options(Options, description=__doc__)
    if o.ckpt is None:
        raise cli.UserError("no checkpoint: python sampler.py --ckpt out/demo/grpo/latest --op 5")
    cli.at_least(o, 1, "n", "max_new_tokens")
    device = common.setup(o.device, o.seed)
    checkpoint = common.load_checkpoint(o.ckpt, device, "auto")
    tokenizer = checkpoint.tokenizer

    def solve(prompt):
        samples = generate(checkpoint.model, [tokenizer.encode(prompt)], group_size=o.n, max_new_tokens=o.max_new_tokens, temperature=o.temperature,
                           top_p=o.top_p, stop_id=tokenizer.eos_id, seed=o.seed)  # fmt: skip
        for ids, logprobs in zip(samples.ids, samples.logprobs):
            yield tokenizer.decode(ids).strip(), sum(logprobs)

    if o.op:
        mixture = data.Mixture.parse(checkpoint.options["mixture"])
        arguments = {**mixture.arguments(np.random.default_rng(o.seed).random), "op": datagen.parse_ops(str(o.op))[0]}
        problem = datagen.generate(o.seed, 0, split="eval", **arguments)
        print(f"{problem.problem}\n{problem.question}")
        for text, logp in solve(data.prompt_text(problem)):
            print(f"\n{text}   (log-probability {logp:.2f})\n{verify.explain(text, problem, cli.colour())}")
        return
    if sys.stdin.isatty():
        print("a problem and its question, on one line:")
    for line in filter(str.strip, sys.stdin):
        for text, logp in solve(data.prompt_text({"problem": line, "question": ""}).replace("  ", " ")):
            parsed = verify.parse_solution(text)
            print(f"\n{text}   (log-probability {logp:.2f})")
            for step in parsed.steps:
                print(f"{'✓' if step.faithful else '✗'} {step.name} = {step.value and verify.show(step.value)}   from {sorted(step.parents) or 'the text'}")
            print(f"answer {parsed.answer}" + (f", errors: {', '.join(dict.fromkeys(parsed.errors))}" if parsed.errors else ""))


if __name__ == "__main__":
    from common import run

    run(main)

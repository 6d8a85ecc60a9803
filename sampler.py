"""Batched generation with a KV cache; and from the command line, a talk with a checkpoint about one problem.

    python sampler.py --ckpt out/demo/grpo/latest --op 5
    echo "The bears in Fernhollow number 3. … What is …?" | python sampler.py --ckpt out/demo/grpo/latest

Prompts are sorted by length and go through in batches. Each is prefilled once, at the right edge of its row (so that all rows
of a batch write their next key and value to the same column), then forked to its group. Rows that have finished leave.

Shapes: R rows (samples) of a batch, S cache columns, L layers, K key/value heads, D head width, V vocabulary.
"""

import sys
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

import cli
from attention import additive, decode_layout


@dataclass
class Samples:
    """Completions, prompt-major: sample g of prompt p is number p * group_size + g."""

    ids: list  # of lists of token ids, the stop token included
    logprobs: list  # of lists: log-probability of each of them under softmax(logits / temperature)
    finished: list  # whether the stop token came before max_new_tokens


class KVCache:
    """Keys and values at a fixed shape: (L, R, S, K, D) each. Columns left of `filled` hold earlier positions."""

    def __init__(self, config, rows, columns, device, dtype):
        shape = (config.num_hidden_layers, rows, columns, config.num_key_value_heads, config.head_dim)
        self.k, self.v = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        self.filled = 0

    def layers(self, columns):
        """One function per layer, for Qwen2.hidden: store the new keys and values of `columns` more columns, return all."""

        def layer(i):
            def store(k, v):  # (R, T, K, D)
                end = self.filled + columns
                self.k[i, :, self.filled : end] = k
                self.v[i, :, self.filled : end] = v
                return self.k[i, :, :end].to(k.dtype), self.v[i, :, :end].to(v.dtype)

            return store

        return [layer(i) for i in range(len(self.k))]

    def select(self, rows):
        """The cache of these rows only, repeated where a row is named again."""
        self.k, self.v = self.k[:, rows], self.v[:, rows]


@torch.inference_mode()
def generate(model, prompts, *, group_size=1, max_new_tokens, temperature=1.0, top_p=1.0, stop_id, seed=0, batch_size=256, indices=None, progress=None):
    """Sample group_size completions of each prompt (lists of ids) → Samples.

    temperature 0 is greedy (log-probs then at temperature 1). top_p: sample from the smallest set of tokens that holds this
    much probability; log-probs stay those of the full distribution. A sample depends on (seed, prompt index, group index) and
    the model, not on batch_size or its neighbours. indices: the prompts' indices, if these are some of a larger set's prompts.
    progress: text of a tqdm bar.
    Raises UserError where prompt and max_new_tokens do not fit the model's context, or an argument is out of range.
    """
    device, config = next(model.parameters()).device, model.config
    if not prompts or min(map(len, prompts)) == 0:
        raise cli.UserError("nothing to sample: there is no prompt, or an empty one")
    if temperature < 0 or not 0 < top_p <= 1:
        raise cli.UserError(f"temperature must be >= 0 and top_p within (0, 1], not {temperature} and {top_p}")
    longest = max(map(len, prompts))
    if longest + max_new_tokens > config.max_position_embeddings:
        raise cli.UserError(f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's context of "
                            f"{config.max_position_embeddings}; lower --max-new-tokens")  # fmt: skip
    indices = range(len(prompts)) if indices is None else indices
    n = len(prompts) * group_size
    out = Samples([None] * n, [None] * n, [False] * n)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    per_batch = max(1, batch_size // group_size)
    bar = tqdm(total=n, desc=progress, unit="sample", leave=False, disable=progress is None)
    for first in range(0, len(order), per_batch):
        chosen = order[first : first + per_batch]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            _generate_batch(model, prompts, chosen, group_size, max_new_tokens, temperature, top_p, stop_id, seed, indices, out, bar)
    bar.close()
    return out


def _generate_batch(model, prompts, chosen, group_size, max_new_tokens, temperature, top_p, stop_id, seed, indices, out, bar):
    device, config = next(model.parameters()).device, model.config
    width = max(len(prompts[i]) for i in chosen)
    tokens = torch.zeros(len(chosen), width, dtype=torch.long)
    pad = torch.tensor([width - len(prompts[i]) for i in chosen])  # columns before the prompt
    for row, i in enumerate(chosen):
        tokens[row, pad[row] :] = torch.tensor(prompts[i])
    tokens, pad = tokens.to(device), pad.to(device)

    # Prefill: one row a prompt. A padding column may look at itself alone, so that no softmax is over nothing.
    cache = KVCache(config, len(chosen), width + max_new_tokens, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    at = torch.arange(width, device=device)
    visible = (at <= at[:, None]) & (at >= pad[:, None, None]) | (at == at[:, None])  # (P, T, T)
    x = model.hidden(tokens, (at - pad[:, None]).clamp(min=0), additive(visible)[:, None], cache.layers(width))
    logits = model.lm_head(x[:, -1])  # (P, V)

    # Fork to groups. `sample` is the number of each live row's sample.
    cache.filled = width
    rows = torch.arange(len(chosen), device=device).repeat_interleave(group_size)
    cache.select(rows)
    logits, pad = logits[rows], pad[rows]
    sample = np.array([i * group_size + g for i in chosen for g in range(group_size)])
    keys = [indices[i] * group_size + g for i in chosen for g in range(group_size)]
    uniforms = np.stack([np.random.Generator(np.random.Philox(key=[seed, key])).random(max_new_tokens) for key in keys])
    uniforms = torch.from_numpy(uniforms).to(device, torch.float32 if device.type == "mps" else torch.float64)  # (R, max_new_tokens)
    ids = torch.zeros(len(sample), max_new_tokens, dtype=torch.long, device=device)
    logprobs = torch.zeros(len(sample), max_new_tokens, device=device)
    live = torch.arange(len(sample), device=device)  # which row of ids each row of the batch is
    stopped = torch.zeros(len(sample), dtype=torch.bool, device=device)
    lengths = np.full(len(sample), max_new_tokens)
    for t in range(max_new_tokens):
        token, logp = _choose(logits, temperature, top_p, uniforms[live, t])
        ids[live, t], logprobs[live, t] = token, logp
        for row in live[(token == stop_id) & ~stopped].tolist():
            out.finished[sample[row]] = True
            lengths[row] = t + 1
            bar.update()
        stopped |= token == stop_id
        if t + 1 == max_new_tokens or stopped.all():
            break
        if stopped.sum() > len(live) // 6:  # finished rows leave, some at a time: it copies the cache
            keep = (~stopped).nonzero()[:, 0]
            live, token, pad, stopped = live[keep], token[keep], pad[keep], stopped[keep]
            cache.select(keep)
        position = cache.filled - pad[:, None]  # (R, 1)
        x = model.hidden(token[:, None], position, decode_layout(pad, cache.filled + 1), cache.layers(1))
        cache.filled += 1
        logits = model.lm_head(x[:, 0])  # (R, V)
    bar.update(int((~stopped).sum()))
    for row, (i, p) in enumerate(zip(ids.tolist(), logprobs.tolist())):
        out.ids[sample[row]], out.logprobs[sample[row]] = i[: lengths[row]], p[: lengths[row]]


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
    checkpoint = common.load_checkpoint(o.ckpt, device)
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

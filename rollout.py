"""Sample solutions and judge them: what RL learns from, and what an evaluation counts."""

import random
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import chain, groupby

from lab.options import UserError, stream_key

import torch

from attention import Layout
from data import IGNORE, Document, get, pack, pack_groups, prompt_text, to_document, with_solutions
from sampler import generate
from texts import resolved
from verify import Verdict, explain, verify


class Problems:
    """The problems of each step: a pure function of (seed, step), or drawn from the pool of edge problems
    that `refresh` found.
    """

    def __init__(self, o, mixture, records, pool=None, candidates=0):
        """pool: numbers of the pool's problems; candidates: how many were looked at for it so far."""
        self.o, self.mixture, self.records, self.pool, self.candidates = o, mixture, records, pool, candidates

    def of_step(self, step, mine):
        """Those of the step's `prompts` problems whose numbers are in `mine`."""
        if self.pool is None:
            return [self._problem("step", step * self.o.prompts + i) for i in mine]
        rand = random.Random(stream_key(self.o.seed, "pool", step))
        chosen = [self.pool[rand.randrange(len(self.pool))] for _ in range(self.o.prompts)]
        return [self._problem("candidate", chosen[i]) for i in mine]

    def _problem(self, purpose, number):
        if self.records:
            return self.records[number % len(self.records)]
        return self.mixture.problem(stream_key(self.o.seed, purpose), number, "rl")

    def refresh(self, pass_rates):
        """Find `select_pool` problems that some tries solve, and not more than the bound. Returns
        the yield.

        pass_rates: problems → list of rates. Raises UserError if 40 pools of candidates do not yield one edge
        problem each.
        """
        o, pool, first = self.o, [], self.candidates
        while len(pool) < o.select_pool:
            numbers = range(self.candidates, self.candidates + o.select_pool)
            self.candidates = numbers.stop
            rates = pass_rates([self._problem("candidate", number) for number in numbers])
            pool += [number for number, rate in zip(numbers, rates) if 0 < rate <= o.select_bound]
            tried = self.candidates - first
            if tried >= 40 * o.select_pool and len(pool) < tried // 40:
                found = f"only {len(pool)} of {tried} problems have 0 < pass rate <= {o.select_bound}"
                raise UserError(f"--select edge: {found}; take an easier --mixture or more --select-samples")
        self.pool = pool[: o.select_pool]
        return len(pool) / tried


@dataclass(slots=True)
class Rollout:
    """One sampled solution, judged."""

    problem: object  # a Problem or a record
    prompt_ids: list
    completion_ids: list  # the stop token included
    old_logp: list  # log-probability of each of them when it was sampled
    finished: bool  # whether the stop token came before the limit
    text: str  # of the solution, with what stood already
    verdict: Verdict
    reward: float = 0.0
    advantage: float = 0.0
    weight: float = 1.0  # of each of its tokens in the loss
    parts: dict = field(default_factory=dict)  # of the reward: {name: value}


def roll_out(model, tokenizer, problems, group, stream, numbers=None, *, begun=None, reward=None, **how):
    """Sample `group` solutions of each problem, judge and reward them → Rollouts, problem-major.

    A sample depends on `stream`, which names what it is for, on its problem's number (numbers; None: its
    index) and on its place in the group. Of a chain that reflects, what stands in the end is judged. begun:
    what stands already of each problem's solution; reward: a rewards.Reward, or None; how: as of
    sampler.generate.
    """
    begun = begun or [""] * len(problems)
    prompts = [tokenizer.encode(prompt_text(problem) + start) for problem, start in zip(problems, begun)]
    how.update(group_size=group, stop_id=tokenizer.eos_id, seed=stream_key(*stream), indices=numbers)
    samples, rollouts = generate(model, prompts, **how), []
    for i, ids in enumerate(samples.ids):
        problem, prompt, text = problems[i // group], prompts[i // group], begun[i // group]
        text += tokenizer.decode(ids)
        sampled = prompt, ids, samples.logprobs[i], samples.finished[i]
        rollouts.append(Rollout(problem, *sampled, text, verify(resolved(text), problem)))
        if reward is not None:
            rollouts[-1].reward, rollouts[-1].parts = reward(rollouts[-1])
    return rollouts


def room(model, tokenizer, problems, begun=None):
    """How many new tokens fit the model's context after the longest prompt of these problems, and after what
    stands already of their solutions; and which problem has it.
    """
    asked = zip(problems, begun or [""] * len(problems))
    sizes = [len(tokenizer.encode(prompt_text(problem) + start)) for problem, start in asked]
    return model.config.max_position_embeddings - max(sizes), problems[sizes.index(max(sizes))]


def check_room(model, tokenizer, problems, max_new_tokens, begun=None):
    """Raise UserError if so many new tokens do not fit the context there."""
    context, (most, longest) = model.config.max_position_embeddings, room(model, tokenizer, problems, begun)
    told = f"a prompt of {context - most} tokens ({get(longest, 'where') or get(longest, 'id')})"
    if most < 1:
        raise UserError(f"{told} leaves no room in the context of {context}: leave it out")
    if max_new_tokens > most:
        exceed = f"and {told} exceed the context of {context}: at most {most} fit"
        raise UserError(f"--max-new-tokens {max_new_tokens} {exceed}")


def pack_rollouts(rollouts, row_tokens, pad_id, rows, device):
    """Rollouts → micro-batches of so many rows, Batches whose targets are the completions, with `old_logp`,
    `advantage` and `weight` beside them.

    Each row holds a prompt once for all samples of it there. Its last token stands before each of them
    again: it is what predicts their first.
    """
    groups, longest = [], row_tokens
    for prompt_ids, group in groupby(rollouts, lambda rollout: rollout.prompt_ids):
        documents = []
        for rollout in group:
            n, old_logp = len(rollout.completion_ids), [0.0, *rollout.old_logp]
            values = {name: [0.0] + [getattr(rollout, name)] * n for name in ("advantage", "weight")}
            values["old_logp"] = old_logp
            ids, trained = [*prompt_ids[-1:], *rollout.completion_ids], [False] + [True] * n
            documents.append(Document(ids, trained, values, goes_on=True))
            longest = max(longest, len(prompt_ids) + n)
        groups.append((prompt_ids[:-1], documents))
    return pack_groups(groups, longest, pad_id).micro_batches(rows, device)


def token_logps(model, micro, temperature):
    """log p of each target under the model at this temperature → (B, T), 0 where there is no target; and the
    entropy's sum there.
    """
    mask = micro.targets != IGNORE
    logits = model.logits(micro.tokens, Layout.of(micro.doc_start, *micro.prompts), mask).float()  # (N, V)
    logp = torch.log_softmax(logits / temperature, -1)
    chosen = logp.gather(-1, micro.targets[mask][:, None])[:, 0]
    entropy = -(logp.detach().exp() * logp.detach()).sum()
    return torch.zeros_like(micro.targets, dtype=chosen.dtype).masked_scatter(mask, chosen), entropy


@torch.no_grad()
def held_out_nll(model, tokenizer, problems, row_tokens=2048, rows=4):
    """Mean negative log-likelihood, nats per token of the solution, by number of operations: {2: 0.31, …}."""
    device, documents, nll = next(model.parameters()).device, defaultdict(list), {}
    for problem in problems:
        documents[problem.op].append(to_document(problem, tokenizer, solution_only=True))
    for op in sorted(documents):
        longest = max(row_tokens, *(len(document.ids) for document in documents[op]))
        batch, total = pack(documents[op], longest, tokenizer.pad_id), 0.0
        for micro in batch.micro_batches(rows, device):
            mean = model(micro.tokens, micro.doc_start, micro.targets, loss_only=True)[1]
            total += float(mean) * micro.trained
        nll[op] = total / batch.trained
    return nll


def evaluate_held_out(model, tokenizer, problems, max_new_tokens, tries=0, stream=(), **how):
    """NLL and solutions of held-out problems, a greedy one each or so many tries at temperature 1 → ({name:
    value} for the log, text for samples.txt). stream: seed and step, of the noise; how: as of
    sampler.generate.

    pass@1 is the share of all tries that solve their problem, by the answer where that is all there is.
    """
    how |= dict(max_new_tokens=min(max_new_tokens, room(model, tokenizer, problems)[0]))
    how["temperature"], by_op = float(tries > 0), defaultdict(list)
    for rollout in roll_out(model, tokenizer, problems, tries or 1, ("held out", *stream), **how):
        by_op[rollout.problem.op].append(rollout)
    correct = {op: sum(r.verdict.solved for r in some) / len(some) for op, some in by_op.items()}
    nll = held_out_nll(model, tokenizer, with_solutions(problems))
    values = {f"eval/nll_op{op}": value for op, value in nll.items()}
    values |= {f"eval/correct_op{op}": value for op, value in correct.items()}
    tried = [rollout.verdict.solved for rollout in chain(*by_op.values())]
    values["eval/pass@1"] = sum(tried) / len(tried)
    if tries > 1:  # at least one right
        values[f"eval/pass@{tries}"] = sum(map(any, zip(*[iter(tried)] * tries))) / len(problems)
    return values, "".join(f"--- op {op}\n{described(some[0])}\n\n" for op, some in by_op.items())


def described(rollout):
    """A rollout to read: problem, solution, and the judge's account of it."""
    problem, text = rollout.problem, rollout.text
    told = [get(problem, "problem"), get(problem, "question"), text.strip(), explain(resolved(text), problem)]
    return "\n".join(filter(None, told))

"""Sample solutions and judge them: what RL learns from, what an evaluation counts, and a talk with a checkpoint.

python rollout.py --ckpt out/demo/grpo/latest --op 5
echo "The otters in Fernhollow number 3. … What is …?" | python rollout.py --ckpt out/demo/grpo/latest
"""

import sys
from dataclasses import dataclass

from lab.device import DeviceOptions, run_torch_script, setup
from lab.options import UserError, colour, opt, parse_options, printable

import torch

from checkpoint import load_checkpoint
from data import Document, get, pack, prompt_text, to_document
from datagen import Mixture
from sampler import generate
from verify import Verdict, explain, parse_solution, show, verify
from verify import reward as verify_reward


@dataclass(slots=True)
class Rollout:
    """One sampled solution, judged."""

    problem: object  # a Problem or a record
    prompt_ids: list
    completion_ids: list  # the stop token included
    old_logp: list  # log-probability of each of them when it was sampled
    finished: bool  # whether the stop token came before the limit
    text: str
    verdict: Verdict
    reward: float = 0.0
    advantage: float = 0.0


def roll_out(model, tokenizer, problems, group_size, *, reward="strict", alpha=0.2, **sampling):
    """Sample group_size solutions of each problem, judge and reward them → Rollouts, problem-major.

    reward, alpha: as of verify.reward; sampling: as of sampler.generate.
    """
    prompts = [tokenizer.encode(prompt_text(problem)) for problem in problems]
    samples = generate(model, prompts, group_size=group_size, stop_id=tokenizer.eos_id, **sampling)
    rollouts = []
    for i, ids in enumerate(samples.ids):
        problem, text = problems[i // group_size], tokenizer.decode(ids)
        verdict = verify(text, problem)
        rollouts.append(
            Rollout(problem, prompts[i // group_size], ids, samples.logprobs[i], samples.finished[i], text, verdict,
                    verify_reward(verdict, reward, alpha)))  # fmt: skip
    return rollouts


def check_room(model, tokenizer, problems, max_new_tokens):
    """Raise UserError unless the longest prompt of these problems and so many new tokens fit the model's context."""
    context = model.config.max_position_embeddings
    longest = max(len(tokenizer.encode(prompt_text(problem))) for problem in problems)
    if longest + max_new_tokens > context:
        raise UserError(
            f"--max-new-tokens {max_new_tokens} and a prompt of {longest} exceed the model's context of {context}: "
            f"at most {context - longest} fit")  # fmt: skip


def pack_rollouts(rollouts, row_tokens, pad_id):
    """Rollouts → Batch whose targets are the completions, with their `old_logp` and `advantage` beside them."""
    documents = []
    for rollout in rollouts:
        before, n = len(rollout.prompt_ids), len(rollout.completion_ids)
        values = {
            "old_logp": [0.0] * before + rollout.old_logp,
            "advantage": [0.0] * before + [rollout.advantage] * n,
        }
        documents.append(
            Document(rollout.prompt_ids + rollout.completion_ids, [False] * before + [True] * n, values))  # fmt: skip
    longest = max((len(document.ids) for document in documents), default=0)
    return pack(documents, max(row_tokens, longest), pad_id)


@torch.no_grad()
def held_out_nll(model, tokenizer, problems, row_tokens=2048, rows=4):
    """Mean negative log-likelihood, nats per token of the solution, by number of operations: {2: 0.31, …}."""
    device, nll = next(model.parameters()).device, {}
    for op in sorted({problem.op for problem in problems}):
        documents = [
            to_document(problem, tokenizer, solution_only=True) for problem in problems if problem.op == op
        ]
        longest = max(len(document.ids) for document in documents)
        batch, total = pack(documents, max(row_tokens, longest), tokenizer.pad_id), 0.0
        for micro in batch.micro_batches(rows, device):
            mean = model(micro.tokens, micro.doc_start, micro.targets, loss_only=True)[1]
            total += float(mean) * micro.trained
        nll[op] = total / batch.trained
    return nll


def evaluate_held_out(model, tokenizer, problems, max_new_tokens):
    """NLL and greedy solutions of held-out problems → ({name: value} for the log, text for samples.txt)."""
    context = model.config.max_position_embeddings
    room = context - max(len(tokenizer.encode(prompt_text(problem))) for problem in problems)
    rollouts = roll_out(
        model, tokenizer, problems, 1, temperature=0, max_new_tokens=min(room, max_new_tokens)
    )
    correct, shown = {}, []
    for rollout in rollouts:
        op = rollout.problem.op
        if op not in correct:
            shown.append(f"--- op {op}\n{described(rollout)}\n\n")
        correct.setdefault(op, []).append(rollout.verdict.correct)
    correct = {op: sum(c) / len(c) for op, c in correct.items()}
    values = {f"eval/nll_op{op}": value for op, value in held_out_nll(model, tokenizer, problems).items()}
    values |= {f"eval/correct_op{op}": value for op, value in correct.items()}
    values["eval/pass@1"] = sum(correct.values()) / len(correct)
    return values, "".join(shown)


def described(rollout):
    """A rollout to read: problem, solution, and the judge's account of it."""
    problem, text = rollout.problem, rollout.text
    return f"{get(problem, 'problem')}\n{get(problem, 'question')}\n{text.strip()}\n{explain(text, problem)}"


# ----------------------------------------------------------------------------------------------------------------------
# A talk with a checkpoint


@dataclass(frozen=True)
class Options(DeviceOptions):
    ckpt: str | None = opt(None, "checkpoint folder", group="talk")
    op: int = opt(
        0, "operations of a problem of the world it was trained in (0: read problems from stdin, one a line)"
    )
    n: int = opt(1, "tries", within="[1, inf)")
    temperature: float = opt(1.0, "of sampling (0: greedy)", within="[0, 100]")
    top_p: float = opt(1.0, "of sampling", within="(0, 1]")
    max_new_tokens: int = opt(256, "longest completion, in tokens", within="[1, inf)")


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__)
    if o.ckpt is None:
        raise UserError("no checkpoint: python rollout.py --ckpt out/demo/grpo/latest --op 5")
    checkpoint = load_checkpoint(o.ckpt, setup(o), o.dtype, o.attention)
    sampling = dict(
        group_size=o.n, max_new_tokens=o.max_new_tokens, temperature=o.temperature, top_p=o.top_p, seed=o.seed
    )
    if o.op:
        problem = Mixture.parse(checkpoint.options["mixture"]).problem(o.seed, 0, "dev", op=o.op)
        print(f"{problem.problem}\n{problem.question}")
        for rollout in roll_out(checkpoint.model, checkpoint.tokenizer, [problem], **sampling):
            print(f"\n{printable(rollout.text.strip())}   (log-probability {sum(rollout.old_logp):.2f})")
            print(explain(rollout.text, problem, colour()))
        return
    if sys.stdin.isatty():
        print("a problem and its question, on one line:")
    for line in filter(str.strip, sys.stdin):
        answer_typed_problem(checkpoint, line, sampling)


def answer_typed_problem(checkpoint, line, sampling):
    """Solve a problem whose gold graph nobody knows: a step's ✓ says that its equations are true, not that it is what was asked."""
    tokenizer = checkpoint.tokenizer
    prompt = tokenizer.encode(prompt_text({"problem": line, "question": ""}))
    samples = generate(checkpoint.model, [prompt], stop_id=tokenizer.eos_id, **sampling)
    for ids, logprobs in zip(samples.ids, samples.logprobs):
        text = tokenizer.decode(ids)
        parsed = parse_solution(text)
        print(f"\n{printable(text.strip())}   (log-probability {sum(logprobs):.2f})")
        for step in parsed.steps:
            value = "nothing" if step.value is None else show(step.value)
            parents = ", ".join(sorted(step.parents)) or "the text"
            print(printable(f"{'✓' if step.faithful else '✗'} {step.name} = {value}   from {parents}"))
        errors = f", errors: {', '.join(dict.fromkeys(parsed.errors))}" if parsed.errors else ""
        print(
            f"answer {parsed.answer}{errors}; ✓: its equations are true (nobody knows here whether they are the right ones)"
        )


if __name__ == "__main__":
    run_torch_script(main)

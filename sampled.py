"""What RL sampled, to look at: two tries on the terminal now and then, all of the last steps in a file."""

from itertools import product

from lab.options import printable
from lab.runs import say

from data import get, prompt_text
from rollout import described

FILE = "rollouts.jsonl"


def keep_tries(run, processes, o, step, rollouts):
    """Of a step's rollouts (this process's, problem-major) show the best and the worst at the first problem,
    every o.show_every steps; write all to rollouts.jsonl, which keeps the last o.keep_rollouts steps.
    """
    if processes.first and o.show_every and step % o.show_every == 0:
        worst, *_, best = sorted(rollouts[: o.group], key=lambda rollout: rollout.reward)
        for rollout in (best, worst):
            paid = f"reward {rollout.reward:.3g}, advantage {rollout.advantage:+.3g}"
            say(f"--- step {step}, a try with {paid}\n{printable(described(rollout))}\n")
    if o.keep_rollouts:
        parts = processes.gather([as_line(rollout) for rollout in rollouts])
        # process r of n has the prompts r, r + n, …: back into their order
        groups = product(range(-(-o.prompts // len(parts))), parts)
        lines = [line for i, part in groups for line in part[i * o.group : (i + 1) * o.group]]
        if processes.first:
            run.keep_last(FILE, step, o.keep_rollouts, lines)


def as_line(rollout):
    """A rollout as a line of rollouts.jsonl, but for its step."""
    problem, verdict = rollout.problem, rollout.verdict
    return {
        "problem": get(problem, "where") or get(problem, "id"),
        "prompt": prompt_text(problem),
        "text": rollout.text,
        "tokens": len(rollout.completion_ids),
        "finished": rollout.finished,
        "verdict": verdict.kind,
        "process": verdict.process,
        "reward": rollout.reward,
        "parts": rollout.parts,
        "advantage": rollout.advantage,
    }

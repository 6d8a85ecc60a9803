"""What a try is paid: the judge's rewards, functions in a file of one's own, a penalty for length, weighted.

    --reward strict
    --reward my_rewards.py:short_and_right
    --reward "strict:1, my_rewards.py:brevity:0.1, overlong:0.5"

A function of one's own is called as f(text, record, verdict, finished, n_tokens) and returns a number:

    def short_and_right(text, record, verdict, finished, n_tokens):
        return verdict.answer_correct * (1.0 if n_tokens < 60 else 0.5)

text: what was written, [EOS] included; record: a dict of the JSONL schema; verdict: a verify.Verdict;
finished: whether [EOS] came before --max-new-tokens. It must depend on nothing else, or a run that is resumed
is another run.
"""

import inspect
import re
import runpy
import traceback
from bisect import bisect_left
from contextlib import suppress
from dataclasses import replace
from functools import partial

from lab.options import UserError, look_up, parse_weight, reading

from datagen import to_record
from verify import REWARDS, STOP, gold_graph, reward

OVERLONG = "overlong"
MOST = 1e9  # of a reward of one's own: its square is still a float32
UNFINISHED = ("reward0", "mask")
PART = re.compile(r"(?:(.+\.py):)?([^:]+)(?::(.*))?")


class Reward:
    """A weighted sum of parts. Called with a rollout.Rollout it returns the sum, and {part: value} without
    the weights.

    files: those that the parts were read from; weights: {part: weight}.
    """

    def __init__(self, spec, alpha=0.2, longest=1024, overlong=0, unfinished=None):
        """alpha: as of verify.reward; longest: most tokens of a try; overlong: tokens in which the penalty
        `overlong` grows (0: a fifth of longest); unfinished: "reward0" pays nothing to what was broken off.
        Raises UserError if the spec does not parse, or its file holds no such function.
        """
        self.unfinished, self.files, self.weights, self.parts = unfinished, [], {}, {}
        for text in map(str.strip, spec.split(",")):
            match = PART.fullmatch(text)
            if not match:
                raise UserError(f"reward {text!r} is not name, name:weight or file.py:function:weight")
            file, name, weight = match.groups()
            name = name.strip()
            if name in self.parts:
                raise UserError(f"reward {spec!r}: {name} is given twice")
            if file:
                part = partial(call, load(file, name), file)
                self.files.append(file)
            elif name == OVERLONG:
                part = partial(soft_overlong, longest=longest, cache=overlong or max(1, longest // 5))
            else:
                look_up("reward", {**REWARDS, OVERLONG: None, "file.py:function": None}, name)
                part = partial(built_in, kind=name, alpha=alpha)
            self.parts[name], self.weights[name] = part, 1.0 if weight is None else parse_weight(weight)
        if not any(self.weights.values()):
            raise UserError(f"reward {spec!r}: the weights add up to 0")
        if overlong > longest or (overlong and OVERLONG not in self.parts):
            raise UserError(
                f"--overlong {overlong} is of a reward {OVERLONG}, and at most --max-new-tokens {longest}"
            )

    def __call__(self, rollout):
        found = {name: part(rollout) for name, part in self.parts.items()}
        if self.unfinished == "reward0" and not rollout.finished:
            return 0.0, found
        return sum(weight * found[name] for name, weight in self.weights.items()), found

    @property
    def ends_at_errors(self):
        """Whether nothing after a first wrong definition can be paid."""
        parts = self.parts.items()
        return all(part.func is built_in and name in ("strict", "faithful") for name, part in parts)

    def check(self, record):
        """Raise UserError if it cannot pay for tries at this record: no gold, or an answer alone for a reward
        that looks at steps.
        """
        steps, _ = gold_graph(record)
        stepwise = [name for name, part in self.parts.items() if part.func is built_in and name != "outcome"]
        if stepwise and not steps:
            raise UserError(f"an answer but no steps, which the reward {stepwise[0]} judges: use outcome")


def built_in(rollout, kind, alpha):
    """One of verify.REWARDS."""
    return reward(rollout.verdict, kind, alpha)


def soft_overlong(rollout, longest, cache):
    """Soft overlong punishment (DAPO, Yu et al. 2025, eq. 13), in [-1, 0]: 0 up to longest - cache tokens,
    then falling in a line to -1 at `longest`.
    """
    return min(0.0, max(-1.0, (longest - cache - len(rollout.completion_ids)) / cache))


def up_to_first_error(rollout, tokenizer):
    """A rollout without what was written after the first wrong definition of a gold quantity: nothing there
    can change that it is not `strict` (as in process supervision: Lightman et al. 2023, section 2.6).
    """
    nodes, text = rollout.verdict.nodes, rollout.text
    wrong = (s.name for s in rollout.verdict.parsed.steps if nodes.get(s.name, "ok") != "ok")
    # the last one, where a second contradicts the first
    begin = text.rfind(f"Define {next(wrong, None)} as ")
    stop = STOP.search(text, begin)
    if begin < 0 or stop is None:
        return rollout
    ids = rollout.completion_ids
    n = bisect_left(range(len(ids)), stop.end(), key=lambda n: len(tokenizer.decode(ids[:n])))
    return replace(rollout, completion_ids=ids[:n], old_logp=rollout.old_logp[:n])


def load(file, name):
    """The function `name` of a Python file. Raises UserError, with the line, if it does not run."""
    with reading(file):
        open(file, encoding="utf-8").close()
    try:
        function = runpy.run_path(file).get(name)
    except (Exception, SystemExit) as error:
        raise UserError(blame(error, file)) from None
    if not callable(function):
        raise UserError(f"{file} has no function {name}")
    try:
        inspect.signature(function).bind(*range(5))
    except (TypeError, ValueError) as error:
        told = f"{name} must take text, record, verdict, finished, n_tokens ({error})"
        raise UserError(f"{file}: {told}") from None
    return function


def call(function, file, rollout):
    """The number that a function of one's own returns. Raises UserError with file, line and problem."""
    problem = rollout.problem
    record = dict(problem) if isinstance(problem, dict) else to_record(problem)  # which it may change
    at = f"at problem {record.get('where') or record.get('id')}"
    name, paid = getattr(function, "__name__", function), float("nan")
    try:
        value = function(rollout.text, record, rollout.verdict, rollout.finished, len(rollout.completion_ids))
    except (Exception, SystemExit) as error:
        raise UserError(f"{blame(error, file)}, {at}") from None
    with suppress(Exception):  # of None, of a text
        paid = float(value)
    if not abs(paid) <= MOST:  # nor is nan
        told = f"{file}: {name} returned {' '.join(repr(value).split()):.60}, {at}"
        raise UserError(f"{told}: a reward must be a number, and within ±{MOST:g}")
    return paid


def blame(error, file):
    """ "my_rewards.py, line 7: ZeroDivisionError: division by zero": where in the file it came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    lines += [error.lineno] if isinstance(error, SyntaxError) else []
    where = f"{file}, line {lines[-1]}" if lines else file
    return f"{where}: {type(error).__name__}: {' '.join(str(error).split())}"

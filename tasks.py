"""Problems of one's own, from a JSONL file: to train on, or to evaluate on. For RL and evaluation a line is a
record of the schema, or `question` and `answer` alone:

    {"question": "Ann has 3 pens and buys 4. How many has she?", "answer": 7}
    {"question": "…", "answer": "3 + 4 = <<3+4=7>>7 pens.\\n#### 7"}     as in GSM8K
"""

import json
import re
from itertools import chain

from lab.options import UserError, read_each, text_of

from datagen import Problem, from_record
from verify import gold_graph

# at most 15 digits, which is what a try can claim
NUMBER = re.compile(r"(?:.*####)?\s*(-?(?:\d{1,15}|\d{1,3}(?:,\d{3}){1,4}))\s*", re.DOTALL | re.ASCII)
ALONE = ("nodes", "solution")  # where a record has neither, its answer is all there is


def read_tasks(path, check=gold_graph):
    """The records of a file, `answer` a whole number if that is all they have; and `where`: file and line.

    check: function of a record that raises UserError if tries at it cannot be judged. Raises UserError with
    the number of the line that cannot be used.
    """

    def read(record, text):
        if match := NUMBER.fullmatch(str(record.get("answer"))):
            record["answer"] = int(match[1].replace(",", ""))
        elif "answer" in record and not any(map(record.get, ALONE)):
            raise UserError(
                f"its `answer`, {record['answer']!r:.40}, is no whole number of at most 15 digits"
            )
        record.setdefault("problem", "")
        for key in ("question", "problem"):
            text(key)
        for key in ("prompt", "completion"):  # it is asked its question
            record.pop(key, None)
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError("it holds half a character, a lone surrogate such as \\ud800") from None
        check(record)
        return record

    return list(read_each(path, read))


def to_problem(record):
    """A record as a Problem; its op is 0 if it has none. Raises UserError if tries at it cannot be judged, or
    not be counted by its op, mode and template.
    """
    told = {
        **dict.fromkeys(Problem.__slots__),
        "mode": "given",
        "template": "given",
        "d": 2,
        "op": 0,
        **record,
    }
    told["answer"], known = gold_graph(record)[1], set()
    if type(told["op"]) is not int or not 0 <= told["op"] <= 999:
        raise UserError(f"its `op`, {told['op']!r:.40}, is no whole number within [0, 999]")
    for key in ("mode", "template"):
        text_of(told, key)
    if told["nodes"] is not None:
        told["nodes"] = from_record(told).nodes
    for node in told["nodes"] or ():
        if not {*node.operands} <= known:
            raise UserError(f"its node {node.name!r:.80} has an operand that no node before it is")
        known.add(node.name)
    return Problem(**{name: told[name] for name in Problem.__slots__})


def read_problems(path):
    """The records of a file as Problems, in order of op. Raises UserError."""
    problems = []
    read_tasks(path, lambda record: problems.append(to_problem(record)))
    return sorted(problems, key=lambda problem: problem.op)


def read_records(path):
    """Records to train on of a JSONL file: GSM-Infinite's keys, or `prompt` and `completion`, of which
    `unlearned`, if there, says what is no target; and `where`, for errors: the file and line.

    Raises UserError with the line number of one that lacks a key or an answer.
    """
    return list(read_each(path, checked))


def checked(record, text):
    keys = ("prompt", "completion") if "prompt" in record else ("problem", "question", "solution")
    texts = [text(key) for key in keys]
    if "solution" in keys and "Answer:" not in texts[-1]:
        raise UserError("the solution has no 'Answer: N.'")
    if not are_spans(record.get("unlearned", []), texts[-1] if "prompt" in record else ""):
        raise UserError("its `unlearned` is no list of [start, end], parts of the completion in order")
    return record


def are_spans(value, text):
    """Whether this is a list of pairs [start, end] that cut a text in order."""
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        return False
    places = [0, *chain(*value), len(text)]
    return all(type(place) is int for place in places) and places == sorted(places)

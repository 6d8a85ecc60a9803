"""Problems of one's own, from a JSONL file: to train on, or to evaluate on. For RL and evaluation a line is a
record of the schema, or `question` and `answer` alone:

    {"question": "Ann has 3 pens and buys 4. How many has she?", "answer": 7}
    {"question": "…", "answer": "3 + 4 = <<3+4=7>>7 pens.\\n#### 7"}     as in GSM8K
"""

import re

from lab.options import UserError, read_each

from datagen import Problem, from_record
from verify import gold_graph

NUMBER = re.compile(r"(?:.*####)?\s*(-?\d[\d,]{0,18})\s*", re.DOTALL | re.ASCII)


def read_tasks(path, check=gold_graph):
    """The records of a file, `answer` a whole number if that is all they have; and `where`: file and line.

    check: function of a record that raises UserError if tries at it cannot be judged. Raises UserError with
    the number of the line that cannot be used.
    """

    def read(record, text):
        if match := NUMBER.fullmatch(str(record.get("answer"))):
            record["answer"] = int(match[1].replace(",", ""))
        record.setdefault("problem", "")
        for key in ("question", "problem"):
            text(key)
        check(record)
        return record

    return list(read_each(path, read))


def check_op(record):
    """Raise UserError if tries at this record cannot be judged, or not be counted by its op."""
    gold_graph(record)
    if type(record.setdefault("op", 0)) is not int:
        raise UserError(f"its `op`, {record['op']!r:.40}, is no whole number")


def read_problems(path):
    """The records of a file as Problems, in order of op (0 where a record has none). Raises UserError."""
    unknown = dict.fromkeys(Problem.__slots__, None)
    unknown |= {"mode": "given", "template": "given", "d": 2}
    problems = []
    for record in read_tasks(path, check_op):
        told = {**unknown, **record, "answer": gold_graph(record)[1]}
        if told["nodes"] is not None:
            told["nodes"] = from_record(told).nodes
        problems.append(Problem(**{name: told[name] for name in Problem.__slots__}))
    return sorted(problems, key=lambda problem: problem.op)


def read_records(path):
    """Records to train on of a JSONL file: GSM-Infinite's keys, or `prompt` and `completion`; and `where`,
    for errors: the file and line.

    Raises UserError with the line number of one that lacks a key or an answer.
    """
    return list(read_each(path, checked))


def checked(record, text):
    keys = ("prompt", "completion") if "prompt" in record else ("problem", "question", "solution")
    texts = [text(key) for key in keys]
    if "solution" in keys and "Answer:" not in texts[-1]:
        raise UserError("the solution has no 'Answer: N.'")
    return record

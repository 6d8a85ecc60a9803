"""Problems of one's own, from a JSONL file: to train on by RL, or to evaluate on. A line is a record of the
schema, or `question` and `answer` alone:

    {"question": "Ann has 3 pens and buys 4. How many has she?", "answer": 7}
    {"question": "…", "answer": "3 + 4 = <<3+4=7>>7 pens.\\n#### 7"}     as in GSM8K
"""

import re

from lab.options import UserError, read_jsonl

from datagen import Problem, from_record
from verify import gold_graph

NUMBER = re.compile(r"(?:.*####)?\s*(-?\d[\d,]{0,18})\s*", re.DOTALL | re.ASCII)


def read_tasks(path, check=gold_graph):
    """The records of a file, `answer` a whole number if that is all they have; and `where`: file and line.

    check: function of a record that raises UserError if tries at it cannot be judged. Raises UserError with
    the number of the line that cannot be used.
    """
    records = []
    for number, record in read_jsonl(path):
        record["where"] = where = f"{path}, line {number}"
        if match := NUMBER.fullmatch(str(record.get("answer"))):
            record["answer"] = int(match[1].replace(",", ""))
        try:
            for key in ("question", "problem"):
                if not isinstance(record.setdefault(key, None if key == "question" else ""), str):
                    raise UserError(f"key {key!r} is missing or no text")
            check(record)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        records.append(record)
    if not records:
        raise UserError(f"{path} has no records")
    return records


def read_problems(path):
    """The records of a file as Problems, in order of op (0 where a record has none). Raises UserError."""
    unknown = dict.fromkeys(Problem.__slots__, None)
    unknown |= {"op": 0, "mode": "given", "template": "given", "d": 2}
    problems = []
    for record in read_tasks(path):
        told = {**unknown, **record, "answer": gold_graph(record)[1]}
        if told["nodes"] is not None:
            told["nodes"] = from_record(told).nodes
        problems.append(Problem(**{name: told[name] for name in Problem.__slots__}))
    return sorted(problems, key=lambda problem: problem.op)

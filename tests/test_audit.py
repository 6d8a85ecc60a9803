import json

from lab.options import UserError

import pytest

import datagen
from bench import audit, world_speed, world_stats
from datagen import TEMPLATES, Mixture, from_record, generate, render, to_record


def test_splits_share_no_problem_and_the_audit_would_see_it(monkeypatch):
    mixture = Mixture.parse("op 2-6; template zoo, school; mode forward, reverse")
    shared, repeats = audit.audit(mixture, 1500)
    assert len(shared) == 10  # pairs of five splits
    for counts in shared.values():
        assert counts["exact"] == counts["canonical"] == 0
    assert repeats["eval", 2][0] > repeats["eval", 6][0]
    monkeypatch.setattr(datagen, "SPLITS", dict.fromkeys(datagen.SPLITS, range(8)))
    # Few different problems: without buckets the splits must meet.
    one = "op 2; distractors 0-0; literals 1-2; bound 16"
    for counts in audit.audit(Mixture.parse(one), 1500)[0].values():
        assert counts["exact"] and counts["names"] >= 2 and counts["canonical"] >= counts["exact"]
    with pytest.raises(UserError, match="share a problem"):
        audit.main(["--n", "300", "--mixture", one])


def test_structure_does_not_depend_on_words():
    for i in range(40):
        graph = generate(1, i, op=9, mode=datagen.MODES[i % 2]).graph
        told = [render(graph, template) for template in TEMPLATES]
        assert len({audit.structure(p) for p in told}) == len({audit.up_to_names(p) for p in told}) == 1
    problems = [generate(2, i, op=9) for i in range(200)]
    assert len({audit.structure(p) for p in problems}) > 195
    assert audit.structure(from_record(to_record(problems[0]))) == audit.structure(problems[0])


def test_equal_up_to_names_sees_numbers_forms_and_distractors():
    p = generate(1, 3, op=6, min_distractors=2, max_distractors=2)
    whole = audit.up_to_names(p)
    literal = next(v for v in p.graph.distractors + p.graph.vertices if not v.operands)
    literal.value += 1
    assert audit.up_to_names(p) != whole
    literal.value -= 1
    assert audit.up_to_names(p) == whole
    p.graph.distractors.reverse() if not any(v.operands for v in p.graph.distractors) else None
    assert audit.up_to_names(p) == whole
    p.graph.distractors.pop()
    assert audit.up_to_names(p) != whole


def test_the_audit_sees_a_problem_whose_statements_are_reordered(monkeypatch):
    p = generate(0, 0, op=4)
    q = from_record(to_record(p))
    q.graph, q.problem = p.graph, " ".join(reversed(datagen.statements_of(p.problem)))
    others = [generate(5, i, op=9) for i in range(3)]
    told = dict(zip(datagen.SPLITS, [p, others[0], q, others[1], others[2]]))
    monkeypatch.setattr(Mixture, "problem", lambda self, seed, index, split, op=None: told[split])
    shared, repeats = audit.audit(Mixture.parse("op 4"), 1)
    assert shared["train", "mid"] == {"exact": 0, "canonical": 1, "structural": 0, "names": 1}
    assert repeats["mid", 4] == (1, 1) and repeats["eval", 9] == (0, 1)


def test_the_scripts_run(capsys):
    audit.main(["--n", "30", "--mixture", "op 2-5"])
    assert "train - eval" in capsys.readouterr().out
    world_stats.main(["--op", "5", "--n", "20"])
    assert "guess_floor" in capsys.readouterr().out
    world_stats.main(["--op", "5,6", "--n", "20", "--jsonl", "--mode", "forward,reverse"])
    out = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["mode"], row["op"], row["n"]) for row in out] == [
        ("forward", 5, 20), ("forward", 6, 20), ("reverse", 5, 20), ("reverse", 6, 20)]  # fmt: skip
    world_speed.main(["--n", "3"])
    assert capsys.readouterr().out.count("op 10") == 8

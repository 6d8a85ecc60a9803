import pickle
from collections import Counter

from lab.options import UserError

import pytest

import datagen
from datagen import WORDS, Mixture, generate, held_out, parse_count, parse_ops, split_of, to_record

MIXTURE = Mixture.parse("op 2-10:3, 11-14:1; template zoo:0.9, school:0.1; mode forward, reverse; tokens 1M")


def weight(mixture, **wanted):
    """The share of problems drawn whose arguments are these."""
    pairs = list(zip(mixture.choices, mixture.weights))
    chosen = sum(w for choice, w in pairs if wanted.items() <= choice.items())
    return chosen / sum(w for _, w in pairs)


def words(problem):
    return len(WORDS.findall(f"{problem.problem} {problem.question} {problem.solution}"))


def test_weights_are_normalised_and_drawn():
    assert weight(MIXTURE, op=2) == pytest.approx(0.75 / 9) and weight(MIXTURE, op=14) == pytest.approx(
        0.25 / 4
    )
    assert weight(MIXTURE, template="zoo") == pytest.approx(0.9) and MIXTURE.tokens == 1_000_000
    assert weight(MIXTURE, mode="reverse", template="school") == pytest.approx(0.05)
    drawn = [MIXTURE.problem(0, i, "train") for i in range(2000)]
    assert sum(p.op > 10 for p in drawn) / 2000 == pytest.approx(0.25, abs=0.04)
    assert sum(p.template == "school" for p in drawn) / 2000 == pytest.approx(0.1, abs=0.03)
    assert sum(p.mode == "reverse" for p in drawn) / 2000 == pytest.approx(0.5, abs=0.04)
    assert len({p.problem for p in drawn}) > 1990
    assert MIXTURE.ops == list(range(2, 15))
    (only,) = Mixture.parse(
        "op 5; distractors 2-3; literals 1-9; bound 99; degree 3; operators +-; letters ordered; layers 3"
    ).choices
    assert only == {"op": 5, "template": "zoo", "mode": "forward", "layers": 3, "min_distractors": 2, "max_distractors": 3, "min_literal": 1,
                    "max_literal": 9, "bound": 99, "max_in_degree": 3, "operators": "+-", "letters": "ordered"}  # fmt: skip


@pytest.mark.parametrize("spec", [
    "", "template zoo", "op", "op 1-5", "op 5-2", "op 2-21", "op 2:x", "op 2:-1", "op 2:0", "op 2; op 3", "op 2; template farm", "op 2; mode sideways",
    "op 2; layers 4", "op 2; tokens lots", "op 2; tokens 0", "op 2; distractors 5", "op 2; bound 3", "op 2; colour red", "op 2; letters greek",
    "op ٢", "op 2; operators -", "op 2; template zoo,", "op 2; share", "op 2; share -1", "op 2; share 0", "op 2; share 0 | op 3; share 0",
    "op 2 |", "| op 2", "op 2 | template zoo", "op 2; tokens 1M | op 3; tokens 1M", "op 2; shares words", "op 2; shares tokens | op 3; shares tokens",
    "op 2; share 1; share 1", "op 2; world flat", "op 2:nan", "op 2:" + "9" * 400, "op 2; literals 5-5", "op 2; distractors 9-11", "op 2\n; colour red", "op 2:",
])  # fmt: skip
def test_invalid_mixtures_are_user_errors(spec):
    with pytest.raises(UserError) as error:
        Mixture.parse(spec)
    assert "\n" not in str(error.value) and repr(spec) in str(error.value)


def test_a_world_is_short_for_its_knobs_and_what_stands_beside_it_counts():
    long = Mixture.parse(f"op 2-4:2, 5; template school; {datagen.WORLDS['mini']}")
    short = Mixture.parse("op 2-4:2, 5; world mini; template school")
    assert (short.choices, short.weights) == (long.choices, long.weights)
    assert Mixture.parse("op 2; world paper").choices == Mixture.parse("op 2").choices
    one = Mixture.parse("op 2; world mini; kinds 12 | op 3").choices
    assert one[0]["kinds"] == 12 and one[0]["plan"] == "inline" and "plan" not in one[1]


def test_counts_and_ops():
    assert [parse_count(t) for t in ("7", "500k", "6M", "1.5B")] == [7, 500_000, 6_000_000, 1_500_000_000]
    assert parse_ops("2-4, 8") == [2, 3, 4, 8]


def test_a_problem_is_a_pure_function_of_its_arguments():
    again = pickle.loads(pickle.dumps(MIXTURE))  # as a worker process gets it
    assert again == MIXTURE
    for i in range(20):
        p = MIXTURE.problem(3, i, "rl")
        assert to_record(again.problem(3, i, "rl")) == to_record(p) and split_of(p) == "rl"
        assert to_record(p) == to_record(
            generate(3, i, op=p.op, mode=p.mode, template=p.template, split="rl")
        )
    three = [[MIXTURE.problem(s, i, split).problem for i in range(20)] for s, split in ((3, "rl"), (4, "rl"), (3, "mid"))]  # fmt: skip
    assert three[0] != three[1] != three[2] != three[0]


def test_a_union_draws_its_components_by_share():
    union = Mixture.parse(
        "op 2-4; template zoo; share 0.9 | op 2:1, 6:3; template school; bound 99; share 0.1; tokens 10B"
    )
    assert union.tokens == 10_000_000_000 and union.ops == [2, 3, 4, 6]
    assert weight(union, template="school") == pytest.approx(0.1)
    assert weight(union, op=6) == pytest.approx(0.075) and weight(union, op=3) == pytest.approx(0.3)
    assert (
        weight(union, bound=99, template="school") == pytest.approx(0.1)
        and weight(union, bound=99, op=3) == 0
    )
    drawn = Counter((p.template, p.op) for p in (union.problem(0, i, "train") for i in range(3000)))
    assert set(drawn) == {("zoo", 2), ("zoo", 3), ("zoo", 4), ("school", 2), ("school", 6)}
    assert drawn["school", 6] / 3000 == pytest.approx(0.075, abs=0.02)
    equal = Mixture.parse("op 2 | op 3; template school")
    assert weight(equal, op=2) == weight(equal, op=3) == 0.5
    none = Mixture.parse("op 2; share 1 | op 3; share 0")
    assert none.ops == [2]


def test_an_op_comes_from_the_components_that_hold_it_or_else_from_any():
    union = Mixture.parse(
        "op 2-4; share 3 | op 4; template school; share 1 | op 9; template festival; share 4"
    )
    where = Counter(union.problem(0, i, "dev", op=4).template for i in range(1000))  # zoo 3/3, school 1
    assert set(where) == {"zoo", "school"} and where["school"] / 1000 == pytest.approx(0.5, abs=0.06)
    where = Counter(union.problem(0, i, "dev", op=12).template for i in range(1000))
    assert where["zoo"] / 1000 == pytest.approx(3 / 8, abs=0.06)
    assert where["festival"] / 1000 == pytest.approx(0.5, abs=0.06)
    problems = held_out(union, [12, 4, 9], 3, 0, "dev")
    assert [p.op for p in problems] == [4, 4, 4, 9, 9, 9, 12, 12, 12]
    assert all(split_of(p) == "dev" for p in problems) and len({p.problem for p in problems}) == 9
    assert {p.template for p in problems if p.op == 9} == {"festival"}
    assert to_record(problems[1]) == to_record(union.problem(0, 1, "dev", op=4))


def test_shares_of_tokens():
    """Weights are divided by mean lengths: then the tokens drawn, not the documents, have the shares."""
    spec = "op 2-10; share 0.7 | op 2; template school; share 0.3; shares {}"
    documents, by_tokens = (Mixture.parse(spec.format(shares)) for shares in ("documents", "tokens"))
    assert weight(documents, template="school") == pytest.approx(0.3)
    assert weight(by_tokens, template="school") > 0.4  # op 2 is short
    tokens, by_op = Counter(), Counter()
    for i in range(6000):
        p = by_tokens.problem(1, i, "rl")
        tokens[p.template] += words(p)
        by_op[p.op] += words(p) * (p.template == "zoo")
    assert tokens["school"] / tokens.total() == pytest.approx(0.3, abs=0.02)
    assert by_op[10] / by_op.total() == pytest.approx(1 / 9, abs=0.02)
    assert by_op[2] / by_op.total() == pytest.approx(1 / 9, abs=0.02)
    assert Mixture.parse(spec.format("documents")) == Mixture.parse(spec.format("documents"))
    Mixture.parse.__func__.cache_clear()
    assert Mixture.parse(spec.format("tokens")) == by_tokens


def test_the_mixture_has_every_knob():
    """Every knob of the world can be set in a mixture, and every key of a mixture sets one."""
    named = {name for _, _, _, *names in datagen.KNOBS.values() for name in names}
    assert named | {"layers"} == set(datagen.WorldConfig.__dataclass_fields__)

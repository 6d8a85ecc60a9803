import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from lab.options import UserError

import pytest
from solver import solve

import datagen
import graph
from datagen import (
    MODES,
    SPLITS,
    TEMPLATES,
    from_record,
    generate,
    render,
    split_of,
    statements_of,
    to_record,
)
from verify import verify

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "gsm_infinite"
TIGHT = (
    ["--operators", "+", "--min-literal", "98", "--max-literal", "99", "--bound", "792"],
    ["--min-literal", "5", "--max-literal", "12", "--bound", "96"],
    ["--layers", "3", "--min-literal", "10", "--max-literal", "99"],
)
EVERY = [
    (op, mode, template, layers)
    for op in range(2, 21)
    for mode in MODES
    for template in TEMPLATES
    for layers in (2, 3)
]


def edges(nodes):
    """GSM-Infinite's count of operations, from the records alone."""
    return sum(len(n.operands) + (n.constant is not None) if n.operands else 1 for n in nodes)


def test_independent_solver_agrees_on_20000_problems_of_every_kind():
    splits = list(SPLITS)
    n = 0
    for op, mode, template, layers in EVERY:
        for i in range(88):
            p = generate(11, i, op=op, mode=mode, template=template, layers=layers, split=splits[i % 5])
            assert solve(p.problem, p.question) == p.answer, to_record(p)
            n += 1
    assert n >= 20_000


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layers", [2, 3])
def test_op_is_exact_and_every_node_is_needed(mode, layers):
    for op in range(2, 21):
        for i in range(40):
            p = generate(3, i, op=op, mode=mode, layers=layers)
            assert edges(p.nodes) == p.op == op
            seen = set()
            for node in p.nodes:  # operands come first
                assert set(node.operands) <= seen
                seen.add(node.name)
            needed = {p.nodes[-1].name}
            for node in reversed(p.nodes):
                assert node.name in needed, f"{node.name} is not needed"
                needed.update(node.operands)
            for node in p.nodes[:-1]:
                stated = p.problem.count(f"The {node.name} number ") + p.problem.count(f"The {node.name} is ")
                assert stated == (not node.name.startswith("total"))


def test_removing_a_distractor_changes_nothing_and_removing_a_needed_statement_does():
    changed = 0
    for i in range(60):
        p = generate(5, i, op=8, mode=MODES[i % 2])
        needed = {n.name for n in p.nodes}
        statements = [s.strip() + "." for s in p.problem.split(".") if s.strip()]
        for j, s in enumerate(statements):
            rest = " ".join(statements[:j] + statements[j + 1 :])
            name = s.removeprefix("The ").partition(" number ")[0]
            if name not in needed and not s.startswith("The total"):
                if any(name in t.partition(" number ")[2] for t in statements):
                    continue  # another distractor is defined by it
                assert solve(rest, p.question) == p.answer
            else:
                try:
                    changed += solve(rest, p.question) != p.answer
                except (AssertionError, ValueError):
                    changed += 1
    assert changed > 100


@pytest.mark.skipif(not SHARED.exists(), reason="../shared is not beside the checkout")
def test_node_counts_follow_the_public_generator():
    names = {"normalforward": "forward", "forwardreverse": "reverse"}
    rows = json.loads((SHARED / "stats.json").read_text())
    differences = []
    for row in rows:
        mean = sum(len(generate(1, i, op=row["op"], mode=names[row["mode"]]).nodes) for i in range(250)) / 250
        differences.append(abs(mean - row["nodes_mean"]))
    assert len(rows) == 38
    assert (
        sum(differences) / 38 <= 0.5 and max(differences) <= 1.3
    )  # theirs are means of 42 problems, uncertain by some tenths


@pytest.mark.parametrize("mode", MODES)
def test_answers_cannot_be_guessed(mode):
    for layers in (2, 3):
        for op in range(5, 21):
            answers = Counter(generate(1, i, op=op, mode=mode, layers=layers).answer for i in range(1000))
            assert answers.most_common(1)[0][1] / 1000 <= 0.12, (op, answers.most_common(3))


def test_pure_function_whatever_the_process_and_hash_seed():
    code = "import json, datagen; print(json.dumps([datagen.to_record(datagen.generate(7, i, op=9, mode='reverse')) for i in range(5)]))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            cwd=ROOT,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    ]
    here = json.dumps([to_record(generate(7, i, op=9, mode="reverse")) for i in (0, 1, 2, 3, 4)])
    assert runs[0].strip() == runs[1].strip() == here
    assert (
        to_record(generate(7, 2, op=9)) != to_record(generate(8, 2, op=9)) != to_record(generate(8, 3, op=9))
    )


def test_splits_are_disjoint_and_do_not_depend_on_order_or_letters():
    seen = {}
    for split in SPLITS:
        for i in range(300):
            p = generate(2, i, op=2 + i % 4, split=split)
            assert split_of(p) == split
            copy = from_record(to_record(p))
            statements = [s.strip() + "." for s in p.problem.split(".") if s.strip()]
            copy.problem = " ".join(reversed(statements))
            copy.solution = p.solution.swapcase()  # other letters
            assert split_of(copy) == split
            assert seen.setdefault((p.question, *sorted(statements)), split) == split


def test_same_graph_in_every_context():
    for mode in MODES:
        for i in range(50):
            p = generate(4, i, op=2 + i % 19, mode=mode, layers=2 + i % 2)
            shapes = []
            for template in TEMPLATES:
                q = render(p.graph, template)
                index = {n.name: j for j, n in enumerate(q.nodes)}
                shapes.append(
                    [(n.operator, [index[o] for o in n.operands], n.constant, n.value) for n in q.nodes]
                )
                assert solve(q.problem, q.question) == p.answer == q.answer
                assert (template == "zoo") == ("teachers" not in q.problem and "films" not in q.problem)
            assert shapes[0] == shapes[1] == shapes[2]
            assert (
                generate(4, i, op=p.op, mode=mode, layers=p.layers, template="school")
                .graph.vertices[-1]
                .value
                == p.graph.vertices[-1].value
            )


def test_knobs_are_honoured():
    operators = Counter()
    for i in range(300):
        p = generate(
            6,
            i,
            op=3 + i % 18,
            max_in_degree=2,
            min_distractors=2,
            max_distractors=2,
            min_literal=3,
            max_literal=7,
            bound=120,
        )
        assert all(len(n.operands) <= 2 and n.value <= 120 for n in p.nodes)
        assert all(3 <= n.value <= 7 for n in p.nodes if not n.operands)
        counts = sum(not n.name.startswith("total") for n in p.nodes)
        assert p.problem.count(".") == counts + 2
        operators.update(o for n in p.nodes for o in n.operator)
        q = generate(6, i, op=12, operators="+", mode=MODES[i % 2])
        assert {o for n in q.nodes for o in n.operator} <= {"+"}
        r = generate(6, i, op=14, mode="reverse", bound=200)
        assert all(max(map(abs, n.value)) <= 200 for n in r.nodes if isinstance(n.value, tuple))
    assert set(operators) == set("+-*/") and min(operators.values()) > 50


def test_resampling_is_rare(monkeypatch):
    fits = []
    original = graph.Graph.draw_numbers

    def counting(drawn):
        fits.append(original(drawn))
        return fits[-1]

    monkeypatch.setattr(graph.Graph, "draw_numbers", counting)
    for op, mode, template, layers in EVERY:
        for i in range(20):
            generate(9, i, op=op, mode=mode, template=template, layers=layers)
    assert fits.count(False) / len(fits) < 0.02


def test_record_survives_json():
    for mode in MODES:
        p = generate(1, 1, op=7, mode=mode, layers=3)
        record = json.loads(json.dumps(to_record(p)))
        back = from_record(record)
        back.graph = p.graph
        assert back == p
        assert set(record) >= {
            "problem",
            "question",
            "solution",
            "op",
            "id",
            "template",
            "mode",
            "d",
            "answer",
            "nodes",
            "query",
            "unknown",
        }
    with pytest.raises(UserError):
        from_record({"problem": "x"})


@pytest.mark.parametrize(
    "bad",
    [
        {"op": 1}, {"op": 21}, {"op": 2.5}, {"op": 5, "mode": "sideways"}, {"op": 5, "template": "farm"}, {"op": 5, "split": "test"},
        {"op": 5, "layers": 4}, {"op": 5, "operators": "-*"}, {"op": 5, "bound": 10}, {"op": 5, "max_in_degree": 0},
        {"op": 5, "min_distractors": 4, "max_distractors": 2}, {"op": 5, "letters": "greek"},
    ],
)  # fmt: skip
def test_impossible_arguments_are_user_errors(bad):
    with pytest.raises(UserError):
        generate(0, 0, **bad)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "datagen.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_command_line():
    out = run("--op", "2-3", "--mode", "forward,reverse", "--template", "zoo", "--n", "2")
    assert out.returncode == 0 and out.stdout.count("--- op") == 8 and "Answer:" in out.stdout
    records = [json.loads(line) for line in run("--op", "5", "--n", "3", "--jsonl").stdout.splitlines()]
    assert [solve(r["problem"], r["question"]) == r["answer"] for r in records] == [True] * 3
    assert run("--op", "2", "--mode", "forward, reverse").stdout.count("--- op") == 2


def test_the_world_of_the_miniature_on_the_command_line(capsys):
    """--preset mini draws what `world mini` draws; a flag beside it counts."""
    for more, key in ([], ""), (["--max-literal", "12"], "; literals 1-12"):
        datagen.main(["--preset", "mini", "--op", "4", "--n", "3", "--split", "mid", "--jsonl", *more])
        drawn = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        mixture = datagen.Mixture.parse(f"op 4; world mini{key}")
        assert drawn == [datagen.to_record(mixture.problem(0, i, "mid")) for i in range(3)]


@pytest.mark.parametrize("bad", [
    ["--op", "2-99"], ["--op", "x"], ["--mode", "up"], ["--nonsense"], ["--n", "many"], ["--n", "0"], ["--n", "-1"], ["--template", "zoo,"],
    ["--mode", ""], ["--preset", "maxi"], ["--split", "test"], ["--seed", "-1"], ["--max-literal", "100"], ["--bound", "50"],
], ids=" ".join)  # fmt: skip
def test_a_bad_option_is_one_line_and_nothing_is_printed(bad, capsys):
    """In this process: `run_script`, which turns the error into a line and exit code 2, is tested with
    lab.options."""
    with pytest.raises(UserError) as error:
        datagen.main(bad)
    assert "\n" not in str(error.value) and capsys.readouterr().out == ""


def test_an_error_at_the_command_line():
    out = run("--op", "2-99")
    assert out.returncode == 2 and out.stderr.count("\n") == 1 and out.stderr.startswith("error: "), (
        out.stderr
    )


@pytest.mark.parametrize("layers", [2, 3])
def test_words_for_places_suffice(layers):
    """Many distractors and few operands a quantity ask for the most places: never more than a context has
    words for."""
    most = 0
    for degree in (1, 4):
        for i in range(300):
            p = datagen.generate(
                3,
                i,
                op=18 + i % 3,
                layers=layers,
                min_distractors=10,
                max_distractors=10,
                max_in_degree=degree,
            )
            most = max(most, 1 + max(v.place for v in p.graph.vertices + p.graph.distractors))
    assert 10 <= most <= graph.PLACES
    assert {len(t.places) for t in datagen.TEMPLATES.values()} == {graph.PLACES}


# ------------------------------------------------------------------------------------------------------------
# Knobs that leave little room


def knobs_of(flags):
    """["--min-literal", "5"] → {"min_literal": 5}"""
    values = (int(v) if v.isdigit() else v for v in flags[1::2])
    return dict(zip((name[2:].replace("-", "_") for name in flags[::2]), values))


@pytest.mark.parametrize("flags", TIGHT, ids=" ".join)
def test_knobs_that_hung_work_or_end_in_one_line(flags):
    made = 0
    for op in range(2, 21):
        for mode in MODES:
            start = time.process_time()
            try:
                for i in range(2):
                    p = generate(0, i, op=op, mode=mode, **knobs_of(flags))
                    assert solve(p.problem, p.question) == p.answer and edges(p.nodes) == op
                    made += 1
            except UserError as error:
                assert "raise bound" in str(error) and "literal" in str(error) and "\n" not in str(error)
            assert time.process_time() - start < 4  # two problems; about 0.5 s each on a quiet machine
    assert made > 20


@pytest.mark.parametrize("split", SPLITS)
def test_few_words_make_texts_of_every_split(split):
    """… of a problem that has no wording there: it takes more words than the knobs say."""
    few = dict(kinds=1, places=1, min_distractors=0, max_distractors=0, max_literal=2, bound=16)
    for i in range(100):
        assert split_of(generate(i, 0, op=2, split=split, **few)) == split


def test_no_accepted_knobs_hang():
    rand, worked, refused = random.Random(0), 0, 0
    for i in range(300):
        low = rand.randint(1, 98)
        high = rand.randint(low + 1, 99)
        fewest = rand.randint(0, 10)
        knobs = dict(
            layers=rand.choice((2, 3)), operators="+" + "".join(o for o in "-*/" if rand.random() < 0.5), max_in_degree=rand.randint(1, 6),
            min_distractors=fewest, max_distractors=rand.randint(fewest, 10), min_literal=low, max_literal=high,
            bound=rand.choice((8 * high, 8 * high + 1, rand.randint(8 * high, 99999))), letters=rand.choice(("random", "ordered", "shifted")),
            kinds=rand.randint(1, 12), places=rand.randint(1, 12),
        )  # fmt: skip
        op, mode, split = rand.randint(2, 20), rand.choice(MODES), rand.choice(list(SPLITS))
        start = time.process_time()
        try:
            p = generate(i, 0, op=op, mode=mode, split=split, **knobs)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            worked += 1
            assert edges(p.nodes) == op and solve(p.problem, p.question) == p.answer and split_of(p) == split
            assert all(n.value <= knobs["bound"] for n in p.nodes if isinstance(n.value, int))
        assert time.process_time() - start < 3, (op, mode, knobs)
    assert worked > 250 and refused < 50


@pytest.mark.parametrize("mode", MODES)
def test_the_smallest_problems_reach_every_split(mode):
    """One statement and no distractor: 144 wordings of each value for each context, and every split must hold
    one."""
    for value in range(1, 100):
        knobs = dict(
            min_distractors=0,
            max_distractors=0,
            min_literal=min(value, 98),
            max_literal=max(2, min(value + 1, 99)),
        )
        for split in SPLITS:
            p = generate(value, 0, op=2, mode=mode, split=split, template=list(TEMPLATES)[value % 3], **knobs)
            assert split_of(p) == split and len(statements_of(p.problem)) == 1 + (mode == "reverse")


# ------------------------------------------------------------------------------------------------------------
# What the text gives away


FORMS = ("literal", "copy", "constant and one", "several", "constant and several", "average")


def form_of(statement):
    """The form of a statement, from the text alone; None for the unknown and the given total of reverse
    mode."""
    if "unknown amount" in statement or statement.startswith("The total"):
        return None
    if statement.startswith("The average"):
        return "average"
    body = statement.partition(" number ")[2]
    if re.fullmatch(r"\d+\.", body):
        return "literal"
    if body.startswith("as many as"):
        return "copy"
    joined = "the sum of" in body or "the excess of" in body
    return ("constant and " if re.match(r"\d|a 1/", body) else "") + ("several" if joined else "one")


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_the_form_of_a_statement_hardly_tells_whether_it_is_needed(mode, layers):
    """The share needed among statements of a form, against that among all statements of problems with the
    same op."""
    ops = range(2, 21)
    needed, stated = Counter(), Counter()
    for op in ops:
        for i in range(300):
            p = generate(21, i, op=op, mode=mode, layers=layers)
            names = {node.name for node in p.nodes}
            for s in statements_of(p.problem):
                form = form_of(s)
                if form is not None:
                    verb = " is " if form == "average" else " number "
                    subject = s.removeprefix("The ").partition(verb)[0]
                    stated[form, op] += 1
                    needed[form, op] += subject in names
    share = {op: sum(needed[f, op] for f in FORMS) / sum(stated[f, op] for f in FORMS) for op in ops}

    def excess(forms, ops):
        n = sum(stated[f, op] for f in forms for op in ops)
        return sum(needed[f, op] - share[op] * stated[f, op] for f in forms for op in ops) / max(1, n)

    assert sum(stated.values()) > 30_000
    literal, expression = excess(["literal"], ops), excess(FORMS[1:5], ops)
    assert abs(literal - expression) < 0.04, (literal, expression)
    for band in (range(4, 7), range(7, 11), range(11, 15), range(15, 21)):
        for form in FORMS:
            if sum(stated[form, op] for op in band) > 500:
                # Averages: where few counts are stated, few can have one that is not needed.
                assert abs(excess([form], band)) < (0.12 if form == "average" else 0.07), (form, band)


# ------------------------------------------------------------------------------------------------------------
# Letters


@pytest.mark.parametrize("mode", MODES)
def test_letters(mode):
    alphabet = [c for c in datagen.LETTERS if mode == "forward" or c != "x"]
    firsts = Counter()
    for kind in ("ordered", "shifted"):
        for i in range(300):
            p = generate(5, i, op=4 + i % 17, mode=mode, letters=kind)
            written = re.findall(r"(?<![A-Za-z])([A-Za-z]) = ", p.solution.partition(" We know ")[0])
            defined = re.findall(r" as ([A-Za-z]);", p.solution)
            used = sorted(
                {c for c in {*written, *defined} if mode == "forward" or c != "x"}, key=alphabet.index
            )
            first = "a" if kind == "ordered" else next(c for c in defined if mode == "forward" or c != "x")
            start = alphabet.index(first)
            assert set(used) == {alphabet[(start + j) % len(alphabet)] for j in range(len(used))}
            firsts[kind, first] += 1
    assert firsts["ordered", "a"] == 300
    assert sum(kind == "shifted" for kind, _ in firsts) > 45


def test_splits_are_buckets():
    assert {name: len(buckets) for name, buckets in SPLITS.items()} == {
        "train": 4,
        "dev": 1,
        "mid": 1,
        "rl": 1,
        "eval": 1,
    }
    assert sorted(b for buckets in SPLITS.values() for b in buckets) == list(range(8))


PLANNED = dict(order="postorder", plan="inline")


def walk(nodes, name, walked):
    """What a depth-first walk of the gold graph opens and defines, in order."""
    if name in nodes and f"define {name}" not in walked:
        operands = nodes[name].operands
        if operands:
            walked.append(f"find {name}: {', '.join(operands)}")
        for operand in operands:
            walk(nodes, operand, walked)
        walked.append(f"define {name}")
    return walked


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layers", (2, 3))
def test_a_plan_is_the_walk_from_the_question(mode, layers):
    """Each quantity is opened, or read in the text, right where a depth-first walk comes to it."""
    for op, i in ((op, i) for op in range(2, 21) for i in range(12)):
        p = generate(5, i, op=op, mode=mode, layers=layers, kinds=6, places=8, **PLANNED)
        walked = walk({node.name: node for node in p.nodes}, p.nodes[-1].name, [])
        told = []
        for sentence in re.split(r"(?<=\.) ", p.solution):
            if match := re.fullmatch(r"To find (.*) we need (.*)\.", sentence):
                told.append(f"find {match[1]}: {match[2]}")
            elif match := re.match("Define (.*?) as [A-Za-z];", sentence):
                told.append(f"define {match[1]}")
        assert told == walked, p.solution
        assert [f"define {node.name}" for node in p.nodes] == [w for w in walked if w.startswith("define")]
        assert verify(p.solution, p).faithful, p.solution
        for node in p.nodes:  # the order of a total's members is that of the text
            if node.name.startswith("total"):
                members = [name for name in node.operands if not name.startswith("average")]
                at = [p.problem.index(f"The {name} ") for name in members]
                assert at == sorted(at), p.problem


def test_how_a_graph_is_told_does_not_change_it():
    """Problems of every telling have the same structure and numbers."""
    plain = generate(3, 4, op=9)
    for knobs in (PLANNED, dict(kinds=6, places=8), dict(order="postorder")):
        told = generate(3, 4, op=9, **knobs)
        shape = [
            sorted(repr((v.operator, v.constant, v.value, v.place)) for v in p.graph.vertices)
            for p in (plain, told)
        ]
        assert shape[0] == shape[1], knobs


def test_few_words_are_few():
    words = {
        word
        for i in range(300)
        for node in generate(0, i, op=6, kinds=6, places=8).nodes
        for word in re.findall(r"(\w+) in (\w+)$", node.name)
    }
    assert len({kind for kind, _ in words}) == 7  # "animals" of totals too
    assert len({place for _, place in words}) == 8
    with pytest.raises(UserError, match="postorder"):
        generate(0, 0, op=4, plan="inline")


def test_a_context_with_too_few_words_is_one_line(monkeypatch):
    """4 kinds and 3 places: of most draws a clear error, of the others a problem."""
    small = datagen.Template(
        "animals", "cubs", "{}", "{}", "otter badger marten panda", "Fernhollow Birchlake Mistymoor"
    )
    monkeypatch.setitem(datagen.TEMPLATES, "small", small)
    monkeypatch.setitem(datagen.CHOICES["template"], "small", "small")
    errors = []
    for i in range(60):
        try:
            assert datagen.generate(0, i, op=10, template="small").op == 10
        except UserError as error:
            errors.append(str(error))
    assert any("the context has words for 3 places, a problem needs 4: add some" in error for error in errors)
    assert any("words for 4 kinds, a problem needs 5" in error for error in errors) and len(errors) < 60

"""Look for problems that two splits share: by text, by graph, and up to names.

python bench/audit.py --n 12000 --mixture "op 2-4; distractors 1-2"
"""

import sys
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from lab.options import CheckedOptions, UserError, opt, parse_options, run_script

import datagen

KINDS = ("exact", "canonical", "structural", "names")


def _digest(parts):
    return blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def structure(problem):
    """A hash of the reasoning graph with its numbers but without its words: equal for one problem told in two
    ways."""
    known = {}
    for node in problem.nodes:
        operands = [known[name] for name in node.operands]
        known[node.name] = _digest(
            [node.operator, node.constant, node.value, node.name == problem.unknown, *operands]
        )
    return known[problem.nodes[-1].name]


def up_to_names(problem):
    """A hash of everything but the names: the needed graph, and what each statement says, distractors too, in
    any order.

    Equal for two problems that differ only in which kinds and places they speak of, and in the order of
    statements.
    """
    graph, said = problem.graph, {}
    for v in graph.vertices + graph.distractors:
        given = v.value if not v.operands and v is not graph.unknown else None
        said[v] = _digest(
            [v.type, v.operator, v.constant, given, v is graph.unknown, *(said[u] for u in v.operands)]
        )
    root = graph.vertices[-1]
    return _digest([problem.mode, root.value if graph.unknown else None, said[root], sorted(said.values())])


def keys_of(problem):
    """What two problems may have in common: one key for each of KINDS that applies."""
    p = problem
    statements = tuple(sorted(datagen.statements_of(p.problem)))
    keys = {
        "exact": (p.problem, p.question),
        "canonical": (p.template, p.mode, p.question, statements),
        "names": up_to_names(p),
    }
    if p.op >= 5:  # below, the few graphs there are must meet
        keys["structural"] = structure(p)
    return keys


def audit(mixture, n, seed=0):
    """Draw n problems of each split → ({(split, split): {kind: how many keys both hold}}, repeats).

    exact: the same text; canonical: the same but for the order of statements; structural: the same needed
    graph and numbers in any words, of those with 5 operations or more; names: the same graph, numbers and
    form of all statements. repeats: {(split, op): (problems of that split that stand in train up to names,
    all of them)}.
    """
    keys, drawn = {split: {kind: set() for kind in KINDS} for split in datagen.SPLITS}, {}
    for split in datagen.SPLITS:
        drawn[split] = []
        for i in range(n):
            p = mixture.problem(seed, i, split)
            for kind, key in keys_of(p).items():
                keys[split][kind].add(key)
            drawn[split].append((p.op, up_to_names(p)))
    shared = {
        (a, b): {kind: len(keys[a][kind] & keys[b][kind]) for kind in KINDS} for a, b in combinations(keys, 2)
    }
    repeats = {}
    for split in drawn:
        if split != "train":
            all_of = Counter(op for op, _ in drawn[split])
            again = Counter(op for op, key in drawn[split] if key in keys["train"]["names"])
            repeats.update({(split, op): (again[op], all_of[op]) for op in sorted(all_of)})
    return shared, repeats


@dataclass(frozen=True)
class Options(CheckedOptions):
    n: int = opt(5000, "problems of each split", within="[1, inf)")
    mixture: str = opt(
        "op 2-20; template zoo, school, festival; mode forward, reverse; layers 2, 3",
        "what to draw them from",
    )
    seed: int = opt(0, "seed of the problems")


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__.partition("\n\n")[0])
    shared, repeats = audit(datagen.Mixture.parse(o.mixture), o.n, o.seed)
    print(f"{o.n} problems of each split: {o.mixture}")
    print(
        f"{'splits':13} {'exact':>6} {'canonical':>10} {'structural (op >= 5)':>21} {'equal up to names':>18}"
    )
    for (a, b), counts in shared.items():
        exact, canonical, structural, names = counts.values()
        print(f"{a:5} - {b:5} {exact:6} {canonical:10} {structural:21} {names:18}")
    print(f"\nproblems of eval that stand among the {o.n} of train but for names")
    for (split, op), (again, total) in repeats.items():
        if split == "eval":
            print(f"op {op:2} {again:6} of {total:6}: {again / total:.1%}")
    if any(counts["exact"] or counts["canonical"] for counts in shared.values()):
        raise UserError("two splits share a problem: this must not be; please report it")


if __name__ == "__main__":
    run_script(main)

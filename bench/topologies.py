"""Is what a model solves recombined, or repeated? Its tries by the shape of a problem's graph (F5, claim C11).

    python bench/topologies.py
    python bench/topologies.py --study s4 --scale small --base 1% --arms "1%,RL 1%" --look B --band wide

From committed results, without a model. A topology is a graph without names and numbers: which quantities are
totals, by which operator each follows from others, whether with a constant. The documents of pre-training are a
pure function of the base's options, so they are drawn again, about half a minute a base. Five tables: what
documents hold; pass@1 by the widest sum (how many operands a quantity has at most) and by the number of
definitions; the median log-probability of gold solutions by the widest sum; and pass@1 on topologies that were
among the documents or were not, in strata of problems of one base that are alike in operations, definitions,
widest sum and depth.
"""

import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [str(ROOT)]

from lab.options import CheckedOptions, UserError, look_up, opt, parse_options, run_script, stream_key  # noqa: E402
from lab.statistics import interval, paired  # noqa: E402
from lab.workshop import Workshop  # noqa: E402

from tqdm import tqdm  # noqa: E402

from data import Source  # noqa: E402
from datagen import Mixture, held_out, mean_length  # noqa: E402
from evaluate import number_of_problems  # noqa: E402
from report import print_table  # noqa: E402
from studies import Seed, load_studies  # noqa: E402


@dataclass(frozen=True)
class Options(CheckedOptions):
    study: str = opt("s3", "whose results")
    scale: str = opt("mini", "bands and budgets: studies/scales.py")
    base: str = opt("base", "the arm whose pre-training is drawn again")
    arms: str = opt("base,id,near,edge", "arms that started from it, and itself")
    look: str = opt("main", "which look at them")
    band: str = opt("edge", "problems of this band")
    results: str = opt("studies/results", "folder of the results")


def topology(problem):
    """What is equal for two problems whose graphs are alike but for names and numbers.

    Colours of nodes, refined by those of their operands and users until they can tell no more apart (Weisfeiler and
    Leman 1968).
    """
    users = defaultdict(list)
    for node in problem.nodes:
        for name in node.operands:
            users[name].append(node.name)
    colours = {node.name: label(node, problem) for node in problem.nodes}
    for _ in problem.nodes:
        colours = {
            node.name: stream_key(
                colours[node.name],
                sorted(colours[name] for name in node.operands),
                sorted(colours[name] for name in users[node.name]),
            )
            for node in problem.nodes
        }
    return tuple(sorted(colours.values()))


def label(node, problem):
    total = node.name.startswith("total ")
    return stream_key(total, node.operator, node.constant is not None, node.name == problem.query)


def shape(problem):
    """→ (definitions, widest sum, depth)."""
    depth = {}
    for node in problem.nodes:
        depth[node.name] = 1 + max((depth[name] for name in node.operands), default=0)
    return len(problem.nodes), max(len(node.operands) for node in problem.nodes), depth[problem.query]


def documents(o):
    """The problems of a pre-training's documents, each once; their number follows from their mean length."""
    mixture = Mixture.parse(o.mixture)
    n = round(mixture.tokens / mean_length(mixture.choices, mixture.weights))
    source = Source(mixture, None, o.seed, o.rows, o.row_tokens, repeat=o.repeat, repeat_pool=o.repeat_pool)
    numbers = dict.fromkeys(map(source.perhaps_earlier, range(n)))
    for number in tqdm(numbers, "documents", disable=None, leave=False):
        yield mixture.problem(o.seed, number, source.split)


def tried(look, result, ops):
    """[(problem, share of right tries, log-probability of its gold solution)] of an evaluation."""
    o, found = look.options, []
    mixture, numbers = Mixture.parse(o.mixture), number_of_problems(o)
    for op in ops:
        problems = held_out(mixture, [op], numbers[op], o.seed, "eval")
        kept = result["ops"][str(op)]
        each = zip(problems, kept["correct"], kept["logp"], strict=True)
        found += [(problem, n / result["samples"], logp) for problem, n, logp in each]
    return found


def seen_less_unseen(problems):
    """Mean difference of pass@1 of topologies that were seen and were not, over strata that have both.

    problems: [(stratum, seen, pass@1)]. None where no stratum has both.
    """
    strata, differences, weights = defaultdict(lambda: ([], [])), [], []
    for stratum, seen, right in problems:
        strata[stratum][seen].append(right)
    for unseen, seen in strata.values():
        if unseen and seen:
            weights.append(len(seen) * len(unseen) / (len(seen) + len(unseen)))
            differences.append(weights[-1] * (mean(seen) - mean(unseen)))
    return sum(differences) / sum(weights) if weights else None


def collect(o):
    """→ (Counter of (op, widest sum) of documents, a row a problem: (base, op, shape, seen, {arm: pass@1},
    {arm: log-probability of gold})).
    """
    studies, scales = load_studies()
    study, scale = look_up("study", studies, o.study), look_up("scale", scales, o.scale)
    kept, stages = Workshop(Path("out"), Path(o.results, o.scale)).kept, study.at(scale, study.planned(scale))
    held, rows, arms = Counter(), [], o.arms.split(",")
    for base in range(study.planned(scale)):
        seed = Seed(base)
        looks = [look_up("arm and look", stages, (seed, arm, o.look)) for arm in arms]
        if not all(look.name in kept for look in looks):
            continue
        seen = set()
        for problem in documents(look_up("arm", stages, (seed, o.base, None)).options):
            held[problem.op, shape(problem)[1]] += 1
            seen.add((problem.op, topology(problem)))
        tries = [tried(look, kept[look.name], scale.ops(o.band)) for look in looks]
        for each in zip(*tries):
            problem = each[0][0]
            right, logp = ({arm: it[place] for arm, it in zip(arms, each)} for place in (1, 2))
            known = (problem.op, topology(problem)) in seen
            rows.append((base, problem.op, shape(problem), known, right, logp))
    if not rows:
        raise UserError(
            f"no results of {o.study}, look {o.look}, with all of {o.arms} in {o.results}/{o.scale}"
        )
    return held, rows, arms


def said(values):
    low, high = interval(values)
    return f"{mean(values):.3f} [{low:.3f},{high:.3f}]"


def by_shape(rows, arms, title, part, column, say):
    """Print what rows have in this column, by this part of their problem's shape."""
    table = [[title, "problems", *arms]]
    for n in sorted({row[2][part] for row in rows}):
        chosen = [row for row in rows if row[2][part] == n]
        table.append([str(n), str(len(chosen)), *(say([row[column][arm] for row in chosen]) for arm in arms)])
    print_table(table, left=1)


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__)
    held, rows, arms = collect(o)
    widest = sorted({wide for _, wide in held})
    table = [["op of documents", *(f"sum of {n}" for n in widest)]]
    for op in sorted({op for op, _ in held}):
        table.append([str(op), *(f"{held[op, n]:,}" for n in widest)])
    print_table(table, left=1)
    by_shape(rows, arms, "pass@1 by widest sum", 1, 4, said)
    by_shape(rows, arms, "pass@1 by definitions", 0, 4, said)
    by_shape(rows, arms, "log p of gold by widest sum", 1, 5, lambda values: f"{median(values):.1f}")
    table = [["arm", "seen", "not seen", "difference in like problems, 95% over bases"]]
    for arm in arms:
        differences = [
            seen_less_unseen([(row[1:3], row[3], row[4][arm]) for row in rows if row[0] == base])
            for base in sorted({row[0] for row in rows})
        ]
        low, high = paired(known := [it for it in differences if it is not None]).interval()
        both = [said([row[4][arm] for row in rows if row[3] is seen]) for seen in (True, False)]
        table.append([arm, *both, f"{mean(known):+.3f} [{low:+.3f},{high:+.3f}]"])
    print_table(table, left=1)


if __name__ == "__main__":
    run_script(main)

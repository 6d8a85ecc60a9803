"""The studies of "On the Interplay of Pre-Training, Mid-Training, and RL on Reasoning Language Models"
(arXiv 2512.07783): C1 to C28 are its claims. τ is how much seeds differ, N6 whether RL forgets.

Each contrast, its margin and half the paper's number stood here before anything was run, but for N1a, whose
first form compared other things (docs/findings.md). What is paid for in τ, S3 and N6 the scale
says: the answer, as in the paper, or at the smallest scales a right graph (`strict`), since of 16,000 answers
alone little can be learned (docs/findings.md, "What RL can learn from so few samples").
"""

from itertools import product
from math import log
from statistics import mean

import numpy as np

from datagen import TEMPLATES, Mixture, mean_length
from studies import Claim, Seed, Study, logit

ONE, K = "correct@1", "correct@K"
RANGES = ("id", "near", "edge", "hard")


def average(arms, band, metric, look="main"):
    """The contrast that is the mean of some arms."""
    return lambda v: mean(v(arm, band, metric, look) for arm in arms)


def between(more, less, *place):
    """The contrast of the means of some arms and of others."""
    return lambda v: average(more, *place)(v) - average(less, *place)(v)


def gain(arm, band, metric, base="base", look="main"):
    return between([arm], [base], band, metric, look)


def edge_rl(c, seed, start, **given):
    return c.rl(seed, start, c.mixture(c.ranges["edge"]), **given)


# ------------------------------------------------------------------------------------------------------------
# τ, S3: which problems RL should see


def tau(c, seed):
    base = c.base(seed)
    return {"base": base, "edge": edge_rl(c, seed, base)}


def s3(c, seed):
    base = c.base(seed)
    arms = {name: c.rl(seed, base, c.mixture(c.ranges[name])) for name in RANGES}
    return {"base": base, **arms}


def s3_looks(c, seed, arm, start):
    """All, and the base at two more temperatures, at the edge alone."""
    heats, edge = {"cold": 0.7, "hot": 1.3} if arm == "base" else {}, f"edge={c.bands['edge']}"
    others = {look: c.look(seed, start, temperature=heat, bands=edge) for look, heat in heats.items()}
    return {"main": c.look(seed, start), **others}


def ladder(v):
    """At least 0 where pass@K is at least .95 on id, within (.02, .8) on edge and at most .05 on hard."""
    edge = v("base", "edge", K)
    return min(v("base", "id", K) - 0.95, edge - 0.02, 0.8 - edge, 0.05 - v("base", "hard", K))


def third(v):
    """The third best of four gains on id: above 0 if three are."""
    return sorted(gain(arm, "id", ONE)(v) for arm in RANGES)[1]


def best_heat(v):
    """RL at temperature 1 against the base at its best, which is given the choice."""
    return v("edge", "edge", K) - max(v("base", "edge", K, look) for look in ("cold", "main", "hot"))


def middle_rises(v):
    outer, near, edge, hard = (v(arm, None, "rise") for arm in RANGES)
    return min(near, edge) - max(outer, hard)


def nll(band):
    return between(RANGES, ["base"], band, "nll")


S3 = (
    Claim("C0", "ladder: the base solves id, some of edge, nothing of hard", ladder, "≈ 1, > 0, 0", margin=0),
    Claim("C1a", "RL lifts pass@1 on id, in three of four ranges", third, "clear"),
    Claim("C1b", "… and leaves pass@K", between(RANGES, ["base"], "id", K), "0", "equal", 0.05),
    Claim("C2a", "RL at the edge lifts pass@K on edge", gain("edge", "edge", K), "to +.42", "up", 0.05, 0.21),
    Claim("C2b", "… and on hard", gain("edge", "hard", K), "up", "up", 0.05),
    Claim("C2c", "… and on edge over the base's best temperature", best_heat, margin=0.05),
    Claim("C3a", "… and beats easier data on hard", gain("edge", "hard", K, "id"), "up", margin=0.05),
    Claim("C3b", "… and harder data", gain("edge", "hard", K, "hard"), "up", margin=0.05),
    Claim("C3c", "too easy data do not lift hard", gain("id", "hard", K), "0", "none", 0.05),
    Claim("C3d", "nor do too hard data", gain("hard", "hard", K), "0", "none", 0.05),
    Claim("C4", "rewards rise more in the two middle ranges", middle_rises, "in words", margin=0),
    Claim("C5a", "RL lowers NLL in every band", lambda v: max(nll(b)(v) for b in ("id", "edge", "hard")),
          "in words", "down", 0),
    Claim("C5b", "… most on edge", lambda v: nll("edge")(v) - min(nll("id")(v), nll("hard")(v)),
          "in words", "down", 0),
)  # fmt: skip


def beyond(v):
    return v("edge", "edge", "beyond")


N1 = (
    Claim("N1a", "RL re-weights: of what it solves on edge a fifth at most is beyond its base (10,000 tries)",
          beyond, "", "none", 0.2),
    Claim("N1b", "… and gold solutions get likelier, on average", gain("edge", "edge", "reach@1"), margin=0),
)  # fmt: skip
TAU = (
    Claim("T1", "RL at the edge lifts pass@1 on edge", gain("edge", "edge", ONE)),
    Claim("T2", "RL at the edge changes pass@1 on id", gain("edge", "id", ONE), "", "equal"),
)


# ------------------------------------------------------------------------------------------------------------
# N6: does RL forget; S6: rewards


def n6(c, seed):
    base, mixed = c.base(seed), c.mixture(f"{c.bands['id']}:0.3, {c.ranges['edge']}:0.7")
    arms = {"base": base, "plain": edge_rl(c, seed, base), "kl": edge_rl(c, seed, base, kl=1e-2)}
    slow = edge_rl(c, seed, base).options.lr / 3
    arms |= {"replay": c.rl(seed, base, mixed), "slow": edge_rl(c, seed, base, lr=slow)}
    return arms | {"both": c.rl(seed, base, mixed, kl=1e-2)}


REMEDIES = ("kl", "replay", "slow", "both")


def slack(v, arm, part):
    """At least 0 where an arm keeps id within .03, and .8 of the gain of plain RL on edge."""

    def rose(arm, band):
        return v(arm, band, ONE, "main", part) - v("base", band, ONE, "main", part)

    return min(rose(arm, "id") + 0.03, rose(arm, "edge") - 0.8 * rose("plain", "edge"))


def remedy(v):
    """Of the arm that is best by one half of the problems, by the other half."""
    return slack(v, max(REMEDIES, key=lambda arm: slack(v, arm, "even")), "odd")


N6 = (
    Claim("N6", "plain RL at the edge forgets id", gain("plain", "id", ONE), "", "down"),
    *(Claim(f"N6 {arm}", f"… not with {arm}", gain(arm, "id", ONE), "", "equal") for arm in REMEDIES),
    *(Claim(f"N6+ {arm}", f"{arm} keeps more of id", gain(arm, "id", ONE, "plain")) for arm in REMEDIES),
    Claim("N6 some", "some remedy keeps id within .03 and .8 of the gain", remedy, "", margin=0),
)  # fmt: skip


DENSE = ("mixed 0.2", "mixed 0.5", "strict")


def s6(c, seed):
    base = c.base(seed)
    rewards = {name: dict(reward=name) for name in ("outcome", "strict")}
    rewards |= {f"mixed {alpha}": dict(reward="mixed", alpha=alpha) for alpha in (0.2, 0.5)}
    return {"base": base} | {name: edge_rl(c, seed, base, **given) for name, given in rewards.items()}


def dense(band, metric):
    return between(DENSE, ["outcome"], band, metric)


def lost(v):
    return sum(dense("edge", kind)(v) for kind in ("node_wrong_parents", "node_missing"))


S6 = (
    Claim("C24a", "process rewards lift pass@1 on hard", dense("hard", ONE), "+.034–.043", "up", 0.02, 0.019),
    Claim("C24b", "… and on edge", dense("edge", ONE), "up", "up", 0.02),
    Claim("C24d", "… and on both, with id", dense("seen", ONE), "+.046–.052", "up", 0.02, 0.024),
    Claim("C24c", "… and pass@K on hard", dense("hard", K), "+.026–.045", "up", 0.02, 0.017),
    Claim("C25a", "mixed .2 beats .5 on hard", gain("mixed 0.2", "hard", ONE, "mixed 0.5"), "+.009", "up", 0),
    Claim("C25b", "strict beats .2 on hard", gain("strict", "hard", ONE, "mixed 0.2"), "-.002", "up", 0),
    Claim("C25c", "mixed .2 beats .5 on id and edge", gain("mixed 0.2", "seen", ONE, "mixed 0.5"), "+.001",
          "up", 0),
    Claim("C25d", "strict beats .2 there", gain("strict", "seen", ONE, "mixed 0.2"), "+.005", "up", 0),
    Claim("C26", "process rewards: fewer right answers by wrong steps", dense("edge", "hacked"), "fewer",
          "down", 0),
    Claim("C27a", "outcome RL lowers wrong values", gain("outcome", "edge", "node_wrong_value"), "", "down",
          0),
    Claim("C27b", "process rewards lower missing quantities and wrong parents", lost, "", "down", 0),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------
# S4, A62, A61: two contexts, A (zoo) and B (school)

EXPOSURE = {"0%": 0.0, "0.1%": 0.001, "1%": 0.01, "10%": 0.1}


def exposed(c, seed, share, ops="2"):
    """A base that knows context A, and of B this share, of these operations."""
    parts = (c.mixture(c.wide, "zoo", 1 - share), c.mixture(ops, "school", share))
    return c.base(seed, " | ".join(parts))


def context_rl(c, seed, start, share):
    """RL of which this share is in context B."""
    return c.rl(seed, start, c.mixture(c.wide, f"zoo:{1 - share:g}, school:{share:g}"), reward="strict")


def look_in(c, seed, start, template):
    """At the operations of `wide`, 50 problems of each."""
    return c.look(seed, start, template, bands=f"wide={c.wide}", problems=50, per_band=False)


def in_b(c, seed, arm, start):
    return {"B": look_in(c, seed, start, "school")}


def in_both(c, seed, arm, start):
    """In A too where a claim asks for that."""
    a = {"A": look_in(c, seed, start, "zoo")} if arm in ("base", "100% B") else {}
    return a | in_b(c, seed, arm, start)


def s4(c, seed):
    bases = {name: exposed(c, seed, share) for name, share in EXPOSURE.items()}
    bases["1% wide"] = exposed(c, seed, 0.01, c.wide)
    return bases | {f"RL {name}": context_rl(c, seed, base, 0.5) for name, base in bases.items()}


def exposure(c):
    """Shares of tokens are other numbers at each scale: what counts is how often a word of B was seen."""
    told, context = [], TEMPLATES["school"]
    some = [Mixture.parse(c.mixture("2", "school")).problem(0, i, "mid") for i in range(200)]
    words = [word.split()[0] for word in (*context.kinds, *context.places)]
    held = [sum(word in f"{p.problem} {p.solution}" for p in some) / len(some) for word in words]
    for name, share in EXPOSURE.items():
        o = exposed(c, Seed(0), share).options
        seen = Mixture.parse(o.mixture)
        of_b = sum(w for choice, w in zip(seen.choices, seen.weights) if choice["template"] == "school")
        part = of_b / sum(seen.weights)
        shown = seen.tokens / mean_length(seen.choices, seen.weights) * part
        others = shown * (1 - o.repeat) + o.repeat_pool * part * (o.repeat > 0)  # a few come again and again
        word = shown * mean(filter(None, held))
        told.append(f"{name} {shown:,.0f}, {others:,.0f} of them different, a word of B in {word:,.0f}")
    return f"Documents of B in pre-training, about: {'; '.join(told)}."


def transfer(name, band="new"):
    return gain(f"RL {name}", band, K, name, "B")


RISE = None, "rise in B"


def rises(v):
    return min(gain(f"RL {name}", *RISE, "RL 0%")(v) for name in ("1%", "10%"))


def knows_b(v):
    """At least 0 where a base that has seen 10% of B solves its op 2: else there is nothing to transfer."""
    return v("10%", "2", ONE, "B") - 0.3


S4 = (
    Claim("C8a", "B unseen: RL does not open it", transfer("0%"), "0", "none", 0.1),
    Claim("C8b", "… nor with 0.1% of B's words", transfer("0.1%"), "0", "none", 0.1),
    Claim("C8c", "… with 1% it does", transfer("1%"), "up to +.60", "up", 0.1, 0.3, 0.1),
    Claim("C8d", "… and with 10%", transfer("10%"), "up", "up", 0.1, None, 0.1),
    Claim("C9", "… at the largest op too", transfer("1%", "last"), "in words", "up", 0.05),
    Claim("C10a", "rewards: 0.1% is like none", between(["RL 0.1%"], ["RL 0%"], *RISE), "in words",
          "equal", 0.02),
    Claim("C10b", "… 1% and 10% rise more, each", rises, "in words", "up", 0),
    Claim("C28", "1% as primitives is as good as 1% of all ops", gain("RL 1%", "new", K, "RL 1% wide", "B"),
          expect="equal", margin=0.05),
)  # fmt: skip


def a62(c, seed):
    base = exposed(c, seed, 0.01)
    return {"base": base} | {f"{100 * b:g}% B": context_rl(c, seed, base, b) for b in (0, 0.01, 0.1, 0.5, 1)}


def on_b(arm, base="base"):
    return gain(arm, "new", K, base, "B")


def saturates(v):
    """What more than 10% of B adds, less half of what 10% adds to 1%."""
    one, ten, half, all_b = (v(arm, "new", K, "B") for arm in ("1% B", "10% B", "50% B", "100% B"))
    return (half + all_b) / 2 - ten - (ten - one) / 2


A62 = (
    Claim("C13a", "only op 2 of B known: RL without B does not transfer", on_b("0% B"), "0", "none", 0.1),
    Claim("C13b", "… nor with 1% of B", on_b("1% B"), "0", "none", 0.1),
    Claim("C13c", "… 10% of B is enough", on_b("10% B", "1% B"), "+.76", "up", 0.2, 0.38, 0.2),
    Claim("C13d", "… and more adds little", saturates, "little", "down", 0),
    Claim("C14a", "A's pass@1 is stable under RL on B alone", gain("100% B", "id", ONE, look="A"), "stable",
          "equal"),
    Claim("C14b", "… and pass@K", gain("100% B", "id", K, look="A"), "stable", "equal"),
    # C15a, that at 0 and 1% of B they are flat, cannot be asked: there are none on B, or of 20 problems
    Claim("C15b", "rewards on B rise from 10% of B on", average(("10% B", "50% B", "100% B"), *RISE),
          "in words", "up", 0),
)  # fmt: skip


def a61(c, seed):
    base = exposed(c, seed, 0.01, c.wide)  # the paper's share, .1%, would be 20 documents at the scale mini
    return {"base": base} | {f"{100 * b:g}% B": context_rl(c, seed, base, b) for b in (0, 0.02, 0.1, 0.5, 1)}


def slope(v):
    """Of pass@K on B over the rank of B's share in RL."""
    arms = ("0% B", "2% B", "10% B", "50% B", "100% B")
    return sum((rank - 2) * v(arm, "new", K, "B") for rank, arm in enumerate(arms)) / 10


A61 = (
    Claim("C12a", "primitives shared: RL without any B lifts B", on_b("0% B"), "significant", "up", 0.05),
    Claim("C12b", "… and more B lifts it more", slope, "significant", margin=0),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------
# S5: mid-training against RL at equal compute

SPLITS = {"mid": 0.0, "light": 0.2, "medium": 0.5, "heavy": 0.8, "full": 1.0}  # the share of RL
HALF = ("light", "medium", "heavy")


def some_edge(c):
    """What both train on: problems of the edge, and a fifth of id."""
    return c.mixture(f"{c.bands['id']}:0.2, {c.bands['edge']}:0.8")


def mid_trained(c, seed, share):
    """The base after this share of the budget in mid-training."""
    base = c.base(seed)
    if not share:
        return base
    return c.train(seed, some_edge(c), share * c.budget, "tokens", init_from=base, **c.mid)


def split(c, seed, share, price, times=1.0):
    """Mid-training, then RL, of this share of the budget, an RL step at this price."""
    it, mixture = mid_trained(c, seed, (1 - share) * times), some_edge(c)
    if not share:
        return it
    steps = max(1, round(share * times * c.budget / c.price[price]))
    usual = c.rl(seed, it, mixture).options.warmup_steps
    return c.rl(seed, it, mixture, steps, reward="strict", warmup_steps=min(usual, steps // 8))


def s5(price):
    return lambda c, seed: {name: split(c, seed, share, price) for name, share in SPLITS.items()}


def budgets(c, seed):
    sizes = ((name, times) for name in ("heavy", "full") for times in (0.5, 1, 2))
    return {f"{name} × {times}": split(c, seed, SPLITS[name], "measured", times) for name, times in sizes}


def chosen(metric):
    """The best split by one half of the problems, less RL alone, by the other half."""

    def contrast(v):
        best = max(HALF, key=lambda arm: v(arm, "hard", metric, "main", "even"))
        return v(best, "hard", metric, "main", "odd") - v("full", "hard", metric, "main", "odd")

    return contrast


def light_best(v):
    return v("light", "edge", ONE) - max(v(arm, "edge", ONE) for arm in SPLITS if arm != "light")


def crossing(v):
    """How much more RL alone gains on heavy from a budget four times as large."""
    return gain("full × 2", "hard", K, "heavy × 2")(v) - gain("full × 0.5", "hard", K, "heavy × 0.5")(v)


lighter = between(["mid", "light"], ["heavy", "full"], "edge", ONE)


def s5_claims(mark=""):
    return (
        Claim(f"C19a{mark}", "edge pass@1: mid and light beat heavy and full RL", lighter, "in words"),
        Claim(f"C19b{mark}", "… and light is best", light_best, "in words", margin=0, least=-0.01),
        Claim(f"C20a{mark}", "hard pass@1: heavy > light", gain("heavy", "hard", ONE, "light"), "in words"),
        Claim(f"C20b{mark}", "… and pass@K", gain("heavy", "hard", K, "light"), "in words", margin=0.05),
        Claim(f"C21a{mark}", "hard pass@1: a split beats RL alone", chosen(ONE), "+.108", "up", 0.03, 0.054),
        Claim(f"C21b{mark}", "… and pass@K", chosen(K), "up", margin=0.05),
    )  # fmt: skip


C22 = (
    Claim("C22", "hard pass@K: RL alone overtakes heavy as budgets grow", crossing, "8.4B on", margin=0.05),
)


# ------------------------------------------------------------------------------------------------------------
# N3: what an RL step is worth in tokens of mid-training

MIDS, STEPS = (0, 1 / 16, 1 / 4, 1), (0, 1 / 4, 1)  # shares of the budget, and of the steps


def n3(c, seed):
    """Every amount of mid-training, then every amount of RL."""
    arms = {}
    for mid in MIDS:
        start = mid_trained(c, seed, mid)
        for share in STEPS:
            steps = max(1, round(share * c.steps))
            arms[f"mid {mid:g}, RL {share:g}"] = edge_rl(c, seed, start, steps=steps) if share else start
    return arms


def n3_looks(c, seed, arm, start):
    """On edge alone, but where other studies look at the same run."""
    shared = arm in ("mid 0, RL 0", "mid 0, RL 1")
    return {"main": c.look(seed, start, **({} if shared else {"bands": f"edge={c.bands['edge']}"}))}


def logit_fit(v):
    """pass@1 on edge in logits as a + b·x + c·z + d·x·z → (a, b, c, d). x, z: logarithms of 1 plus the
    amounts of mid-training and of RL, counted in the smallest ones above 0.
    """
    rows, logits = [], []
    for mid, share in product(MIDS, STEPS):
        x, z = log(1 + mid / MIDS[1]), log(1 + share / STEPS[1])
        rows.append((1, x, z, x * z))
        logits.append(logit(v(f"mid {mid:g}, RL {share:g}", "edge", ONE)))
    return np.linalg.lstsq(np.array(rows), np.array(logits), rcond=None)[0]


def exchange(v):
    """By how many logits pass@1 on edge rises with the steps of RL, all of them taken as one, less that with
    the tokens of mid-training, a budget taken as one, where a quarter of each has been spent.
    """
    _, b, c, d = logit_fit(v)
    x, z = log(1 + 0.25 / MIDS[1]), log(1 + 0.25 / STEPS[1])
    return (c + d * x) / (STEPS[1] + 0.25) - (b + d * z) / (MIDS[1] + 0.25)


def prices(c):
    """What the two are in one currency."""
    share = c.steps * c.price["measured"] / c.budget
    return f"All {c.steps} steps of RL cost about {share:.0%} of the budget, {c.budget:,} tokens."


N3 = (
    Claim("N3a", "mid-training and RL are complements on edge", lambda v: logit_fit(v)[3], margin=0),
    Claim("N3b", "a quarter in, RL's steps are worth more than a budget of mid-training", exchange, margin=0),
)


# ------------------------------------------------------------------------------------------------------------
# G1: choosing RL's problems; A7: hard data in pre-training


def g1(c, seed):
    base, pool, select = c.base(seed), c.mixture(c.pool), dict(select="edge", select_pool=64)
    return {
        "base": base,
        "all": c.rl(seed, base, pool),
        # fewer steps, since selection samples too: one candidate in eight is at the edge, so that 64 of these
        # cost 8 tries at 512, as much as 16 steps
        "often": c.rl(seed, base, pool, c.steps // 2, select_every=16, **select),
        "once": c.rl(seed, base, pool, c.steps * 3 // 4, select_every=100_000, **select),
    }


G1 = (
    Claim("C6", "only problems at the edge of competence: edge pass@1", gain("often", "edge", ONE, "all"),
          "", "up", 0.01),
    Claim("C7a", "… found anew every 16 steps: hard pass@1", gain("often", "hard", ONE, "once")),
    Claim("C7b", "… and edge", gain("often", "edge", ONE, "once")),
)  # fmt: skip
EASY, SOME, MORE, MOST = (0.4995, 0.4995, 0.001), (0.475, 0.475, 0.05), (0.5, 0.3, 0.2), (0.2, 0.3, 0.5)
MIXES = {"0.1%": EASY, "5%": SOME, "20%": MORE, "50%": MOST}  # shares of the ladder, by that of hard ones


def a7_note(c):
    """Where the ladder does not end inside id, as it does in the paper."""
    inside = {*c.ops(c.ladder[-1])} <= {*c.ops("id")}
    return "" if inside else "The hard data are of the band edge, which RL is on too: C16 says little here."


def a7(c, seed):
    ops = {name: ", ".join(f"{part}:{w:g}" for part, w in zip(c.ladder, mix)) for name, mix in MIXES.items()}
    bases = {name: c.base(seed, c.mixture(spec)) for name, spec in ops.items()}
    return bases | {f"RL {name}": edge_rl(c, seed, base) for name, base in bases.items()}


def two_of_three(form):
    """The middle one of three steps in the share of hard data: above 0 if two are."""

    def contrast(v):
        values = [v(form.format(name), "edge", K) for name in MIXES]
        return sorted(after - before for before, after in zip(values, values[1:]))[1]

    return contrast


def own_gain(more, less):
    return lambda v: gain(f"RL {more}", "hard", K, more)(v) - gain(f"RL {less}", "hard", K, less)(v)


A7 = (
    Claim("C16a", "more hard data in pre-training: better on edge before RL", two_of_three("{}"),
          "in words", margin=0),
    Claim("C16b", "… and after", two_of_three("RL {}"), "in words", margin=0),
    Claim("C17a", "RL's own gain on hard is larger at 20% than at 50%", own_gain("20%", "50%"), "in words",
          margin=0.05),
    Claim("C17b", "… and than at 0.1%", own_gain("20%", "0.1%"), "> +.22 at 20%", margin=0.05),
    Claim("C18", "rewards rise at 20%, less at 0.1%", gain("RL 20%", None, "rise", "RL 0.1%"), "in words",
          margin=0),
)  # fmt: skip

STUDIES = (
    Study("tau", "How much do bases and RL seeds differ?", tau, TAU, nested=2),
    Study("s3", "Which problems should RL see?", s3, S3, s3_looks, gate=ladder),
    Study("n1", "Does RL create, or re-weight?", s3, N1, gate=ladder),
    Study("n6", "Does RL forget, and what prevents it?", n6, N6),
    Study("s6", "What do process rewards add?", s6, S6),
    Study("s4", "How often must a word be seen?", s4, S4, in_b, knows_b, seeds=2, note=exposure, shown="B"),
    Study("a62", "… and RL, where only primitives are known?", a62, A62, in_both, seeds=2, shown="B"),
    Study("a61", "… and RL, where all is known a little?", a61, A61, in_b, seeds=2, shown="B"),
    Study("s5", "Mid-training or RL, at measured compute?", s5("measured"), s5_claims()),
    Study("s5n", "… and at the paper's price of RL (C23)?", s5("nominal"), s5_claims("n")),
    Study("s5t", "… as the budget grows?", budgets, C22),
    Study("n3", "What is an RL step worth?", n3, N3, n3_looks, seeds=2, note=prices),
    Study("g1", "RL on the edge of competence alone?", g1, G1),
    Study("a7", "Hard data in pre-training?", a7, A7, note=a7_note),
)

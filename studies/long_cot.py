"""The studies of "Dual-Phase LLM Reasoning" (arXiv 2601.05616): D1 to D7 are its claims and their controls.

    base ─ tries ─► chains that reflect, stitched ─► SFT ─ tries ─► right ones, by difficulty ─► SFT
                    (stage 1: `sft`)                                (stage 2: `ceil`, `vanilla`, …)

No dialogue: a small model cannot follow one. The scaffold of texts.stitch joins the model's own wrong and
right tries by control sentences, which resolve to a plain chain before the judge reads. All arms of SFT train
on as many tokens, with a fifth of what came before.

Each contrast and its margin stood here before anything was run. How chains are made was mended after one base
of a first recipe, which is not counted: docs/findings.md, "A recipe that taught when, not what".
"""

from functools import cache
from statistics import mean

from datagen import Mixture, count_words
from report import draw_lines
from studies import Claim, Seed, Study, cost_of_grpo, logit
from texts import BEHAVIOURS, Source

ONE = "correct@1"
REFLECT = ("sft", "vanilla", "ceil")


class Pipeline:
    """Two stages from a base. Each samples the tries of problems that the other does not see."""

    def __init__(self, c, seed):
        self.c, self.seed, self.base = c, seed, c.base(seed)
        self.problems = c.mixture(f"{c.bands['id']}, {c.bands['edge']}")

    def train(self, start, kind, tries, **given):
        texts = self.c.texts(kind, tries=tries, **given)
        return self.c.tune(self.seed, start, texts, self.c.mixture(self.c.pt), self.c.sft)

    def tries(self):
        return self.c.sample(self.seed, self.base, self.problems, self.c.problems)

    def stage1(self, kind, **given):
        return self.train(self.base, kind, self.tries(), **given)

    def plain(self):
        """Its own right tries at the problems of which stage 1 makes reflective chains, up to 4 of each."""
        tries = self.tries()
        return self.stage1("own", like=self.c.texts("reflective", tries=tries), select="uniform")

    def stage2(self, start, rule, init=None, **given):
        """given: of tries, such as most."""
        new, given = Seed(1_000_000 + self.seed.base), dict(max_new_tokens=self.c.longest) | given
        tries = self.c.sample(new, start, self.problems, self.c.problems, **given)
        return self.train(init or start, "own", tries, select=rule)

    def adaptive(self, start, rule):
        """Of problems that are tried up to twice as often, until the rule has enough of each."""
        return self.stage2(start, rule, select=rule, most=2 * self.c.tries)

    def ceiling(self):
        """Stage 1 on chains of gold solutions and corrupted ones, about the same problems."""
        c = self.c
        about = dict(mixture=self.problems, n=c.part(c.problems), seed=self.seed.base)
        texts = c.texts("reflective-gold", like=c.texts("reflective", tries=self.tries()), **about)
        return c.tune(self.seed, self.base, texts, c.mixture(c.pt), c.sft)

    def steps(self):
        """Of GRPO at the edge, at about as many token-equivalents as both stages cost, sampling included."""
        c, edge = self.c, self.c.mixture(self.c.ranges["edge"])
        stages = lengths("own", self.problems), lengths("reflective-gold", self.problems)
        sampled = sum(c.problems * (prompt + c.tries * chain) for prompt, chain in stages)
        o, (prompt, chain) = c.rl(self.seed, self.base, edge).options, lengths("own", edge)
        step = o.prompts * o.group * cost_of_grpo(o, prompt, chain)
        return round((2 * c.sft + sampled / 3) / step)


@cache
def lengths(kind, mixture):
    """Mean lengths of a problem and of such a chain, by count_words. own: a gold one."""
    source = Source(Mixture.parse(mixture))
    problems = [source.mixture.problem(0, i, source.split) for i in range(100)]
    source = Source(source.mixture, tries={it.id: [it.solution] for it in problems})
    whole = mean(source.records(kind, i)[0]["tokens"] for i in range(100))
    prompt = mean(count_words(f"{it.problem} {it.question}") for it in problems)
    return prompt, whole - prompt


def long(c, seed):
    it = Pipeline(c, seed)
    sft, edge = it.stage1("reflective"), c.mixture(c.ranges["edge"])
    arms = {"base": it.base, "plain": it.plain(), "sft": sft}
    arms |= {"vanilla": it.stage2(sft, "all"), "ceil": it.stage2(sft, "ceil")}
    return arms | {"grpo": c.rl(seed, it.base, edge, it.steps())}


def ablations(c, seed):
    it = Pipeline(c, seed)
    sft, plain = it.stage1("reflective"), it.plain()
    arms = {"base": it.base, "sft": sft, "ceil": it.stage2(sft, "ceil"), "gold": it.ceiling()}
    arms |= {"no stage 1": it.stage2(plain, "ceil"), "from base": it.stage2(sft, "ceil", it.base)}
    arms |= {f"no {name}": it.stage1("reflective", without=name) for name in BEHAVIOURS}
    arms["padded"] = it.stage1("padded")
    return arms | {rule: it.adaptive(sft, rule) for rule in ("uniform", "prop")}


def looks(c, seed, arm, it):
    """All with as many tokens as the longest chains need; with errors planted, where chains reflect: more
    problems, two tries of each.
    """
    asks = ("planted", "sound", "denied", "affirmed") if arm in REFLECT else ()
    bands = f"id={c.bands['id']},edge={c.bands['edge']}"
    some = dict(bands=bands, problems=3 * c.look(seed, it).options.problems, samples=2, k="1")
    found = {how: c.look(seed, it, ask=how, max_new_tokens=c.longest, **some) for how in asks}
    return {"main": c.look(seed, it, max_new_tokens=c.longest), **found}


# ------------------------------------------------------------------------------------------------------------
# Claims


def gain(more, less, band="edge", metric=ONE, look="main"):
    return lambda v: v(more, band, metric, look) - v(less, band, metric, look)


def harder(v):
    """The gain of stage 2 on edge less that on id, in logits."""

    def gained(band):
        return logit(v("ceil", band, ONE)) - logit(v("sft", band, ONE))

    return gained("edge") - gained("id")


def ratio(v, band="all", arm="ceil", to="base"):
    """Of mean lengths of tries."""
    return v(arm, band, "length") / max(1, v(to, band, "length"))


def own_growth(v):
    """How much longer hard problems make its tries, less how much longer they make the base's."""
    growth = (v(arm, "hard", "length") / max(1, v(arm, "id", "length")) for arm in ("ceil", "base"))
    return next(growth) - next(growth)


def youden(arm, planted="planted", sound="sound"):
    """How much more often the last given definition is retracted where it is wrong."""
    return lambda v: v(arm, "seen", "hit", planted) - v(arm, "seen", "hit", sound)


def net(arm):
    return lambda v: v(arm, "all", "repaired") - v(arm, "all", "broken")


def noticed(arm):
    """Of its own definitions at the edge, none of them planted."""
    return lambda v: v(arm, "edge", "noticed")


def at_equal_tokens(v):
    """One reflective try, less what the majority of so many plain ones gives for its tokens."""
    plain = max(1, int(ratio(v, "edge", to="plain")))
    return v("ceil", "edge", "answer@1") - v("plain", "edge", f"majority@{plain}")


LONG = (
    Claim("D1", "stage 1 beats SFT on its own plain chains", gain("sft", "plain"), "in words"),
    Claim("D2a", "stage 2 adds on edge", gain("ceil", "sft"), "in words"),
    Claim("D2b", "… more than on id, in logits", harder, "in words", margin=0),
    Claim("D2c", "… and both stages beat SFT on plain chains", gain("ceil", "plain")),
    Claim("D3", "it is the selection by difficulty", gain("ceil", "vanilla"), "in words"),
    Claim("D4a", "chains are 4 times as long", lambda v: ratio(v) - 4, "> 4 times", margin=0),
    Claim("D4b", "… and grow more than the base's where it is harder", own_growth, margin=0),
    *(Claim(f"D5a {arm}", f"planted errors are noticed: {arm}", youden(arm), "in words", margin=0.3)
      for arm in ("sft", "ceil")),
    *(Claim(f"D5b {arm}", f"… its own too, repaired less broken: {arm}", net(arm), "in words", margin=0)
      for arm in ("sft", "ceil")),
    *(Claim(f"D5d {arm}", f"… and retracted more often than what is right: {arm}", noticed(arm), margin=0)
      for arm in ("sft", "ceil")),
    Claim("D5c", "… and the verification decides, be it true or not", youden("sft", "denied", "affirmed"),
          margin=0.3),
    Claim("D6", "RL at equal cost is no better", gain("grpo", "ceil"), "in words", "none", 0.05),
    Claim("D7", "it is worth its tokens: against majorities of plain tries", at_equal_tokens),
)  # fmt: skip
ABLATIONS = (
    Claim("D1 stage", "no stage 1: worse", gain("ceil", "no stage 1")),
    *(Claim(f"D1 {name}", f"no <{name}>: worse", gain("sft", f"no {name}")) for name in BEHAVIOURS),
    # stitching looks at gold, so that rules refuse one chain in fifty: what they are worth cannot be asked
    Claim("D1 padded", "full stops for control sentences: worse", gain("no backtrack", "padded")),
    Claim("D1 gold", "the model's own chains are as good as gold's", gain("gold", "sft"), "", "none"),
    Claim("D2 base", "stage 2 need not begin from stage 1", gain("ceil", "from base"), "", "none"),
    Claim("D3 uniform", "as many of each problem: better than ceil", gain("uniform", "ceil")),
    Claim("D3 prop", "more of harder problems: better still", gain("prop", "uniform")),
)  # fmt: skip


def by_tokens(values, path):
    """Accuracy of majorities against the tokens they take, a panel a band."""

    def line(arm, band):
        place = (arm, band, "length")
        each, tries = values.mean(lambda v: v(*place)), range(1, values.scale.k + 1)
        right = [values.mean(lambda v, m=m: v(arm, band, f"majority@{m}")) for m in tries]
        return [each * m for m in tries], right

    panels = {band: {arm: line(arm, band) for arm in values.arms} for band in values.scale.bands}
    return draw_lines(panels, path, "generated tokens a problem", "majority is right", xscale="log")


STUDIES = (
    Study("long", "Self-made long chains?", long, LONG, looks, seeds=3, figure=by_tokens),
    Study("chains", "… without a part of it?", ablations, ABLATIONS, looks, seeds=1, figure=by_tokens),
)

"""The studies of "Mining Hidden Thoughts from Texts" (arXiv 2505.10182): H1 to H7 are its claims and their
controls. Here every thought can be checked, exchanged, corrupted or replaced by full stops of its length.

A context is a domain. The base reasons in zoo; of school and festival it knows the words, and problems of
op 2-3, from the beginning: words that it has never seen end in one point of the embeddings, which a short
training at the end does not part. It is trained on texts in school, and looked at in all three. Of two arms,
one has the other's documents (X-docs: the texts of `self` without thoughts, as often), or as many tokens (all
others).

Each contrast and its margin stood here before anything was run.
"""

from functools import cache
from statistics import mean

from datagen import Mixture, mean_length
from report import draw_lines
from studies import Claim, Seed, Study, logit
from texts import Source

ONE, CONTEXTS = "correct@1", ("zoo", "school", "festival")
REPLAY = 0.25  # documents of the base's mixture to one text: a fifth of all


def known(c):
    """The mixture of the base, which reasons in one context and knows the words of the others."""
    parts = [c.mixture(c.pt, "zoo", 0.9), *(c.mixture("2-3", it, 0.05) for it in CONTEXTS[1:])]
    return " | ".join(parts)


@cache
def length(kind, mixture, replayed):
    """Mean length of a text of this kind, with what is replayed beside it, by count_words."""
    source, again = Source(Mixture.parse(mixture)), Mixture.parse(replayed)
    text = mean(source.records(kind, i)[0]["tokens"] for i in range(100))
    return text + REPLAY * mean_length(again.choices, again.weights)


class Domain:
    """Continual pre-training on texts in one context."""

    def __init__(self, c, seed, context="school"):
        self.c, self.seed, self.start = c, seed, c.base(seed, known(c))
        self.about = Seed(2_000_000 + seed.base)  # problems that the base has not been shown in zoo
        self.mixture = c.mixture(c.bands["id"], context)

    def count(self, kind):
        """How many texts of a kind are as many tokens as the budget."""
        return self.c.cpt / length(kind, self.mixture, known(self.c))

    def texts(self, kind, like_many="gold", **given):
        """As many as there would be of another kind."""
        n = self.c.part(self.count(like_many))
        told = dict(tokenizer=self.start, mixture=self.mixture, n=n, seed=self.about.base)
        return self.c.texts(kind, **told, **given)

    def own(self, kind):
        """Of the base's own tries."""
        tries = self.c.sample(self.about, self.start, self.mixture, self.count("gold"), samples=4)
        return self.texts(kind, tries=tries)

    def train(self, texts, times=1.0):
        return self.c.tune(self.seed, self.start, texts, self.mixture, times * self.c.cpt)

    def same_documents(self, texts):
        """The same texts without their thoughts, as often: these are fewer tokens."""
        return self.train(self.texts("plain", like=texts), self.count("gold") / self.count("plain"))


def hidden(c, seed):
    it = Domain(c, seed)
    own = it.own("self")
    arms = {"none": it.start, "X-docs": it.same_documents(own), "self": it.train(own)}
    arms["X-tokens"] = it.train(it.texts("plain", "plain"))
    return arms | {kind: it.train(it.texts(kind)) for kind in ("gold", "shuffled", "filler")}


def more(c, seed):
    it, there = Domain(c, seed), Domain(c, seed, "festival")
    own, elsewhere = it.own("self"), there.own("self")
    kinds = ("gold", "facts", "prefix", "corrupted", "corrupted-half", "corrupted-all")
    arms = {"none": it.start, "replay": c.train(seed, known(c), c.cpt, init_from=it.start, **c.mid)}
    arms |= {"self": it.train(own), "gold as self": it.train(it.texts("gold", like=own))}
    arms |= {kind: it.train(it.own(kind)) for kind in ("raw", "judged")}
    arms |= {kind: it.train(it.texts(kind)) for kind in kinds}
    return arms | {"X-docs there": there.same_documents(elsewhere), "self there": there.train(elsewhere)}


def looks(c, seed, arm, it):
    few = dict(samples=8, k="1,8")
    found = {context: c.look(seed, it, context, **few) for context in CONTEXTS}
    return found | {"text": c.look(seed, it, "school", ask="text", samples=4, k="1")}


# ------------------------------------------------------------------------------------------------------------
# Claims


def gain(more, less, band="id", look="school", metric=ONE):
    return lambda v: v(more, band, metric, look) - v(less, band, metric, look)


def everywhere(v):
    return min(gain("self", "X-docs", look=look)(v) for look in CONTEXTS)


def widens(v):
    """The gap in logits where the hardest problems are that are not beyond both, less that on id."""

    def gap(band):
        return logit(v("self", band, ONE, "school")) - logit(v("X-docs", band, ONE, "school"))

    return gap(limit(v)) - gap("id")


def limit(v):
    """The hardest band that is not beyond both."""
    return "hard" if max(v(arm, "hard", ONE, "school") for arm in ("self", "X-docs")) >= 0.02 else "edge"


def hardest(v):
    return gain("self", "X-docs", limit(v))(v)


def kept(v):
    """What the better of two thoughts without content gains, less four fifths of what gold gains; of as many
    tokens. A loss is no gain.
    """
    gains = {arm: max(0, gain(arm, "X-tokens")(v)) for arm in ("gold", "shuffled", "filler")}
    return max(gains["shuffled"], gains["filler"]) - 0.8 * gains["gold"]


def grows(metric):
    """By how much the slope of defined on needed quantities is above .5, both as logarithms."""
    return lambda v: v("self", "all", metric, "school") - 0.5


HIDDEN = (
    Claim("H1", "thoughts beat plain texts in every context", everywhere, "in words"),
    Claim("H2a", "what is learned in school transfers to festival", gain("self", "X-docs", look="festival"),
          "in words"),
    Claim("H2b", "… and to zoo", gain("self", "X-docs", look="zoo"), "in words"),
    Claim("H3a", "the gap grows with difficulty, in logits", widens, "in words", margin=0),
    Claim("H3b", "… and is largest where it is hardest", hardest, "to +.08", half=0.08),
    Claim("H4a", "chains grow with what they need", grows("depth"), "in words", margin=0),
    Claim("H4b", "… wrong ones too", grows("depth_wrong"), "in words", margin=0),
    Claim("H4c", "… more than the base's", gain("self", "none", "all", metric="depth_wrong"), "in words",
          margin=0),
    Claim("H5a", "it is the content: gold beats another text's thought", gain("gold", "shuffled")),
    Claim("H5b", "… and full stops", gain("gold", "filler")),
    Claim("H5c", "… neither keeps four fifths of the gain", kept, "", "down", 0),
    Claim("H7", "it is not tokens: thoughts beat more plain texts", gain("self", "X-tokens")),
)  # fmt: skip
MORE = (
    Claim("H2c", "from festival to school", gain("self there", "X-docs there"), "in words"),
    Claim("H6", "thoughts need no judge: any try is as good as a right one", gain("raw", "judged"),
          "never judged", "equal"),
    Claim("H8a", "selection: gold thoughts of the same texts are better", gain("gold as self", "self")),
    Claim("H8b", "one wrong node costs little", gain("gold", "corrupted"), "", "none"),
    Claim("H8c", "… all of them cost more", gain("corrupted", "corrupted-all")),
    Claim("H8d", "needed statements without arithmetic are no thought", gain("facts", "replay"), "", "none"),
    Claim("H8e", "a thought before its text is as good", gain("prefix", "gold"), "as there", "equal"),
)  # fmt: skip


def by_op(values, path):
    """pass@1 by operations in each context, a line an arm."""
    ops = values.scale.ops("all")

    def line(arm, look):
        return ops, [values.mean(lambda v, op=op: v(arm, str(op), ONE, look)) for op in ops]

    panels = {look: {arm: line(arm, look) for arm in values.arms} for look in CONTEXTS}
    return draw_lines(panels, path, "operations", "pass@1")


def reads_school(v):
    """At least 0 where the base solves half of op 2 in school: else its tries are about other words."""
    return v("none", "2", ONE, "school") - 0.5


HOW = dict(looks=looks, gate=reads_school, seeds=3, shown="school", figure=by_op)
STUDIES = (
    Study("hidden", "Texts with hidden thoughts?", hidden, HIDDEN, **HOW),
    Study("thoughts", "… of which kind?", more, MORE, **HOW),
)

"""What a study is made of: stages, scales, claims. A file in this folder holds the studies of one paper.

A Stage is one command; its key is a hash of what it computes: the script, its options and its parents' keys.
A Scale holds bands and budgets, and makes stages. A Study is arms × seeds × looks, and the claims about them:

    def arms(c, seed):
        base = c.base(seed)
        return {"base": base, "short": c.rl(seed, base, c.mixture(c.ranges["edge"]), steps=8)}

    def gain(v):
        return v("short", "edge", "correct@1") - v("base", "edge", "correct@1")

    STUDIES = (Study("short", "Do 8 steps of RL help?", arms, (Claim("M1", "they lift edge", gain),)),)
"""

import importlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from lab.options import UserError, flag, parse_options, read_json, read_jsonl

from datagen import Mixture, parse_count, parse_ops
from evaluate import JUDGED, number_of_problems
from report import draw_dots
from rewards import blame


class Script(NamedTuple):
    """How a script's runs are counted, and what is kept of one."""

    work: Callable  # options → how much it does: tokens, or samples
    distil: Callable  # options, run folder → dict, a few KB of JSON
    positional: str | None = None  # the option that is given without a flag


def of_pretraining(o, run):
    """Its loss, thinned, and its tokens."""
    lines = [line for _, line in read_jsonl(run / "metrics.jsonl") if "train/loss" in line]
    kept = lines[::-1][:: 1 + len(lines) // 50][::-1]
    curve = [[line["step"], round(line["train/loss"], 4)] for line in kept]
    return {"loss": curve, "tokens": tokens(o)}


def of_grpo(o, run):
    """Its rewards, all of them and those in each context; and token-equivalents."""
    lines = [line for _, line in read_jsonl(run / "metrics.jsonl") if "rollout/reward" in line]
    rewards = [round(line["rollout/reward"], 4) for line in lines]
    silent = sum(line["rollout/zero_variance"] for line in lines) / len(lines)
    prompt = o.prompts * o.group * sum(line["rollout/prompt"] for line in lines)
    sampled = o.prompts * o.group * sum(line["rollout/length"] for line in lines)
    selection = lines[-1]["train/tokens"] - prompt - sampled
    counts = dict(
        tokens=cost_of_grpo(o, prompt, sampled) + selection / 3,
        prompt=prompt,
        sampled=sampled,
        selection=selection,
    )
    counts = {name: round(count) for name, count in counts.items()}
    contexts = {choice["template"] for choice in Mixture.parse(o.mixture).choices}
    if len(contexts) == 1:
        counts[f"rewards_{contexts.pop()}"] = rewards
    for name in sorted({key.split("/")[1] for key in lines[0] if key.endswith("/share")}):
        each = [(line[f"rollout/{name}/reward"], line[f"rollout/{name}/share"]) for line in lines]
        if any(share for _, share in each):
            counts[f"rewards_{name}"] = [round(paid / share, 4) if share else None for paid, share in each]
    return {"rewards": rewards, "zero_variance": round(silent, 4), **counts}


def cost_of_grpo(o, prompt, sampled):
    """Token-equivalents of tries with so many tokens of prompts, each counted in every try, and of solutions.

    To sample costs a third of an update, and reads a prompt once a group; a reference, which a KL needs,
    costs a third too.
    """
    return (sampled + prompt / o.group) / 3 + (prompt + sampled) * (4 / 3 if o.kl else 1)


def of_evaluation(o, run):
    """Counts of every problem, and what is known of its chains, by op."""
    ops, floors = {}, next(iter(read_json(run / "results.json")["results"].values()))["op"]
    for _, line in read_jsonl(run / "judged.jsonl"):
        kept = {name: line[name] for name in (*JUDGED, "errors", *CHAINS)}
        kept |= {name: value for name, value in floors[str(line["op"])].items() if name.endswith("_floor")}
        process = sum(line["process"]) / len(line["process"])
        ops[str(line["op"])] = {**kept, "process": round(process, 5), "nll": round(line["nll"], 5)}
    return {"samples": o.samples, "ops": ops}


def of_tries(o, run):
    """How many were right, by op; token-equivalents as in GRPO."""
    kept = read_json(run / "summary.json")
    return {**kept, "tokens": round((kept["sampled"] + kept["read"]) / 3)}


def of_texts(o, run):
    """How many there are, by op, and their tokens."""
    return read_json(run / "summary.json")


def tokens(o):
    """The budget of a mixture, which need not be parsed for that: some draw texts to know their lengths."""
    return parse_count(re.search(r"\btokens +(\d[^ ;|]*)", o.mixture)[1])


def tries(o):
    return o.samples * sum(number_of_problems(o).values())


SCRIPTS = {
    "train_pretrain": Script(tokens, of_pretraining),
    "train_grpo": Script(lambda o: o.steps * o.prompts * o.group, of_grpo),
    "tries": Script(lambda o: o.n * max(o.samples, o.most), of_tries),
    "texts": Script(lambda o: o.n, of_texts),
    "evaluate": Script(tries, of_evaluation, "checkpoints"),
}
CHAINS = ("noted", "length", "majority", "depth", "depth_wrong", "logp")  # of a line of judged.jsonl
# what the texts of the other two papers' studies have besides the words of problems
CONTROL = "<thought> a </thought> <backward> a needs a <subgoal> a <verify> a ok <verify> a not <backtrack> a"
# those of its words that no problem has
NEW = " ".join(dict.fromkeys(word for word in CONTROL.split() if word != "a"))
# what an option takes of a stage's run, if not `latest`
READS = {"tokenizer": "latest/tokenizer.json", "tries": "tries.jsonl"}
READS |= {"data": "texts.jsonl", "like": "texts.jsonl"}


@dataclass(frozen=True)
class Stage:
    """One command. given: ((option, value), …); a value that is a Stage stands for its checkpoint."""

    script: str
    given: tuple

    @property
    def parents(self):
        return [value for _, value in self.given if isinstance(value, Stage)]

    @cached_property
    def ancestors(self):
        """{name: stage} of all it depends on, the furthest first."""
        found = {}
        for parent in self.parents:
            found |= {**parent.ancestors, parent.name: parent}
        return found

    def flags(self, place):
        """The command's options. place: function of a stage → its run folder."""
        words = []
        for name, value in self.given:
            if isinstance(value, Stage):
                value = f"{place(value)}/{READS.get(name, 'latest')}"
            if name == SCRIPTS[self.script].positional:
                words.append(f"it={value}")
            elif isinstance(value, bool):
                words.append(flag(name) if value else f"--no-{flag(name)[2:]}")
            else:
                words.append(f"{flag(name)}={value}")
        return words

    @cached_property
    def options(self):
        """The script's Options, with its preset and defaults. Raises UserError if it does not take them."""
        module, words = importlib.import_module(self.script), self.flags(lambda parent: parent.key)
        how = dict(presets=getattr(module, "PRESETS", None), positional=SCRIPTS[self.script].positional)
        try:
            return parse_options(module.Options, words, **how)
        except UserError as error:
            raise UserError(f"a stage of {self.script}.py: {str(error).partition(' (see ')[0]}") from None

    @cached_property
    def key(self):
        """A hash of what it computes. What is off (0, None, False) is left out, so that a new option that is
        off by default changes no key.
        """
        positional = SCRIPTS[self.script].positional
        names = [f.name for f in fields(self.options) if f.name == positional or not f.metadata["free"]]
        chosen = {name: value for name in sorted(names) if (value := getattr(self.options, name))}
        return blake2b(json.dumps([self.script, chosen]).encode(), digest_size=6).hexdigest()

    @property
    def name(self):
        return f"{self.script}-{self.key}"

    @property
    def file(self):
        return Path(importlib.import_module(self.script).__file__)

    @property
    def work(self):
        return SCRIPTS[self.script].work(self.options)

    def distil(self, run):
        """What is kept of its run folder."""
        return SCRIPTS[self.script].distil(self.options, run)


# ------------------------------------------------------------------------------------------------------------
# What is asked: scales, claims, studies


class Seed(NamedTuple):
    base: int  # of pre-training and mid-training; problems of evaluation are those of 1000 + base
    rl: int = 0  # of RL, nested in the base


@dataclass(frozen=True)
class Scale:
    """Bands and budgets, and stages that keep to them. Operations are written as in a mixture."""

    preset: str  # of every script
    world: str  # keys of every mixture
    bands: dict  # of evaluation: id, edge, hard
    pt: str  # of a base: those of the band id, with weights
    ladder: tuple  # easy, medium and hard ones of the band id
    ranges: dict  # of RL: id, near, edge, hard
    pool: str  # that RL selects from
    wide: str  # of the studies of two contexts
    tokens: int  # of a base
    budget: int  # token-equivalents that mid-training and RL share
    price: dict  # token-equivalents of a GRPO step: nominal, as the paper counts them, and measured
    steps: int  # of GRPO
    k: int  # tries of a problem
    seeds: int
    template: str = "zoo"  # of all but the studies of two contexts
    shares: str = "documents"  # what weights in pre-training are shares of
    words: str = ""  # one tokenizer for all, of this mixture ("": each base trains its own)
    mid: dict = field(default_factory=dict)  # options of mid-training
    options: dict = field(default_factory=dict)  # {script: options}
    rates: dict = field(default_factory=dict)  # {script: seconds a token or sample}, until some are measured
    # of the two studies with texts: tokens of continual pre-training and of SFT; problems whose tries texts
    # are made of, and tries of each; the longest chain that reflects, in tokens
    cpt: int = 0
    sft: int = 0
    problems: int = 0
    tries: int = 8
    longest: int = 0
    share: float = 1.0  # of all tokens, steps and texts, to try a study

    def ops(self, band):
        """Of a band, or of all; or of `seen`: id and edge; or of `new` and `last`: those of `wide` but for 2,
        and its largest.
        """
        last, every = self.wide.partition("-")[2], ",".join(self.bands.values())
        others = {
            "all": every,
            "seen": f"{self.bands['id']},{self.bands['edge']}",
            "new": f"3-{last}",
            "last": last,
        }
        return parse_ops({**self.bands, **others}.get(band, band))

    def mixture(self, ops, template=None, share=1.0):
        return f"op {ops}; template {template or self.template}; {self.world}; share {share:g}"

    def stage(self, script, **given):
        given = {"preset": self.preset, **self.options.get(script, {}), **given}
        return Stage(script, tuple(sorted(given.items())))

    def train(self, seed, mixture, tokens, shares=None, **given):
        """Pre-training, or, with init_from, what follows it. shares: as of the scale."""
        if self.words and "init_from" not in given:
            words = f"{self.words}; {self.world}; tokens 1k"
            few = dict(eval_problems=1, eval_every=1000, tokenizer_words=CONTROL)
            given["tokenizer"] = self.stage("train_pretrain", mixture=words, **few)
        mixture += f"; shares {shares or self.shares}; tokens {self.part(tokens)}"
        return self.stage("train_pretrain", mixture=mixture, seed=seed.base, **given)

    def base(self, seed, mixture=None):
        """A base. mixture: of another one than the scale's."""
        return self.train(seed, mixture or self.mixture(self.pt), self.tokens)

    def sample(self, seed, start, mixture, n, **given):
        """Tries of a checkpoint at n problems."""
        given = dict(mixture=mixture, n=self.part(n), samples=self.tries) | given
        return self.stage("tries", checkpoint=start, seed=seed.base, **given)

    def texts(self, kind, **given):
        """Texts of a kind; those of tries are about the problems that were tried."""
        tried = given["tries"].given if "tries" in given else ()
        same = {name: value for name, value in tried if name in ("mixture", "n", "seed")}
        return Stage("texts", tuple(sorted({"kind": kind, **same, **given}.items())))

    def part(self, n):
        """Of so many, the share that is asked for."""
        return max(1, round(self.share * n))

    def tune(self, seed, start, texts, mixture, tokens):
        """Train on texts, with a fifth of what the checkpoint was trained on before. To a base the words that
        no problem has are new. mixture: whose problems show how it goes.
        """
        how = {"replay": 0.2, "solution_only": True, **self.mid}
        how |= {} if start.options.init_from else {"new_words": NEW}
        return self.train(seed, mixture, tokens, init_from=start, data=texts, **how)

    def rl(self, seed, start, mixture, steps=None, **given):
        given = dict(mixture=mixture, steps=self.part(steps or self.steps), init_from=start) | given
        return self.stage("train_grpo", seed=seed.base + 1000 * seed.rl, **given)

    def look(self, seed, start, template=None, **given):
        bands = ",".join(f"{name}={ops}" for name, ops in self.bands.items())
        usual = dict(mixture=self.mixture("2", template), bands=bands, samples=self.k, k=f"1,{self.k}")
        return self.stage("evaluate", checkpoints=start, seed=1000 + seed.base, **(usual | given))


@dataclass(frozen=True)
class Claim:
    """contrast: function of v → a number of one seed. v(arm, band, metric, look="main", part="all") → the
    arm's value: claims.measure; band: of the scale, or operations such as "3-4".
    """

    id: str
    text: str
    contrast: Callable
    paper: str = ""  # what it says
    expect: str = "up"  # up, down, equal, none: see lab.statistics.verdict
    margin: float = 0.03
    half: float | None = None  # half the paper's number
    least: float = 0.0  # what the interval of an effect must be above


@dataclass(frozen=True)
class Study:
    """arms(scale, seed) → {name: Stage}; looks(scale, seed, arm, stage) → {name: Stage of evaluate.py}."""

    name: str
    title: str
    arms: Callable
    claims: tuple
    looks: Callable = lambda c, seed, arm, it: {"main": c.look(seed, it)}
    gate: Callable = lambda v: 0.0  # contrast that must be at least 0, or no claim has a verdict
    nested: int = 1  # RL seeds in each base
    seeds: int | None = None  # bases, if fewer than the scale's
    note: Callable = lambda c: ""  # scale → what must be known to read the table
    shown: str = "main"  # the look of the figure
    figure: Callable = lambda values, path: draw_dots(values.panels(), path)  # claims.Values → PNG's bytes

    def planned(self, scale):
        """How many bases it has."""
        return min(self.seeds or scale.seeds, scale.seeds)

    def at(self, scale, bases):
        """→ {(seed, arm, look or None): Stage} for bases 0, 1 …"""
        found = {}
        for seed in (Seed(base, rl) for base in range(bases) for rl in range(self.nested)):
            for arm, it in self.arms(scale, seed).items():
                found[seed, arm, None] = it
                found |= {(seed, arm, name): look for name, look in self.looks(scale, seed, arm, it).items()}
        return found


def logit(p):
    """Of a share; .01 is added on both sides, so that 0 and 1 have one too."""
    return math.log((p + 0.01) / (1.01 - p))


def load(name):
    """A module of studies/. Raises UserError with the line at which it fails."""
    try:
        return importlib.import_module(f"studies.{name}")
    except Exception as error:
        raise UserError(blame(error, str(Path(__file__).with_name(f"{name}.py")))) from None


def load_studies():
    """→ {name: Study} and {name: Scale} of all files in studies/."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    modules = [*map(load, names)]
    found = {study.name: study for module in modules for study in getattr(module, "STUDIES", ())}
    return found, {name: scale for module in modules for name, scale in getattr(module, "SCALES", {}).items()}

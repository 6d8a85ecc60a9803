"""Run studies, each stage once, and say which claims hold.

    python experiments.py list
    python experiments.py plan --studies s3 --scale mini
    python experiments.py run --studies s3,s6 --jobs 2
    python experiments.py status
    python experiments.py report
    python experiments.py ablate reward=outcome,strict

Stop `run` or kill it anywhere: the same line goes on. Started several times over one folder, on one machine
or many, it shares the work. `report` needs the results alone, studies/results/SCALE/NAME.json, a few KB a
stage. It writes results.jsonl, claims.md, a figure a study and report.html, anew each time.
"""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from lab.options import (
    FINISHED,
    CheckedOptions,
    UserError,
    look_up,
    opt,
    parse_options,
    read_json,
    run_script,
    write_atomic,
)
from lab.runs import as_json, content_hash
from lab.workshop import Runner, Workshop

from checkpoint import save_checkpoint
from claims import LEGEND, Values, markdown, summary, table_of
from export_hf import import_
from export_hf import main as export
from report import print_table, write_studies
from studies import SCRIPTS, Seed, Study, load_studies

# ------------------------------------------------------------------------------------------------------------
# Committed bases


def pack(it, words):
    """Write the weights of all pre-training that is done here in Hugging Face's format, with hash and result;
    --only says of which.
    """
    for stage in filter(it.shop.here, it.family(*it.studies)):
        folder = Path(it.o.bases, stage.name)
        if stage.script == "train_pretrain" and not folder.exists():
            it.shop.keep(stage)
            export([f"--ckpt={it.shop.run_folder(stage)}/latest", f"--out={folder}"])
            digest = content_hash((folder / "model.safetensors").read_bytes())
            facts = {"done": it.shop.ended(stage, "done"), "result": it.shop.kept[stage.name]}
            write_atomic(folder / "stage.json", as_json({"hash": digest, **facts}))


def unpack(shop, stage, folder):
    """Take a stage's run from committed weights. Raises UserError if they are not what was hashed."""
    facts = read_json(folder / "stage.json")
    if content_hash((folder / "model.safetensors").read_bytes()) != facts["hash"]:
        raise UserError(f"{folder / 'model.safetensors'} is not what stage.json says: fetch it again")
    lock = shop.claim(stage)
    if lock is not None:
        with lock:
            save_checkpoint(shop.run_folder(stage) / "latest", *import_(folder))
            write_atomic(shop.folder(stage) / "done.json", as_json({**facts["done"], "from": str(folder)}))
            shop.save(stage, facts["result"])


# ------------------------------------------------------------------------------------------------------------
# Command line


@dataclass(frozen=True)
class Options(CheckedOptions):
    command: str = opt(
        "list", "list, plan, run, status, report, ablate OPTION=VALUE,VALUE; pack: fill --bases"
    )
    studies: str = opt("all", "which, separated by commas", group="what")
    scale: str = opt("mini", "bands and budgets: studies/scales.py")
    seeds: int = opt(0, "bases (0: as many as the study has)")
    budget: float = opt(1.0, "share of all tokens and steps, to try a study", within="(0, 1]")
    first: int = opt(0, "the first of these bases: those before it are left out")
    arms: str = opt("", "only these arms, separated by commas, and what they need")
    only: str = opt("", "only stages whose name contains this, and what they need")
    base: str | None = opt(None, "of ablate: a folder of --bases (default: the base of seed 0)")
    jobs: int = opt(1, "stages at once; each has a GPU, if there are any", within="[1, 256]", group="how")
    quiet: bool = opt(False, "of run and ablate: print nothing but errors and tables", free=True)
    retry: bool = opt(False, "run again what has failed")
    strict: bool = opt(False, "redo what other versions of the code did; take no committed weights")
    out: str = opt("out/experiments", "folder for all that is written", group="where")
    results: str = opt("studies/results", "folder of the results")
    bases: str = opt("studies/bases", "folder of committed weights")


class Session:
    """What the commands share: the studies that were chosen, at a scale, and their stages."""

    def __init__(self, o):
        known, scales = load_studies()
        self.o, self.scale = o, replace(look_up("scale", scales, o.scale), share=o.budget)
        names = list(known) if o.studies == "all" else o.studies.split(",")
        self.studies = [look_up("study", known, name) for name in names]
        wanted = o.arms.split(",") if o.arms else []
        arms = {arm: arm for study in self.studies if wanted for arm in study.arms(self.scale, Seed(0))}
        self.arms = {look_up("arm", arms, name.strip()) for name in wanted}
        self.shop = Workshop(Path(o.out, o.scale), Path(o.results, o.scale), o.strict)

    def seeds(self, study):
        return self.o.seeds or study.planned(self.scale)

    def uses(self, *chosen):
        """{stage: what it is first used for} of arms and looks that --first, --arms and --only leave."""
        found = {}
        for study in chosen:
            for (seed, arm, look), stage in study.at(self.scale, self.seeds(study)).items():
                use = f"{study.name}, {arm}, seed {seed.base}.{seed.rl}" + (f", look {look}" if look else "")
                if seed.base >= self.o.first and (not self.arms or arm in self.arms):
                    found.setdefault(stage, use)
        return {stage: use for stage, use in found.items() if self.o.only in stage.name}

    def family(self, *chosen):
        """Arms and looks, and before each all that it is made from."""
        named = {it.name: it for stage in self.uses(*chosen) for it in (*stage.ancestors.values(), stage)}
        return named.values()

    def values(self, study):
        return Values(self.shop.kept, study, self.scale, self.seeds(study))

    @cached_property
    def pace(self):
        """{script: seconds a unit of work}, as measured at this scale, or else as the scale says."""
        rates = dict.fromkeys(SCRIPTS, 0.0) | self.scale.rates
        for script in SCRIPTS:
            done = [kept for name, kept in self.shop.kept.items() if name.startswith(f"{script}-")]
            if done:
                rates[script] = sum(kept["seconds"] for kept in done) / sum(kept["work"] for kept in done)
        return rates

    def committed(self, stage):
        """The folder of its committed weights, which are to be taken if they are there; or None."""
        folder = Path(self.o.bases, stage.name)
        return folder if folder.exists() and not self.o.strict else None

    def hours(self, stages):
        return sum(it.work * self.pace[it.script] for it in stages if not self.committed(it)) / 3600

    def work_on(self, *chosen):
        """Run these studies' stages → exit code. Committed weights are taken where they are needed."""
        stages, jobs = self.uses(*chosen), self.o.jobs
        for stage in filter(self.committed, self.shop.todo(stages).values()):
            if not self.shop.here(stage):
                unpack(self.shop, stage, self.committed(stage))
        left, quiet = (lambda stages: f"{self.hours(stages) / jobs:.2f} h left"), self.o.quiet
        code = Runner(self.shop, jobs, left, quiet).run(stages, self.o.retry)
        if code != FINISHED and not quiet:
            print("stopped; the same line goes on")
        return code


def list_studies(it, words):
    for study in it.studies:
        cost = it.hours(it.family(study)) / it.seeds(study)
        arms = ", ".join(study.arms(it.scale, Seed(0)))
        print(f"{study.name}: {study.title} {it.seeds(study)} bases, {cost:.2f} h each; arms {arms}")
        for claim in study.claims:
            print(f"    {claim.id:5} {claim.text}" + (f" (paper: {claim.paper})" if claim.paper else ""))


def plan(it, words):
    """Stages, how many are done, and hours for the rest; what two studies share counts in the first."""
    counted = {}
    for study in it.studies:
        stages = it.uses(study)
        todo = it.shop.todo(stages)
        new = [stage for name, stage in todo.items() if name not in counted]
        counted |= todo
        done, hours = sum(stage.name not in todo for stage in stages), it.hours(new)
        print(f"{study.name:6} {done:4} done {len(new):4} to run {hours:8.2f} h   {study.title}")
    print(f"all             {len(counted):4} to run {it.hours(counted.values()):8.2f} h   with one job")


def run(it, words):
    code = it.work_on(*it.studies)
    if code == FINISHED and not it.o.quiet:
        n = len(it.uses(*it.studies))
        print(f"all {n} stages have results; the same line with `report` for `run` shows them")
    return code


def status(it, words):
    uses = it.uses(*it.studies)
    for stage in it.family(*it.studies):
        state = "kept" if it.shop.known(stage) else it.shop.state(stage)
        print(f"{state:8} {stage.name:28} {uses.get(stage, 'for others')}")
        if state == "failed":
            print("    " + "\n    ".join(it.shop.ended(stage, state)["last"]))


def report(it, words):
    rows, lines, sections, out = [], [], [], it.shop.out
    for stage in filter(it.shop.here, it.uses(*it.studies)):
        it.shop.keep(stage)
    for study in it.studies:
        values = it.values(study)
        claims = [values.row(claim) for claim in study.claims]
        png = study.figure(values, out / f"{study.name}.png")
        lines += [json.dumps(line) + "\n" for line in values.lines()]
        sections.append((f"{study.name}: {study.title}", study.note(it.scale), table_of(claims), png))
        rows += claims
    told = f"Scale {it.o.scale}. {summary(rows)}"
    tables = [f"\n## {title}\n\n{note}\n\n{markdown(table)}" for title, note, table, _ in sections]
    write_atomic(out / "results.jsonl", "".join(lines))
    write_atomic(out / "claims.md", "".join([f"# Claims\n\n{told}\n\n{LEGEND}\n", *tables]))
    write_studies(out / "report.html", f"{told} {LEGEND}", sections)
    print(f"{told}\nclaims: {out / 'claims.md'}")


def ablate(it, words):
    """RL at the edge from a base, once with each value of an option; a table of paired differences."""
    option, equals, first = (words or [""])[0].partition("=")
    values = [first, *words[1:]]
    if not equals or len(values) < 2:
        raise UserError("say an option of train_grpo.py and its values: ablate reward=outcome,strict")
    if len({*values}) < len(values):
        raise UserError(f"ablate {option}: a value is there twice")

    def arms(c, seed):
        base, edge = find_base(it, c, seed), c.mixture(c.ranges["edge"])
        given = {f"{option}={value}": {option.replace("-", "_"): value} for value in values}
        rl = {arm: c.rl(seed, base, edge, **what) for arm, what in given.items()}
        return {"base": base, **rl}

    study = Study("ablate", f"{option}: {', '.join(values)}", arms, (), seeds=1)
    code = it.work_on(study)
    if code == FINISHED:
        print_table(it.values(study).pairs(), left=2)
    return code


def find_base(it, c, seed):
    """The scale's base of this seed, or the one that --base names."""
    known = {base.name: base for base in (c.base(Seed(number)) for number in range(c.seeds))}
    return look_up("base", known, Path(it.o.base).name) if it.o.base else c.base(seed)


COMMANDS = {
    "list": list_studies,
    "plan": plan,
    "run": run,
    "status": status,
    "report": report,
    "pack": pack,
    "ablate": ablate,
}


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__, positional="command")
    command, *words = o.command.split(",")
    if words and command != "ablate":
        raise UserError(f"{command} takes no {words[0]!r}: to choose, write --studies {words[0]}")
    return look_up("command", COMMANDS, command)(Session(o), words)


if __name__ == "__main__":
    run_script(main)

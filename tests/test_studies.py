"""The studies of the two papers with texts: all their stages by the real scripts at the scale micro, and what they hold
alike.
"""

import json
from dataclasses import replace
from pathlib import Path

from lab.options import write_atomic
from lab.runs import as_json
from lab.workshop import Workshop

import pytest
from conftest import call

import report
import texts
from chains import ask
from data import completion_text, prompt_text
from datagen import Mixture, count_words, held_out
from export_hf import import_
from studies import NEW, Seed, load_studies
from studies.hidden_thoughts import Domain, known
from studies.long_cot import Pipeline
from studies.scales import SCALES

ROOT = Path(__file__).parent.parent
STUDIES = [load_studies()[0][name] for name in ("hidden", "thoughts", "long", "chains")]


def work(stage, shop):
    """What lab.workshop.Runner does with a stage, in this process: most of a small stage is to import torch."""
    run, words = shop.run_folder(stage), ["--resume-or-start", "--threads=1", "--replicas=1"]
    words += ["--workers=0"] * (stage.script == "train_pretrain")
    call(stage.script, *stage.flags(shop.run_folder), f"--out={run}", *words, check=True)
    if stage.script == "tries":
        stand_in(stage, run / "tries.jsonl")
    facts = {
        "seconds": 1.0,
        "exit": 0,
        "device": "cpu",
        "torch": "",
        "code": shop.code,
        "commit": "",
        "last": [],
    }
    write_atomic(shop.folder(stage) / "done.json", as_json(facts))
    shop.keep(stage)


def stand_in(stage, path):
    """Have a model that has learnt nothing be right now and then; after stage 1, by chains that reflect."""
    o, lines = stage.options, [json.loads(line) for line in path.read_text().splitlines()]
    source, reflects = texts.Source(Mixture.parse(o.mixture), o.seed, o.split), o.seed // 1_000_000 == 1
    for i, line in enumerate(lines):
        p = source.mixture.problem(o.seed, i, o.split)
        assert line["id"] == p.id and len(line["texts"]) >= o.samples
        right, wrong = completion_text(p), source.records("corrupted", i)[0].get("completion", "")
        wrong = (
            wrong.partition("<thought>")[2].partition("</thought>")[0]
            + f" </solution> <answer> {p.answer} </answer>"
        )
        told = source.records("reflective-gold", i)[0].get("completion", right) if reflects else right
        line["texts"][: 1 + i % 3] = [told] * (1 + i % 3)
        line["texts"][-1] = wrong
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """All stages of one seed, done."""
    path = tmp_path_factory.mktemp("studies")
    shop, scale = Workshop(path / "out/micro", path / "results/micro"), SCALES["micro"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_results", lambda *_: None)
        for study in STUDIES:
            for stage in shop.todo(study.at(scale, 1).values()).values():
                work(stage, shop)
    return shop


def test_all_four_studies_end_to_end(shop):
    """Every claim has an estimate; what is kept of a stage is small; each study has a figure."""
    where = [f"--out={shop.out.parent}", f"--results={shop.results.parent}", "--scale=micro", "--seeds=1"]
    call("experiments", "report", "--studies=hidden,thoughts,long,chains", *where, check=True)
    told = (shop.out / "claims.md").read_text()
    assert "not run" not in told
    for study in STUDIES:
        assert (shop.out / f"{study.name}.png").exists()
        assert all(f"| {claim.id} |" in told for claim in study.claims)
    assert max(path.stat().st_size for path in shop.results.glob("*.json")) < 6000
    lines = [json.loads(line) for line in (shop.out / "results.jsonl").read_text().splitlines()]
    metrics = {line["metric"] for line in lines if line["look"] == "planted"}
    assert {"hit", "correct@1", "answer@2", "repaired", "precision", "length"} <= metrics
    assert {"opens", "concludes"} <= {line["metric"] for line in lines if line["look"] == "text"}


MINI, SEED = SCALES["mini"], Seed(0)


def data_of(stage):
    return dict(stage.given)["data"]


def test_texts_are_matched_on_documents_or_on_tokens():
    """By other texts than those that the study counts: whoever trains on them reads each about once."""
    arms = next(study for study in STUDIES if study.name == "hidden").arms(MINI, SEED)
    again = Mixture.parse(known(MINI))
    replayed = [again.problem(1, i, "mid") for i in range(150)]
    replay = sum(count_words(f"{p.problem} {p.question} {p.solution}") for p in replayed) / 150

    def tokens_of(arm):
        """Of one pass over its texts and what is replayed between them."""
        o = data_of(arms[arm]).options
        source = texts.Source(Mixture.parse(o.mixture), seed=1)
        kind = {"self": "gold"}.get(o.kind, o.kind)  # at best as many
        return o.n * (sum(source.records(kind, i)[0]["tokens"] for i in range(150)) / 150 + replay / 4)

    for arm in ("gold", "filler", "self", "X-tokens", "X-docs"):
        assert tokens_of(arm) == pytest.approx(Mixture.parse(arms[arm].options.mixture).tokens, rel=0.06), arm
    words = {arm: arms[arm].options.mixture for arm in arms if arm != "none"}
    assert len({*words.values()}) == 2 and words["X-docs"] not in [
        words[arm] for arm in words if arm != "X-docs"
    ]
    counts = {arm: data_of(arms[arm]).options.n for arm in words}
    assert counts["X-tokens"] > 1.3 * counts["gold"] and {counts[arm] for arm in words} == {
        counts["gold"],
        counts["X-tokens"],
    }
    assert dict(data_of(arms["X-docs"]).given)["like"] == data_of(arms["self"])


def test_stages_of_long_chains_share_tries_and_tokens_and_no_problem():
    long, chains = (study.arms(MINI, SEED) for study in STUDIES[2:])
    tries = {arm: dict(data_of(long[arm]).given)["tries"] for arm in ("plain", "sft", "vanilla", "ceil")}
    assert tries["plain"] == tries["sft"] and tries["vanilla"] == tries["ceil"]
    assert tries["sft"].options.checkpoint != tries["ceil"].options.checkpoint
    assert tries["sft"].options.seed != tries["ceil"].options.seed
    tuned = [arm for arm in (*long.items(), *chains.items()) if "data" in dict(arm[1].given)]
    assert len(tuned) > 15 and len({Mixture.parse(arm.options.mixture).tokens for _, arm in tuned}) == 1
    assert {arm.options.replay for _, arm in tuned} == {0.2}
    # a base has seen no control sentence; what stage 1 learned of them stage 2 keeps
    fresh = {name for name, arm in tuned if arm.options.new_words}
    stage2 = {"vanilla", "ceil", "no stage 1", "uniform", "prop"}
    assert fresh == {name for name, _ in tuned} - stage2
    more = {rule: dict(data_of(chains[rule]).given)["tries"] for rule in ("uniform", "prop")}
    assert all(
        (it.options.most, it.options.select) == (2 * it.options.samples, rule) for rule, it in more.items()
    )


def test_new_words_are_in_no_problem_of_a_base():
    _, tokenizer, *_ = import_(next((ROOT / "studies/bases").glob("train_*")))
    new = {*tokenizer.encode(f" {NEW}")}
    mixture = Mixture.parse("op 2-12; template zoo, school, festival; world mini")
    problems = [mixture.problem(0, i, "train") for i in range(1000)]
    seen = {token for p in problems for token in tokenizer.encode(prompt_text(p) + completion_text(p))}
    assert len(new) > 10 and not new & seen
    reflective = next(
        texts.Source(Mixture.parse("op 4; world mini")).records("reflective-gold", i)[0] for i in range(9)
    )
    assert {*tokenizer.encode(reflective["completion"])} <= new | seen


def test_a_share_of_the_budget_is_a_share_of_all():
    whole, tenth = (Pipeline(replace(MINI, share=share), SEED) for share in (1.0, 0.1))
    for of in (
        lambda it: data_of(it.stage1("own")).options.n,
        lambda it: it.stage1("own").work,
        lambda it: it.ceiling().work,
    ):
        assert of(tenth) == pytest.approx(of(whole) / 10)
    domains = [Domain(replace(MINI, share=share), SEED) for share in (1.0, 0.1)]
    whole, tenth = (it.texts("gold").work for it in domains)
    assert tenth == pytest.approx(whole / 10, rel=0.01)


def test_the_longest_looks_of_mini_fit_its_context():
    """What stands already of a chain counts, too."""
    c, (_, tokenizer, *_) = SCALES["mini"], import_(ROOT / "studies/bases/train_pretrain-f335b87bde04")
    problems = held_out(Mixture.parse(c.mixture("2")), [10], 100, 1000, "eval")
    asked = [ask("denied", problem, 1000, number) for number, problem in enumerate(problems)]
    longest = max(len(tokenizer.encode(prompt_text(problem) + begun)) for problem, begun in asked)
    context = c.base(Seed(0)).options.context
    assert longest > 380 and longest + c.longest <= context

"""tries.py: what texts are made of, of a model that has learnt nothing and of one that is made up."""

import json
from types import SimpleNamespace

from lab.options import STOPPED

import pytest
import torch
from conftest import call, error_line

import texts
import tries
from checkpoint import load_checkpoint, save_checkpoint
from data import completion_text, prompt_text
from datagen import Mixture
from model import ModelConfig, Qwen2
from tokenizer import train_bpe

WORLD = "op 2-3; mode forward; distractors 1-2"


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    problems = [Mixture.parse(WORLD).problem(1, i, "train") for i in range(30)]
    tokenizer = train_bpe([prompt_text(p) + completion_text(p) for p in problems], 400)
    path = tmp_path_factory.mktemp("tries") / "latest"
    save_checkpoint(
        path, Qwen2(ModelConfig(tokenizer.vocab_size, 32, 64, 1, 2, 1)), tokenizer, {}, {"step": 3}
    )
    options = ["--n", 5, "--samples", 2, "--max-new-tokens", 8, "--threads", 1, "--seed", 3]
    return ["tries", "--checkpoint", path, "--mixture", WORLD, *options]


def lines_of(path):
    return [json.loads(line) for line in (path / "tries.jsonl").read_text().splitlines()]


def test_a_line_a_problem_of_the_same_problems_as_texts(command, tmp_path, monkeypatch):
    out = call(*command, "--out", tmp_path / "a", check=True)
    assert "\na: problem 5 of 5, 0 of 10 tries right\n" in out.stdout and "\r" not in out.stdout + out.stderr
    lines, summary = lines_of(tmp_path / "a"), json.loads((tmp_path / "a/summary.json").read_text())
    source = texts.Source(Mixture.parse(WORLD), seed=3)
    assert [line["id"] for line in lines] == [source.records("gold", i)[0]["id"] for i in range(5)]
    assert {len(line["texts"]) for line in lines} == {2} and 0 < summary["sampled"] <= 5 * 2 * 8
    assert sum(tried for _, tried in summary["yields"].values()) == 10
    assert [*texts.read_tries(tmp_path / "a/tries.jsonl")] == [line["id"] for line in lines]
    monkeypatch.setattr(tries, "CHUNK", 2)
    flags = ["--sample-rows", 3, "--resume-or-start", "--replicas", 2]
    call(*command, *flags, "--out", tmp_path / "b", check=True)
    assert lines_of(tmp_path / "b") == lines
    kept = json.loads((tmp_path / "b/summary.json").read_text())
    assert kept == summary
    out = call(*command, *flags, "--quiet", "--out", tmp_path / "b", check=True)  # there is nothing left
    assert out.stdout == out.stderr == ""
    assert lines_of(tmp_path / "b") == lines
    assert "--seed 3, not 4" in error_line(call(*command, *flags, "--seed", 4, "--out", tmp_path / "b"))


def test_what_was_tried_before_a_kill_is_not_tried_again(command, tmp_path, monkeypatch):
    run, asked, real = tmp_path / "run", [], tries.roll_out
    call(*command, "--out", run, check=True)
    whole, summary = (run / "tries.jsonl").read_text(), (run / "summary.json").read_text()
    some = whole.splitlines(keepends=True)
    (run / "tries.jsonl").write_text("".join(some[:2]) + some[2][:30])  # killed while it wrote the third
    (run / "summary.json").unlink()

    def watched(model, tokenizer, problems, group, stream, numbers, **how):
        asked.extend(numbers)
        return real(model, tokenizer, problems, group, stream, numbers, **how)

    monkeypatch.setattr(tries, "roll_out", watched)
    assert not tries.main(["--resume", "--quiet", "--out", str(run)])
    assert asked == [2, 3, 4]
    assert (run / "tries.jsonl").read_text() == whole and (run / "summary.json").read_text() == summary

    def stopped(*args, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr(tries, "roll_out", stopped)
    (run / "tries.jsonl").write_text("".join(some[:3]))
    assert tries.main(["--resume", "--quiet", "--out", str(run)]) == STOPPED
    assert (run / "tries.jsonl").read_text() == "".join(some[:3])
    (run / "tries.jsonl").write_text("{}\n")
    assert "line 1 has no 'id'" in error_line(call("tries", "--resume", "--out", run))


def test_other_weights_are_another_run(command, tmp_path):
    path, other = command[2], tmp_path / "other"
    tokenizer = load_checkpoint(path, torch.device("cpu")).tokenizer
    model = Qwen2(ModelConfig(tokenizer.vocab_size, 32, 64, 1, 2, 1))
    save_checkpoint(other, model, tokenizer, {}, {"step": 3})
    link = tmp_path / "link"
    link.symlink_to(path)
    begun = [*command[:2], link, *command[3:], "--out", tmp_path / "linked"]
    call(*begun, check=True)
    link.unlink()
    link.symlink_to(other)
    assert "other weights" in error_line(call(*begun, "--resume-or-start"))


def test_a_problem_is_tried_until_the_rule_has_enough(monkeypatch):
    """Of models that are right once in so many tries."""
    streams = []

    def made_up(model, tokenizer, problems, group, stream, numbers, **how):
        streams.append((stream, [*numbers]))
        first = stream[-1]
        places = [(every, first + g) for every in problems for g in range(group)]
        return [
            SimpleNamespace(verdict=SimpleNamespace(correct=at % every == every - 1)) for every, at in places
        ]

    monkeypatch.setattr(tries, "roll_out", made_up)
    checkpoint = SimpleNamespace(model=None, tokenizer=None)

    def tried(**given):
        o = tries.Options(samples=4, **given)
        return [len(found) for found in tries.sample(checkpoint, [1, 2, 4, 100], range(4), o).values()]

    assert tried() == [4, 4, 4, 4]  # no more than --samples
    assert tried(select="uniform", most=16) == [4, 8, 16, 16]
    assert tried(select="uniform", most=15) == [4, 8, 12, 12]
    assert tried(select="prop", most=32) == [4, 12, 28, 32]  # 1, 5, 7 and 8 of them are wanted
    assert [stream[-1] for stream, _ in streams[-8:]] == [
        0,
        4,
        8,
        12,
        16,
        20,
        24,
        28,
    ]  # no two rounds are alike


def test_bad_input_is_one_line(command, tmp_path):
    assert "no checkpoint" in error_line(call("tries", "--out", tmp_path / "run"))
    assert "--select" in error_line(call(*command, "--select", "best", "--out", tmp_path / "run"))
    assert "--max-new-tokens" in error_line(
        call(*command, "--max-new-tokens", 10_000, "--out", tmp_path / "run")
    )
    assert not (tmp_path / "run").exists()

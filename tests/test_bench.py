"""The benches of runs and training: the comparison of runs, the tracer of a GRPO step, the stopwatches."""

import json
import math
import random
import re
import sys
from dataclasses import replace
from itertools import combinations, count, islice, permutations
from types import SimpleNamespace
from unittest.mock import MagicMock, call

from lab.options import UserError

import pytest
import torch

from bench import (
    data_speed,
    grpo_speed,
    loss_by_kind,
    plot_runs,
    scale,
    step_trace,
    topologies,
    train_speed,
    verification,
    watch_run,
)
from checkpoint import new_model, save_checkpoint
from datagen import Mixture
from model import ModelConfig
from texts import Reading, Source, corrupted
from tokenizer import train_bpe


def write_evaluation(folder):
    folder.mkdir()
    stats = {str(op): {"correct@1": {"mean": 1 / op, "low": 0.1, "high": 0.9}} for op in (2, 3)}
    content = {"options": {}, "results": {"base": {"op": stats}, "grpo": {"op": stats}}}
    (folder / "results.json").write_text(json.dumps(content))


def write_run(folder, *lines):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_plot_runs_draws_what_each_folder_holds(tmp_path, capsys):
    write_evaluation(tmp_path / "eval")
    write_run(
        tmp_path / "base",
        {"step": 0, "eval/nll_op2": 6.0},
        {"step": 9, "eval/nll_op2": 0.5, "eval/nll_op3": 0.7},
    )
    write_run(tmp_path / "rl", {"step": 1, "rollout/reward": 0.1}, {"step": 2, "rollout/reward": 0.2})
    (tmp_path / "note.txt").write_text("a file of out/demo/*")
    evaluations, rewards, nll = plot_runs.read_folders(tmp_path.iterdir())
    assert evaluations.keys() == {"eval/base", "eval/grpo"}
    assert evaluations["eval/base"][2] == {"mean": 0.5, "low": 0.1, "high": 0.9}
    assert rewards == {"rl": [(1, 0.1), (2, 0.2)]}
    assert nll == {"base": {2: 0.5, 3: 0.7}}  # of the last evaluation
    folders = [str(tmp_path / name) for name in ("eval", "base", "rl")]
    plot_runs.main([*folders, "--out", str(tmp_path / "figures" / "runs.png")])
    assert (tmp_path / "figures" / "runs.png").stat().st_size > 5000
    assert "runs.png" in capsys.readouterr().out


@pytest.mark.parametrize("name, content", [
    ("results.json", '{"results": []}'),
    ("results.json", "[]"),
    ("results.json", '{"results": {"a": {"op": {"2": {"correct@1": {"mean": 1.0}}}}}}'),
    ("results.json", '{"results": {"a": {"op": {"two": {"correct@1": {"mean": 1, "low": 1, "high": 1}}}}}}'),
    ("results.json", "{"),
    ("metrics.jsonl", '{"rollout/reward": 0.5}\n'),
    ("metrics.jsonl", '{"step": 1, "eval/nll_opx": 0.5}\n'),
    ("metrics.jsonl", '{"step": 1, "eval/nll_op2": null}\n'),
    ("metrics.jsonl", "half a li"),
    ("other", ""),
])  # fmt: skip
def test_plot_runs_refuses_other_folders_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        plot_runs.main([str(tmp_path), "--out", str(tmp_path / "x.png")])
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "x.png").exists()


def stand_ins(monkeypatch):
    """TensorBoard's SummaryWriter and wandb, which need not be installed."""
    boards, wandb = MagicMock(), MagicMock(spec_set=["init", "log", "Table"])  # what they offer to everyone
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=boards))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return boards, wandb


def test_a_runs_metrics_are_sent_elsewhere(tmp_path, monkeypatch):
    """TensorBoard's and wandb's calls, on stand-ins; and one line where they are not installed."""
    boards, wandb = stand_ins(monkeypatch)
    run = tmp_path / "run"
    write_run(run, {"step": 7, "train/loss": 0.5}, {"step": 8, "train/loss": 0.25, "time/seconds": 3})
    (run / "config.json").write_text('{"options": {"lr": 0.1}}')
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "trai')  # a line that is being written
    before = (run / "metrics.jsonl").read_bytes()
    for to in ("tensorboard", "wandb"):
        watch_run.main([str(run), "--to", to, "--once"])
    sent = [call("train/loss", 0.5, 7), call("train/loss", 0.25, 8), call("time/seconds", 3, 8)]
    assert boards.return_value.add_scalar.call_args_list == sent
    assert boards.call_args == call(str(run / "tensorboard"), purge_step=0)  # all of it comes again
    logged = [call({"train/loss": 0.5}, step=7), call({"train/loss": 0.25, "time/seconds": 3}, step=8)]
    assert wandb.log.call_args_list == logged
    told = wandb.init.call_args.kwargs
    assert told["name"] == "run" and told["config"] == {"lr": 0.1} and told["resume"] == "allow"
    assert told["id"] == (run / "wandb.id").read_text().strip() and re.fullmatch("[0-9a-f]{8}", told["id"])
    run = run.rename(tmp_path / "moved")
    watch_run.main([str(run), "--to", "wandb", "--once"])
    assert wandb.init.call_args.kwargs["id"] == told["id"]  # the same run there, wherever its folder is
    assert (run / "metrics.jsonl").read_bytes() == before
    for name, module in (("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=f"pip install {name}"):
            watch_run.main([str(run), "--to", name, "--once"])


def test_wandb_itself_takes_what_is_sent(tmp_path, monkeypatch):
    """Without its server; twice, which is one run there."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "run"
    write_run(run, {"step": 1, "train/loss": 0.5}, {"step": 2, "eval/pass@1": 0.25})
    (run / "config.json").write_text('{"options": {"lr": 0.1}}')
    (run / "samples.txt").write_text("=== step 2\n--- op 2\nA\nB\n")
    for _ in range(2):
        watch_run.main([str(run), "--to", "wandb", "--once"])
    written = [path.name for path in (run / "wandb").glob("offline-run-*")]
    assert {name.rpartition("-")[2] for name in written} == {(run / "wandb.id").read_text().strip()}
    assert list((run / "wandb").glob("**/samples_*.table.json"))


def test_solutions_are_sent_to_wandb_as_tables(tmp_path, monkeypatch):
    _, wandb = stand_ins(monkeypatch)
    wandb.Table.side_effect = lambda columns, data: (columns, data)
    run = tmp_path / "run"
    write_run(
        run, {"step": 0, "eval/pass@1": 0.5}, {"step": 1, "train/loss": 1.0}, {"step": 2, "eval/pass@1": 0.75}
    )
    (run / "config.json").write_text('{"options": {}}')
    told = "=== step 0\n--- op 2\nA\nB\n\n=== step 2\n--- op 2\nC\nD\n\n--- op 3\nE\nF\n\n"
    (run / "samples.txt").write_text(told)
    tries = [dict(dict.fromkeys(watch_run.COLUMNS, "x"), step=step, more=1) for step in (1, 2, 3)]
    (run / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in tries))
    watch_run.main([str(run), "--to", "wandb", "--once"])
    first, second, third = (sent.args[0] for sent in wandb.log.call_args_list)
    assert (
        first["eval/samples"] == (["step", "op", "solution"], [[0, "2", "A\nB"]])
        and "rollout/samples" not in first
    )
    assert second == {"train/loss": 1.0}
    assert third["eval/samples"][1] == [[2, "2", "C\nD"], [2, "3", "E\nF"]]
    columns, rows = third["rollout/samples"]
    assert columns == list(watch_run.COLUMNS) and [row[0] for row in rows] == [1, 2]


def test_a_run_is_followed_while_it_writes_and_when_it_is_resumed(tmp_path, monkeypatch):
    boards, _ = stand_ins(monkeypatch)
    run, log = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    write_run(run, {"step": 1, "a": 1}, {"step": 2, "a": 2})
    half, rest = '{"step": 3, ', '"a": 3}\n'

    def resume():
        log.write_text('{"step": 1, "a": 1}\n')  # cut back

    def stop():
        raise KeyboardInterrupt

    acts = iter([lambda: log.open("a").write(half), lambda: log.open("a").write(rest), resume, stop])
    monkeypatch.setattr(watch_run.time, "sleep", lambda seconds: next(acts)())
    assert watch_run.main([str(run), "--to", "tensorboard"]) == 0
    steps = [told.args[2] for told in boards.return_value.add_scalar.call_args_list]
    assert steps == [1, 2, 3, 1] and boards.call_count == 2


@pytest.mark.parametrize("content", [None, "{", "[]\n", '{"a": 1}\n', "half\n"])
def test_what_is_no_run_is_not_watched(tmp_path, monkeypatch, content):
    stand_ins(monkeypatch)
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    if content == "{":  # nothing but the beginning of a line
        assert watch_run.main([str(tmp_path), "--once"]) is None
        return
    with pytest.raises(UserError) as error:
        watch_run.main([str(tmp_path), "--once"])
    assert "\n" not in str(error.value) and "metrics.jsonl" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"] * (content is not None)
    with pytest.raises(UserError, match="no run"):
        watch_run.main([])


def test_plot_runs_without_a_folder_is_an_error():
    with pytest.raises(UserError, match="no folder"):
        plot_runs.main([])


def test_the_tracer_counts_what_a_reader_meets(monkeypatch, tmp_path):
    """Functions of the file itself and those it calls in others, generators too; not what those call, nor
    comprehensions.
    """
    (tmp_path / "reader.py").write_text(
        "import outside, other, third\n"
        "def step():\n    third.take(other.lazily())\n"
        "    return [own(x) for x in (1, 2)] + outside.through(other.called, 3)\n"
        "def own(x):\n    return max([x], key=lambda x: x)\n"
        "def idle():\n    pass\n"
    )
    (tmp_path / "other.py").write_text(
        "def called(x):\n    return [deeper(x)]\ndef deeper(x):\n    return x\n"
        "def lazily():\n    yield from unnamed()\ndef unnamed():\n    yield 1\n"
    )
    (tmp_path / "third.py").write_text("def take(items):\n    return list(items)\n")
    elsewhere = tmp_path / "library"
    elsewhere.mkdir()
    (elsewhere / "outside.py").write_text("def through(function, x):\n    return function(x)\n")
    monkeypatch.setattr(step_trace, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(elsewhere)
    monkeypatch.syspath_prepend(tmp_path)
    import reader

    entries = step_trace.trace(reader.step, "reader.py")
    for name in ("reader", "other", "third", "outside"):
        sys.modules.pop(name)
    found = [(entry.file, entry.name.rpartition(".")[2]) for entry in entries]
    assert found == [
        ("reader.py", "step"),
        ("third.py", "take"),
        ("other.py", "lazily"),  # though its frame begins within third.py
        ("reader.py", "own"),
        ("reader.py", "<lambda>"),
        ("other.py", "called"),
    ]
    assert entries[0].line == 2


def test_a_grpo_step_is_short_to_read(tmp_path):
    entries = step_trace.trace(step_trace.small_run(tmp_path).take_step)
    assert entries[0].name.endswith("take_step")
    assert len(entries) <= step_trace.MOST_FUNCTIONS
    assert len({entry.file for entry in entries}) <= step_trace.MOST_FILES


def test_step_trace_prints_and_writes_the_functions(tmp_path, capsys):
    step_trace.main(["--json", str(tmp_path / "trace.json")])
    entries = json.loads((tmp_path / "trace.json").read_text())
    assert {"take_step", "learn", "grpo_loss", "roll_out"} <= {
        entry["name"].rpartition(".")[2] for entry in entries
    }
    out = capsys.readouterr().out
    assert f"{len(entries)} functions in" in out and all(entry["name"] in out for entry in entries)


def test_grpo_speed_takes_the_trainers_steps_apart(tmp_path, monkeypatch, capsys):
    import rollout

    for name in ("generate", "verify"):  # which the bench puts clocks around
        monkeypatch.setattr(rollout, name, getattr(rollout, name))
    start = step_trace.small_run(tmp_path).o.init_from
    small = ["--prompts", "2", "--max-new-tokens", "8", "--rounds", "2", "--threads", "1"]
    grpo_speed.main(["--ckpt", start, *small, "--json", str(tmp_path / "speed.json")])
    out = json.loads((tmp_path / "speed.json").read_text())
    parts = {name: s for name, s in out["seconds"].items() if name != "all"}
    assert parts.keys() == {"sampling", "judging", "update", "host (the rest)"}
    assert sum(parts.values()) == pytest.approx(out["seconds"]["all"]) and min(parts.values()) > 0
    assert out["gap_max"] < 1e-4 and "2 prompts x 8 samples" in capsys.readouterr().out
    with pytest.raises(UserError, match="no checkpoint"):
        grpo_speed.main([])


def test_data_speed_and_train_speed_run(tmp_path, monkeypatch):
    data_speed.main(
        ["--workers", "0", "--batches", "1", "--documents", "20", "--json", str(tmp_path / "d.json")]
    )
    assert 0 <= json.loads((tmp_path / "d.json").read_text())["padding"] < 0.2
    small = dict(hidden_size=16, intermediate_size=16, layers=1, heads=2, kv_heads=1, row_tokens=256)
    monkeypatch.setitem(train_speed.PRESETS, "tiny", {**train_speed.PRESETS["tiny"], **small})
    monkeypatch.setattr(train_speed, "matmul_rate", lambda *arguments: 1e9)
    train_speed.main(["--rounds", "1", "--steps", "1", "--threads", "1", "--json", str(tmp_path / "t.json")])
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert [row["name"] for row in rows][:2] == ["ours, bfloat16", "ours, one replica, bfloat16"]
    assert rows[-1]["name"] == "ours, as the preset trains, float32"


def test_the_lines_of_scale_are_exact_on_what_is_a_line():
    x = [64, 128, 256, 384]
    assert scale.exponent(x, [3 * n**1.5 for n in x]) == pytest.approx((1.5, 0))
    assert scale.straight(x, [20 + n / 2 for n in x]) == pytest.approx((20, 0.5, 0))
    off = 0.1  # log y is 0.1 above and below the line through 1, 2, 4, 8
    bent = [n * math.exp(sign * off) for n, sign in zip((1, 2, 4, 8), (1, -1, -1, 1))]
    assert scale.exponent((1, 2, 4, 8), bent) == pytest.approx((1, off))
    assert scale.straight((1, 1, 2, 2), (0.9, 1.1, 1.8, 2.2))[2] == pytest.approx(0.1, rel=0.02)


def test_scale_changes_one_factor_at_a_time(capsys):
    o = scale.Options(group="4,8,16", prompts="2", max_new_tokens="32")
    sizes = scale.around(o, dict(group=8, prompts=8, max_new_tokens=64))
    assert [tuple(size.values()) for size in sizes] == [
        (8, 8, 64),
        (4, 8, 64),
        (16, 8, 64),
        (8, 2, 64),
        (8, 8, 32),
    ]
    rows = [{**size, "s": size["group"] * size["prompts"] ** 2 * 1.0} for size in sizes]
    found = scale.report(rows, tuple(sizes[0]), ("s",), ("s",))
    powers = {name: pytest.approx(line) for name, line in found.items()}
    assert powers == {"s over group": (1, 0), "s over prompts": (2, 0), "s over max_new_tokens": (0, 0)}
    for bad in ("", "8", "8,8", "2,x", "-1", "1.5"):
        with pytest.raises(UserError, match=r"--group .* 8"):
            scale.around(replace(o, group=bad), dict(group=8))
    wide = scale.resized(train_speed.PretrainOptions(**train_speed.PRESETS["tiny"]), 256, layers=2)
    assert (wide.hidden_size, wide.heads, wide.intermediate_size, wide.layers) == (256, 8, 768, 2)


def test_the_bytes_that_a_process_sends():
    """Around a ring of p processes: p - 1 parts of the sum go round, and then again when they are whole."""
    assert [scale.bytes_sent(100, p) for p in (1, 2, 4)] == [0, 400, 600]
    assert scale.bytes_sent(1000, 1000) == 7992  # never twice the gradients


def small_training(monkeypatch):
    small = dict(hidden_size=16, intermediate_size=16, layers=1, heads=2, kv_heads=2, row_tokens=256)
    for name in ("tiny", "paper"):
        preset = {**train_speed.PRESETS["tiny"], **small, "vocab_size": 300, "mixture": "op 2; tokens 1M"}
        monkeypatch.setitem(scale.PRESETS, name, preset)


def test_scale_runs(tmp_path, monkeypatch, capsys):
    """In this process, whose memory says nothing: that of fresh ones is below."""
    small_training(monkeypatch)
    memory = count(1)
    monkeypatch.setattr(scale, "resident_memory", lambda peak: float(next(memory)))
    monkeypatch.setattr(scale, "fresh", lambda work, *given, processes=1: scale.as_rank({}, work, *given))
    monkeypatch.setattr(scale, "matmul_rate", lambda device, dtype: 1e9)
    monkeypatch.setattr(scale, "GRPO_BASE", dict(group=2, prompts=2, max_new_tokens=4))
    lists = ["--hidden-size", "32", "--layers", "2", "--row-tokens", "512", "--group", "4", "--prompts", "4"]
    lists += ["--max-new-tokens", "8", "--steps", "1", "--threads", "1"]
    scale.main([*lists, "--json", str(tmp_path / "scale.json")])
    out, printed = json.loads((tmp_path / "scale.json").read_text()), capsys.readouterr().out
    assert [tuple(row[name] for name in scale.SIZES) for row in out["training"]] == [
        (16, 1, 256),
        (32, 1, 256),
        (16, 2, 256),
        (16, 1, 512),
    ]
    for row in out["training"]:
        assert row["tokens/s"] == pytest.approx(2 * row["row_tokens"] / row["seconds"])
        assert row["micro_batches"] == 2 and row["estimate MiB"] > 0 and row["flops"] > 0
    assert [row["max_new_tokens"] for row in out["grpo"]] == [4, 4, 4, 8]
    assert len(out["exponents"]) == 12 and out["tokens/s"].keys() == {way[0] for way in scale.WAYS}
    assert "within 25%" in printed and printed.count("~") == 12 and "--dry-run " in printed
    with pytest.raises(UserError, match="--layers"):
        scale.main(["--layers", "two"])


def test_scale_measures_memory_and_two_processes(tmp_path):
    """The tensors of a step are what lab/cost.py says; a heap holds them and what it cannot use again."""
    base = dict(**train_speed.PRESETS["tiny"], threads=1, workers=0, eval_problems=1)
    p = train_speed.PretrainOptions(**{**base, "replicas": 1, "vocab_size": 300})
    path = tmp_path / "tokenizer.json"
    train_speed.train_tokenizer(train_speed.Mixture.parse(p.mixture), (), 300, 0, documents=50).save(path)
    p = replace(p, tokenizer=str(path))
    row = scale.fresh(scale.measure_training, scale.resized(p, 256, layers=2), 1)
    assert row["tensors MiB"] == pytest.approx(row["estimate MiB"], rel=0.25)
    assert 0.8 < row["resident MiB"] / row["tensors MiB"] < 4
    two = scale.fresh(scale.measure_training, scale.resized(p, 64, layers=1), 1, processes=2)
    assert two["micro_batches"] == 2 and two["tokens/s"] > 0


def test_kinds_of_tokens_by_hand():
    """Every word of a solution with a literal, a copy with a constant, a sum and a plan."""
    kinds = {
        "open": "To Define Define Define </solution>",
        "goal": "B-in-C",
        "need": "A-in-C D-in-C",
        "more": ", .",
        "define": "A-in-C B-in-C total-in-C",
        "letter": "a a b c b d d",
        "leaf": "5",
        "ref": "a c a b",
        "constant": "3",
        "operator": "* + + *",
        "put in": "3 5 5 15",
        "result": "5 15 20",
        "answer": "20",
    }
    text = "To find B-in-C we need A-in-C , D-in-C . Define A-in-C as a ; so a = 5 . "
    text += "Define B-in-C as b ; c = a = 5 ; so b = 3 * c = 3 * 5 = 15 . "
    text += "Define total-in-C as d ; so d = a + b = 5 + 15 = 20 . </solution> <answer> 20 </answer>"
    words = text.split()
    found = {}
    for word, kind in zip(words, loss_by_kind.kinds_of(words), strict=True):
        found.setdefault(kind, []).append(word)
    found.pop("form"), found.pop("end")
    assert {kind: sorted(w) for kind, w in found.items()} == {k: sorted(w.split()) for k, w in kinds.items()}


def test_loss_by_kind_of_an_untrained_model(tmp_path, capsys):
    """Each token costs about ln V, whatever its kind; the kinds together are all tokens."""
    step_trace.small_run(tmp_path)
    loss_by_kind.main([str(tmp_path / "start"), "--op", "2,4", "--problems", "3", "--mixture", "op 2-4"])
    printed = capsys.readouterr().out
    assert "op 2" in printed and printed.count("(") > 20 and "all" in printed


def alike(a, b):
    """Whether two graphs are equal but for names and numbers: all ways to pair their nodes."""
    if len(a.nodes) != len(b.nodes):
        return False

    def told(problem, number):
        return {
            (number[n.name], n.name.startswith("total "), n.operator, n.constant is None, n.name == problem.query,
             tuple(sorted(number[name] for name in n.operands)))
            for n in problem.nodes
        }  # fmt: skip

    first = told(a, {n.name: i for i, n in enumerate(a.nodes)})
    orders = permutations(range(len(b.nodes)))
    return any(told(b, {n.name: i for n, i in zip(b.nodes, order)}) == first for order in orders)


def test_topologies_are_equal_where_graphs_are_but_for_names_and_numbers():
    mixture = Mixture.parse("op 4-6; world mini")
    problems = [mixture.problem(0, i, "train") for i in range(60)]
    found = [
        (topologies.topology(a) == topologies.topology(b), alike(a, b)) for a, b in combinations(problems, 2)
    ]
    assert all(mine == brute for mine, brute in found)
    assert 0.02 < sum(brute for _, brute in found) / len(found) < 0.5


def test_what_seen_topologies_are_worth_is_asked_of_problems_that_are_alike():
    easy = [("easy", True, 0.9), ("easy", True, 0.7), ("easy", False, 0.7)]  # +.1, of weight 2/3
    hard = [("hard", True, 0.1), ("hard", False, 0.1), ("hard", False, 0.3), ("hard", False, 0.2)]  # -.1, 3/4
    assert topologies.seen_less_unseen([*easy, *hard]) == pytest.approx(
        (0.1 * 2 / 3 - 0.1 * 3 / 4) / (2 / 3 + 3 / 4)
    )
    assert topologies.seen_less_unseen(easy[:2] + hard[1:]) is None  # none can be compared


def test_topologies_of_the_committed_results(monkeypatch, capsys):
    real, problems = topologies.documents, []

    def first(o):
        problems.append([p.problem for p in islice(real(o), 300)])
        return islice(real(o), 300)

    monkeypatch.setattr(topologies, "documents", first)
    topologies.main([])
    printed = capsys.readouterr().out
    assert len(problems) == 4 and problems[0] != problems[1]  # of each base its own
    rows = [line.split() for line in printed.splitlines() if line.startswith("3 ")]
    assert rows[1][1:4] == ["81", "0.001", "[0.000,0.002]"] and float(rows[2][2]) < -20
    with pytest.raises(UserError, match="no results of s4, look B"):
        topologies.main(["--study", "s4", "--base", "1%", "--arms", "1%", "--look", "B"])


def test_a_wrong_definition_is_verified_beside_a_right_one_of_the_same_quantity():
    """By the claims that the rules would take: what is said of the last definition is true."""
    source, kinds = Source(Mixture.parse("op 3-6; world mini")), set()
    for i in range(40):
        p = source.mixture.problem(0, i, "dev")
        wrongs = [corrupted(0, source, p, random.Random(k)) for k in range(6)]
        tries = [p.solution, *(f" {text} </solution>" for text in wrongs if text)]
        cases = [*verification.own_cases(p, tries, random.Random(0))]
        assert len(cases) == 2 * (len(tries) - 1)
        cases += verification.planted_cases(p, 0, i)
        for wrong, right in zip(cases[::2], cases[1::2]):
            assert wrong.name == right.name and right.values[0] == right.values[1]
            assert wrong.kind[1] in ("form", "quantity", "value") and right.kind[1] == "right"
            assert (wrong.kind[1] == "value") <= (wrong.values[0] != wrong.values[1])
            for case, word in ((wrong, "not"), (right, "ok")):
                reading = Reading(f"{case.told} {case.claim} {word}", p, ())
                (event,) = reading.of("verify")
                assert event.about.name == case.name and reading.true(event)
            kinds.add(wrong.kind)
    assert kinds >= {("own", "value"), ("own", "quantity"), ("planted", "value"), ("planted", "quantity")}
    assert verification.above([1, 2], [0, 2, 3]) == (2 * 1 + 0.5) / 6
    assert math.isnan(verification.above([], [1]))


def test_what_is_said_of_verified_definitions():
    def case(kind, values, given, *own):
        return verification.Case(None, ("own", kind), "x", "", values, "", given, [*own])

    rights = [case("right", (5, 5), 0.2, 5, 0.5), case("right", (5, 5), 0.4)]
    wrongs = [
        case("value", (5, 6), 0.3, 6, 0.5),
        case("value", (5, 6), 0.9, 5, 0.9),
        case("value", (5, 6), 0.9, None, 0.1),
    ]
    told = verification.row(("own", "value"), wrongs, rights)
    assert told == ["own value", "3", "0.700", f"{5 / 6:.3f}", "2", "0.500", "0.500", "0.500", "0.500"]
    told = verification.row(("own", "right"), rights[1:], rights)
    assert told == ["own right", "1", "0.400", "0.750", "0", "nan", "nan", "nan", "nan"]


def test_verification_of_an_untrained_model(tmp_path, capsys):
    source = Source(Mixture.parse("op 3; world mini"))
    records = [record for i in range(30) for record in source.records("reflective-gold", i)]
    told = [record["prompt"] + record["completion"] for record in records]
    tokenizer = train_bpe([*told, " ok not" * 999], 500)
    config = ModelConfig(tokenizer.vocab_size, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=1)  # fmt: skip
    model = new_model(config, torch.device("cpu"))
    save_checkpoint(tmp_path / "it", model, tokenizer, {"mixture": "op 3; world mini"}, {"step": 0})
    it = str(tmp_path / "it")
    verification.main([it, f"--maker={it}", "--problems=3", "--samples=1", "--max-new-tokens=9"])
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in capsys.readouterr().out.splitlines()}
    assert rows["planted", "right"][0] == "3" and rows["planted", "right"][2] == "0.500"
    with pytest.raises(UserError, match="--maker out/base/latest"):
        verification.main([it])
    step_trace.small_run(tmp_path)
    with pytest.raises(UserError, match="no words ok and not"):
        verification.main([str(tmp_path / "start"), f"--maker={it}"])

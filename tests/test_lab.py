"""lab/: options, the run folder, devices and processes, and what a run would cost."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lab import runs
from lab.cost import count_memory, describe_cost, kept_for_backward, matmul_rate
from lab.device import DeviceOptions, Processes, compute_dtype, setup
from lab.options import (
    CheckedOptions,
    UserError,
    inside,
    opt,
    parse_options,
    printable,
    read_json,
    read_jsonl,
    run_script,
    stream_key,
    write_atomic,
)
from lab.runs import (
    Progress,
    Run,
    checkpoint_folder,
    code_hash,
    content_hash,
    damage,
    follow,
    newest_folder,
    own_folder,
    parse_run_options,
    step_folders,
    weights_hash,
    write_folder,
)

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import model
import train_pretrain
from attention import choose

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent


# ------------------------------------------------------------------------------------------------------------
# Options


@dataclass(frozen=True)
class Options(CheckedOptions):
    preset: str = opt("a", "defaults of the rest")
    rate: float = opt(0.5, "a rate", within="(0, 1]")
    count: int = opt(3, "100% of a count", within="[1, inf)", free=True)
    name: str | None = opt(None, "a name")
    fast: bool = opt(False, "whether to hurry", group="more")
    colour: str = opt("red", "a colour", ("red", "green"))
    lambda_: float | None = opt(None, "a word of Python's", within="[-1, 1)")


PRESETS = {"a": {}, "b": {"rate": 0.25, "fast": True}}


def test_flags_stand_over_the_config_over_the_run_over_the_preset_over_the_defaults(tmp_path):
    config = tmp_path / "c.json"
    config.write_text('{"rate": 0.3, "colour": "green", "preset": "b"}')

    def parse(*argv, **saved):
        return parse_options(Options, list(map(str, argv)), presets=PRESETS, saved=saved)

    assert parse() == Options() and parse("--preset", "b") == Options("b", 0.25, fast=True)
    assert parse("--config", config) == Options("b", 0.3, fast=True, colour="green")
    assert parse("--config", config, "--rate", 1, "--no-fast") == Options("b", 1.0, colour="green")
    assert parse("--config", config, preset="a", rate=0.9, count=7).rate == 0.3
    assert parse(preset="b", count=7, unknown=1) == Options("b", 0.25, 7, fast=True)
    assert parse("--lambda", "-0.5").lambda_ == -0.5 and parse("--lambda=-1").lambda_ == -1.0
    config.write_text(json.dumps({"options": dataclasses.asdict(Options(count=9)), "start": None}))
    assert parse("--config", config).count == 9  # the config.json of a run folder


@pytest.mark.parametrize(
    "bad",
    [{"rate": 0.0}, {"rate": 1.1}, {"rate": float("nan")}, {"rate": "1"}, {"rate": True}, {"rate": None}, {"count": 0},
     {"count": 1.0}, {"count": True}, {"name": 3}, {"fast": 1}, {"fast": "yes"}, {"colour": "blue"}, {"colour": None},
     {"lambda_": 1.0}, {"lambda_": float("inf")}],
)  # fmt: skip
def test_options_are_checked_wherever_they_are_made(bad, tmp_path):
    """In Python, from a config file, and (where argparse lets such a value through) from a flag."""
    (name, value) = next(iter(bad.items()))
    with pytest.raises(UserError, match="--" + name.rstrip("_")):
        Options(**bad)
    path = tmp_path / "c.json"
    path.write_text(json.dumps(bad))
    with pytest.raises(UserError, match=str(path)):
        parse_options(Options, ["--config", str(path)], presets=PRESETS)
    if not isinstance(value, bool) and name != "fast" and (name, value) not in (("rate", "1"), ("name", 3)):
        with pytest.raises(UserError, match="--" + name.rstrip("_")):
            parse_options(Options, [f"--{name.rstrip('_')}", str(value)], presets=PRESETS)


@given(
    st.floats(allow_nan=True),
    st.sampled_from(["[0, 1]", "(0, 1]", "[0, 1)", "(-1, inf)", "[0, inf)", "[2, 5]"]),
)
def test_an_interval_is_what_mathematics_says(value, interval):
    low, high = map(float, interval[1:-1].split(","))
    expected = (
        low <= value <= high
        and (value != low or interval[0] == "[")
        and (value != high or interval[-1] == "]")
    )
    assert inside(value, interval) == expected


def test_unknown_flags_abbreviations_and_presets_are_refused():
    for argv in (
        ["--rat", "1"],
        ["--count"],
        ["stray"],
        ["--preset", "c"],
        ["--colour", "Red"],
        ["--fast=1"],
    ):
        with pytest.raises(UserError):
            parse_options(Options, argv, presets=PRESETS)


def test_help_and_printed_options(capsys):
    for flag in ("--help", "--print-config"):
        with pytest.raises(SystemExit) as stop:
            parse_options(Options, ["--rate", "0.125", flag], presets=PRESETS)
        assert not stop.value.code
        out = capsys.readouterr().out
        assert (
            "100% of a count, at least 1 [3]" in out if flag == "--help" else json.loads(out)["rate"] == 0.125
        )


def test_values_without_a_flag_are_joined():
    assert (
        parse_options(Options, ["a=x", "y", "--rate", "1"], presets=PRESETS, positional="name").name
        == "a=x,y"
    )
    assert parse_options(Options, [], presets=PRESETS, positional="name").name is None


def test_exit_codes(capsys):
    def fails(error):
        def main():
            raise error

        return main

    for main, code, words in (
        (lambda: None, 0, ""), (lambda: 75, 75, ""), (fails(UserError("no x")), 2, "error: no x\n"),
        (fails(OSError(28, "No space left on device", "out/a")), 2, "error: out/a: No space left on device\n"),
        (fails(OSError(28, "No space left on device")), 2, "error: output: No space left on device\n"),
        (fails(KeyboardInterrupt()), 130, "interrupted\n"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            run_script(main)
        assert (stop.value.code or 0) == code and capsys.readouterr().err == words
    with pytest.raises(ZeroDivisionError):  # a mistake of ours is not dressed up
        run_script(lambda: 1 / 0)


def test_streams_of_random_numbers_are_apart():
    """Every seed, purpose and step has a key of its own; equal parts have equal keys, in any process."""
    keys = {
        stream_key(seed, purpose, step)
        for seed in range(20) for purpose in ("rollout", "select", "step") for step in range(50)
    }  # fmt: skip
    assert len(keys) == 20 * 3 * 50 and all(0 <= key < 2**64 for key in keys)
    assert stream_key(0, "rollout", 5) == 16279771708447465294
    assert stream_key(1, 23) != stream_key(12, 3) and stream_key("1") != stream_key(1)


def test_files(tmp_path, monkeypatch):
    path = tmp_path / "below" / "a.txt"
    write_atomic(path, "ä")
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff" and [p.name for p in path.parent.iterdir()] == ["a.txt"]
    for content, words in (
        (b'{"a": 1}\n\n[2]\n', "line 3"),
        (b'{"a": 1}\n{', "line 2"),
        (b"\xff", "not UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            list(read_jsonl(path))
    path.write_bytes(
        b'{"a": "\xe2\x80\xa8"}\n\n{"b": 2}'
    )  # a line separator of Unicode ends no line of JSONL
    assert list(read_jsonl(path)) == [(1, {"a": "\u2028"}), (3, {"b": 2})]
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n')  # as some editors begin a file
    assert list(read_jsonl(path)) == [(1, {"a": 1})] and read_json(path) == {"a": 1}
    with pytest.raises(UserError, match=r"'\.' is the name of no file"):
        write_atomic("", "x")
    for bad in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="cannot read"):
            read_json(bad)
        with pytest.raises(UserError, match="cannot read"):
            list(read_jsonl(bad))


def test_what_a_terminal_would_obey_is_escaped():
    assert printable("a\x1b[2J\x07\ud800\x9b\nb\tä") == "a\\x1b[2J\\x07\\ud800\\x9b\nb\tä"


# ------------------------------------------------------------------------------------------------------------
# The run folder


def options(path, **more):
    return train_pretrain.Options(out=str(path), **more)


def run_of(path, **more):
    return Run(options(path, **more), Processes(CPU))


def test_a_folder_has_one_owner_and_says_what_was_run(tmp_path):
    path = tmp_path / "a" / "run"
    with own_folder(options(path, lr=0.5), "hash"):
        assert read_json(path / "config.json") == {
            "options": dataclasses.asdict(options(path, lr=0.5)), "start": "hash", "inputs": {}, "code": code_hash()}  # fmt: skip
        with pytest.raises(UserError, match="another process is writing"), own_folder(options(path)):
            pass
    for start in (None, "hash"):  # None: what it was started from is gone
        with own_folder(options(path), start):
            pass
    with pytest.raises(UserError, match="other weights"), own_folder(options(path), "other"):
        pass
    with own_folder(options(path)):  # and none of these still holds it
        pass


def test_a_folder_is_whole_or_not_there(tmp_path):
    path = tmp_path / "step_0000001"
    write_folder(path, {"a": b"1", "b": b""})
    assert damage(path) is None and newest_folder(tmp_path) == path
    write_folder(path, {"a": b"2"})  # the same step again
    assert {p.name for p in path.iterdir()} == {"a", "manifest.json"} and (path / "a").read_bytes() == b"2"
    (path / "a").write_bytes(b"3")
    assert "a is not what" in damage(path) and newest_folder(tmp_path) is None
    (path / "a").unlink()
    assert "a: No such file" in damage(path)
    for content in ("{}", "[]", "{", "3", '{"a": 1}', '{"..": "x"}'):
        (path / "manifest.json").write_text(content)
        assert damage(path)


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    run = run_of(tmp_path, keep=2)
    for step, score in enumerate([0.1, 0.9, 0.2, 0.9, 0.3, 0.4, 0.5]):
        run.save(step, {"weights.pt": b"x"})
        assert os.readlink(tmp_path / "latest") == f"step_{step:07d}"
        run.rate(step, score)
    assert os.readlink(tmp_path / "best") == "step_0000003"  # of equals the later
    assert [int(path.name[5:]) for path in step_folders(tmp_path)] == [3, 5, 6]
    (tmp_path / "first").mkdir()
    first = run_of(tmp_path / "first", keep=1)
    first.keep_first = True
    for step in range(4):
        first.save(step, {"weights.pt": b"x"})
    assert [int(path.name[5:]) for path in step_folders(tmp_path / "first")] == [0, 3]


@pytest.mark.parametrize("windows", [False, True])
def test_where_there_are_no_links_a_file_names_the_checkpoint(tmp_path, monkeypatch, windows):
    """On exFAT a link is refused, on Windows none is made; what is kept, and what is found, is the same."""

    def refuse(path, target):
        assert not windows
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(runs, "WINDOWS", windows)
    run = run_of(tmp_path, keep=1)
    for step, score in enumerate([0.1, 0.9, 0.2, 0.3]):
        run.save(step, {"weights.pt": b"%d" % step})
        assert (tmp_path / "latest").read_text() == f"step_{step:07d}"
        run.rate(step, score)
    assert [int(path.name[5:]) for path in step_folders(tmp_path)] == [1, 3]
    for name, step in (("best", 1), ("latest", 3)):
        assert not (tmp_path / name).is_symlink()
        assert follow(tmp_path / name) == (tmp_path / f"step_{step:07d}").resolve()
        assert weights_hash(tmp_path / name) == content_hash(b"%d" % step)
    assert weights_hash(tmp_path / "worst") is None


def test_logs_are_cut_back_to_the_checkpoint(tmp_path):
    """To where they were when it was saved; to where they were after its evaluation, if there was one."""
    for rated in (False, True):
        path = tmp_path / str(rated)
        with run_of(path) as run:
            run.log(1, {"train/loss": 0.123456789})
            run.save(1, {"weights.pt": b"x"})
            run.log(1, {"eval/nll": 1})
            run.append("samples.txt", "ä")
            if rated:
                run.rate(1, 0.5)
            run.log(2, {"train/loss": 1.0})
            run.append("metrics.jsonl", '{"half')
        run = run_of(path, resume=True)
        assert run.rated == rated
        with run:
            lines = [line for _, line in read_jsonl(path / "metrics.jsonl")]
        assert [line["step"] for line in lines] == [1, 1][: 1 + rated] and lines[0]["train/loss"] == 0.123457
        assert (path / "samples.txt").read_text(encoding="utf-8") == "ä" * rated


def test_a_link_to_itself_is_no_checkpoint(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with suppress(UserError):  # of Pythons before 3.13; later ones leave it as it is
        assert not follow(tmp_path / "loop").is_dir()


def test_a_file_of_the_last_steps(tmp_path):
    """Steps beyond the one that is written, of a run that was killed, go; and what is older than the bound."""
    run = run_of(tmp_path)

    def steps():
        return [(line["step"], line["a"]) for _, line in read_jsonl(tmp_path / "x.jsonl")]

    for step in (1, 2, 3):
        run.keep_last("x.jsonl", step, 2, [{"a": step}, {"a": -step}])
    assert steps() == [(2, 2), (2, -2), (3, 3), (3, -3)]
    run.keep_last("x.jsonl", 3, 2, [{"a": 5}])
    run.keep_last("x.jsonl", 2, 2, [{"a": 6}])
    assert steps() == [(2, 6)]
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n')  # of whatever step
    run.keep_last("x.jsonl", 3, 2, [{"a": 7}])
    assert steps() == [(3, 7)]


class Clock:
    """time.perf_counter, that tests move."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_how_long_threads_spin_is_set_before_torch_is_there():
    """OpenMP reads it when torch is imported; what the user has set stands."""
    code = "import sys, os, lab.device; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    for own, want in ((None, "2000 True"), ("7", "7 True")):
        env = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
        env |= {"GOMP_SPINCOUNT": own} if own else {}
        out = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)
        assert out.stdout.strip() == want
    for path in ROOT.glob("*.py"):
        names = re.findall(r"^(?:import|from) (\w+)", path.read_text(), re.MULTILINE)
        assert "torch" not in names or "lab" in names[: names.index("torch")], path


def test_progress_without_a_terminal(monkeypatch, capsys):
    """A line after the first step and then every 30 seconds; the rate is a recent one; a quiet one says nothing."""
    clock = Clock()
    monkeypatch.setattr("lab.runs.time.perf_counter", clock)
    progress, quiet, rates = Progress("run", 5, 105, True), Progress("run", 5, 105, False), []
    clock.now += 500  # an evaluation before the first step says nothing of the time left, nor does that step
    for i in range(100):
        clock.now += 1.0 + 9.0 * (i == 50)  # an evaluation
        rates.append(progress.update(1000 if i < 50 else 3000, 1.0, {"loss": f"{i}"}))
        quiet.update(1, 1.0, {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run: step 6 of 105, 1,000 tokens/s, loss 0" and len(lines) == 4
    assert lines[1] == "run: step 36 of 105, 1,000 tokens/s, loss 30, 01:09 left"
    assert (
        rates[49] == pytest.approx(1000)
        and 1000 < rates[51] < 3000
        and rates[-1] == pytest.approx(3000, rel=0.02)
    )


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for terminal in (False, True):  # where the bar would go
        monkeypatch.setattr("sys.stderr.isatty", partial(bool, terminal))
        with Progress("run", 0, 3, True) as progress:
            progress.update(10, 0.5, {"loss": "1.5"})
            progress.bar.refresh()
        out = capsys.readouterr()
        assert ("20 tokens/s, loss 1.5" in out.err) == terminal and (out.out == "") == terminal
        assert ("\r" in out.err) == terminal


def test_progress_of_what_is_a_part_or_was_done_before(monkeypatch, capsys):
    """A part says nothing for 30 seconds; what was done before says nothing of the pace; `left` may be known."""
    clock = Clock()
    monkeypatch.setattr("lab.runs.time.perf_counter", clock)
    part, rest, known = (
        Progress(name, 0, 100, True, "sample", part=name == "part") for name in ("part", "rest", "known")
    )
    rest.skip(60)
    known.advance(0, "2.00 h left")
    assert capsys.readouterr().out == "known: sample 0 of 100, 2.00 h left\n"
    clock.now += 20
    part.advance(10)
    rest.words = "base op 2"
    rest.advance(0)
    rest.advance(20)
    assert capsys.readouterr().out == "rest: sample 80 of 100, base op 2\n"  # too early to say for how long
    clock.now += 20
    part.advance(10)
    rest.advance(10)
    assert capsys.readouterr().out == "part: sample 20 of 100, 02:40 left\n"
    clock.now += 20
    rest.advance(0)
    assert capsys.readouterr().out == "rest: sample 90 of 100, base op 2, 00:20 left\n"


def test_a_run_folder_means_its_latest_checkpoint(tmp_path):
    run = run_of(tmp_path)
    assert checkpoint_folder(tmp_path) == tmp_path  # it has none
    run.save(3, {"weights.pt": b"x"})
    assert checkpoint_folder(tmp_path).resolve() == tmp_path / "step_0000003"
    assert checkpoint_folder(tmp_path / "latest") == tmp_path / "latest"


def test_signals_are_taken_while_a_run_is_open_only(tmp_path):
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with run_of(tmp_path) as run:
        assert not run.should_stop()
        signal.raise_signal(signal.SIGTERM)
        assert run.should_stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def test_what_may_differ_when_a_run_is_resumed(tmp_path):
    """Each free option, and no other; one that grows may be larger."""
    base = train_pretrain.Options
    with own_folder(options(tmp_path)):
        pass
    other = {
        "preset": "small", "threads": 7, "attention": "reference", "device": "cpu", "dry_run": True, "keep": 9, "replicas": 3}  # fmt: skip
    for field in dataclasses.fields(base):
        if field.name in ("out", "resume", "resume_or_start", "init_from", "replay", "tokenizer", "data"):
            continue
        value = other.get(field.name, field.default)
        if value == field.default and isinstance(value, bool):
            value = not value
        elif value == field.default and field.metadata["choices"]:
            value = next(choice for choice in field.metadata["choices"] if choice != value)
        elif value == field.default and isinstance(value, (int, float)):
            value = value / 2 or 0.5 if isinstance(value, float) else value * 2 if value > 1 else 1 - value
        elif value == field.default:
            value += " "
        name = "--" + field.name.replace("_", "-")
        flags = (
            [name if value else name.replace("--", "--no-", 1)]
            if isinstance(value, bool)
            else [name, str(value)]
        )
        argv = ["--out", str(tmp_path), "--resume", *flags]
        if field.metadata["free"] or field.metadata["grows"]:
            assert getattr(parse_run_options(base, argv, train_pretrain.PRESETS, ""), field.name) == value
        else:
            with pytest.raises(UserError, match=rf"{name} |--min-lr|--lr"):
                parse_run_options(base, argv, train_pretrain.PRESETS, "")


# ------------------------------------------------------------------------------------------------------------
# Devices, processes, costs


def test_a_device_that_is_not_here_is_refused_not_replaced(capsys):
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for name in here:
        if not here[name]:
            with pytest.raises(UserError, match=name):
                setup(DeviceOptions(device=name))
    threads = torch.get_num_threads()
    try:
        assert setup(DeviceOptions(device="cpu", threads=1, seed=7)) == CPU
        assert torch.get_num_threads() == 1 and torch.initial_seed() == 7
    finally:
        torch.set_num_threads(threads)
    assert len(capsys.readouterr().out.splitlines()) == 1
    for bad in (
        {"threads": 257},
        {"threads": -1},
        {"seed": -1},
        {"seed": 2**32},
        {"device": "tpu"},
        {"dtype": "fp8"},
    ):
        with pytest.raises(UserError):
            DeviceOptions(**bad)


def test_number_formats():
    cuda = torch.device("cuda")
    found = [
        compute_dtype(name, device) for name in ("auto", "bfloat16", "float32") for device in (CPU, cuda)
    ]
    assert found == [
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
        torch.float32,
    ]


@given(st.integers(0, 100), st.integers(1, 20))
def test_parts_of_processes_are_the_whole(n, size):
    one, parts = Processes(CPU), []
    one.size = size
    for one.rank in range(size):
        parts.append(one.share(n))
    assert [i for part in parts for i in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_sums_and_agrees_with_itself():
    one = Processes(CPU)
    assert one.first and one.sum([True, 2]) == [1.0, 2.0] and one.gather("x") == ["x"]
    one.agree(("a", 1), "thing")
    one.gather = lambda value: [value, value, "other"]
    with pytest.raises(UserError, match="do not see the same thing"):
        one.agree("x", "thing")
    layer = torch.nn.Linear(2, 2)
    layer.weight.grad = torch.ones(2, 2)
    one.sum_gradients(layer)  # what had no gradient has one of 0
    assert (layer.weight.grad == 1).all() and (layer.bias.grad == 0).all()


def tiny():
    it = model.Qwen2(model.ModelConfig(40, 32, 64, 2, 4, 2, 256))
    it.compute_dtype, (it.backend, _) = torch.float32, choose("sdpa", CPU, 8)
    return it


def test_the_memory_of_a_micro_batch_is_counted_not_guessed():
    """A straight line through two short rows: what autograd really keeps of a longer one is on it."""
    it, kept = tiny(), {}
    weights = {p.untyped_storage().data_ptr() for p in it.parameters()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    rows = torch.zeros(3, 200, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = it(rows, targets=rows, loss_only=True)[1]
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert loss.requires_grad and kept_for_backward(it, 600) == pytest.approx(real, rel=0.05)


def test_weights_are_no_memory_of_a_micro_batch():
    """Autograd keeps transposed views of them: what is kept of two tokens is far less than they."""
    it = model.Qwen2(model.ModelConfig(40, 256, 512, 1, 2, 2, 256))
    n, C = it.num_parameters(), 256
    assert kept_for_backward(it, 2) < 4 * n / 10 and kept_for_backward(it, 400) > 400 * C * 4 * 8
    assert count_memory(it, 2) == (16 * n, kept_for_backward(it, 2))
    assert count_memory(it, 2, copies=2)[0] == 24 * n  # a reference, say, and a second replica's gradients


def test_cost_in_words(capsys, monkeypatch):
    assert matmul_rate(CPU, torch.float32, 32) > 1e6
    monkeypatch.setattr("lab.cost.matmul_rate", lambda device, dtype: 1e9)
    it, n = tiny(), tiny().num_parameters()
    describe_cost([it], None, steps=10, tokens=5000, rows=2, row_tokens=100, document=50, passes=3)
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines() if line[0] != " ")
    assert lines["parameters"].startswith(f"{n:,} (") and lines["tokens"] == "5,000 in 10 steps"
    gib = sum(count_memory(it, 200)) / 2**30
    assert float(lines["memory"].split()[1]) == pytest.approx(gib, abs=0.01)
    assert float(lines["FLOPs"]) == pytest.approx(3 * 5000 * (2 * n + 2 * 2 * 32 * 50), rel=0.01)


def test_a_closed_stdout_is_one_line():
    """For every script: run_script looks before main() does."""
    command = ["sh", "-c", '"$@" >&-', "sh", sys.executable, str(ROOT / "datagen.py")]
    out = subprocess.run(command, stderr=subprocess.PIPE, timeout=60)
    assert out.returncode == 2 and out.stderr.count(b"\n") == 1 and b"stdout" in out.stderr


def test_several_may_write_a_file_at_once(tmp_path):
    """Two runners that see a stage end both keep its result."""
    path, errors = tmp_path / "result.json", []

    def write(content):
        try:
            for _ in range(300):
                write_atomic(path, content)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter * 4000,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and path.read_text() in {letter * 4000 for letter in "abcd"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]

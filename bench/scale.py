"""How cost grows with width, layers, row length, group, prompts and completion length; and to more machines.

    python bench/scale.py

One factor at a time around the tiny preset, in one replica. Each size is trained in a process of its own,
which first trains a far smaller one, so that what torch loads is not counted. `tensors` is how far its
resident memory rises while every large allocation has pages of its own, which return when it is freed:
weights, gradients, moments, and all that a step holds at once. `resident` is the same as runs allocate
(lab.device.setup), in a heap: what glibc cannot use again is in it too. `estimate` is that of
lab/cost.py, which `--dry-run` prints. In GRPO no token stops, so each solution is as long as it may be. Of each
factor the exponent of a fit in logarithms is printed, and how far the logarithms are from it.

Where one machine ends. Memory: no file here splits a model, so weights, gradients, moments and a micro-batch of
one row must fit one device. Time: several processes share a step's rows, and each sends its gradients once a
step, by a ring: 2(p − 1)/p · 4 bytes a parameter for p processes. On every node of, say, four with eight GPUs,

    torchrun --nnodes 4 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 \\
        train_pretrain.py --preset paper --out /shared/base

computes what one process would, as long as --out is a folder that all nodes see. Arms and seeds of a study
need no such network: each is a run of its own, and a Slurm array starts them (an exit code of 75: stopped
before the end, submit it again):

    sbatch --array 0-9 --wrap 'python train_pretrain.py --seed $SLURM_ARRAY_TASK_ID \\
        --out /shared/base_$SLURM_ARRAY_TASK_ID --resume-or-start'
"""

import contextlib
import io
import json
import os
import re
import socket
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from ctypes import CDLL
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise, product
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lab.cost import EXPECTED, count_flops, count_memory, matmul_rate
from lab.device import DeviceOptions, Processes, run_torch_script, setup
from lab.options import UserError, flag, opt, parse_options, write_atomic

import numpy as np
import torch

import train_grpo
from checkpoint import save_checkpoint
from datagen import Mixture
from train_pretrain import PRESETS, Pretraining, train_tokenizer
from train_pretrain import Options as PretrainOptions

M_MMAP_THRESHOLD, MIB, WARM_UP = -3, 2**20, 2
SIZES = ("hidden_size", "layers", "row_tokens")
MEASURED = ("seconds", "tokens/s", "estimate MiB", "tensors MiB", "resident MiB")
GRPO_BASE = dict(group=8, prompts=8, max_new_tokens=64)
PARTS = ("sample", "update")  # of a GRPO step
WAYS = (("1 process", 1, 1), ("1 process, 2 replicas", 2, 1), ("2 processes", 1, 2))  # replicas, processes


@dataclass(frozen=True)
class Options(DeviceOptions):
    hidden_size: str = opt("64,256,384", "model widths C, besides the preset's", group="measurement")
    layers: str = opt("2,8", "numbers of layers")
    row_tokens: str = opt("384,1536,3072", "tokens of a row")
    group: str = opt("4,16", "GRPO: samples of a prompt, besides 8")
    prompts: str = opt("4,16", "GRPO: prompts, besides 8")
    max_new_tokens: str = opt("32,128", "GRPO: tokens of a solution, besides 64")
    steps: int = opt(5, "steps of a measurement, of which the median counts", within="[1, inf)")
    json: str | None = opt(None, "write the numbers here too")


# ------------------------------------------------------------------------------------------------------------
# Sizes and lines


def around(o, base):
    """The base, {name: value}, then each with one factor changed to a value that the options name → dicts."""
    sizes = [base]
    for name, text in ((name, getattr(o, name)) for name in base):
        if not re.fullmatch(r"\d+(,\d+)*", text) or {int(n) for n in text.split(",")} <= {base[name]}:
            raise UserError(
                f"{flag(name)} must be a list like 2,8 of other values than {base[name]}, not {text!r}"
            )
        sizes += [{**base, name: int(n)} for n in text.split(",") if int(n) != base[name]]
    return sizes


def exponent(x, y):
    """Least squares of log y over log x → (the exponent of x, root mean square of what it misses in log y)."""
    x, y = np.log(x), np.log(y)
    slope, constant = np.polyfit(x, y, 1)
    return float(slope), float(np.mean((constant + slope * x - y) ** 2) ** 0.5)


def straight(x, y):
    """Least squares of y = constant + slope · x, in relative errors → (constant, slope, their root mean square)."""
    x, y = np.array(x, float), np.array(y, float)
    slope, constant = np.polyfit(x, y, 1, w=1 / y)
    return float(constant), float(slope), float(np.mean(((constant + slope * x) / y - 1) ** 2) ** 0.5)


def bytes_sent(parameters, processes):
    """Bytes that each process sends a step when all sum their fp32 gradients around a ring."""
    return 2 * (processes - 1) * 4 * parameters // processes


# ------------------------------------------------------------------------------------------------------------
# Measurements


def fresh(work, *arguments, processes=1):
    """work(*arguments) in so many new processes, with what torchrun would tell them → rank 0's result."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        world = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(s.getsockname()[1]), WORLD_SIZE=str(processes))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        places = [{**world, "RANK": str(rank)} for rank in range(processes)]
        results = [pool.submit(as_rank, place, work, *arguments) for place in places]
        return results[0].result()


def as_rank(place, work, *arguments):
    os.environ.update(place)
    with contextlib.redirect_stdout(io.StringIO()):  # the banner
        return work(*arguments)


def resident_memory(peak):
    """MiB of this process now, or at most since the last such call without peak."""
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes VmRSS
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def measure_training(p, steps):
    """Median seconds of a step of train_pretrain.py with these options, its FLOPs, and peak memory."""
    device = setup(p)
    processes = Processes(device)
    small = dict(hidden_size=16, heads=2, kv_heads=2, intermediate_size=16, layers=1)
    Pretraining(replace(p, **small), device, processes).take_step()
    CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)  # pages of their own for 64 KiB and more
    before = resident_memory(peak=False)
    run = Pretraining(p, device, processes)
    run.batches = iter(list(islice(run.batches, 2 * WARM_UP + steps)))  # drawn before the clock runs
    for _ in range(WARM_UP):
        run.take_step()
    tensors = resident_memory(peak=True) - before
    setup(p)  # which has glibc keep what is freed, in its heap
    resident_memory(peak=False)
    clock = [time.perf_counter()]
    for _ in range(WARM_UP + steps):
        run.take_step()
        clock.append(time.perf_counter())
    resident = resident_memory(peak=True) - before
    if processes.size > 1:
        processes.wait()
        torch.distributed.destroy_process_group()
    seconds = statistics.median(b - a for a, b in pairwise(clock[WARM_UP:]))
    found = {name: getattr(p, name) for name in SIZES} | expected(run, run.step_tokens)
    found |= {"seconds": seconds, "tokens/s": run.step_tokens / seconds}
    return {**found, "tensors MiB": tensors, "resident MiB": resident}


def expected(run, tokens):
    """What lab/cost.py says of a training run over so many tokens: FLOPs, and memory of a process."""
    work, model = run.work(), run.model
    at_once = work["rows"] * run.o.row_tokens
    flops = count_flops(model, tokens, work["document"], work["passes"])
    found = {"parameters": model.num_parameters(), "micro_batches": tokens // at_once, "flops": flops}
    return {**found, "estimate MiB": sum(count_memory(model, at_once)) / MIB}


def measure_grpo(p, sizes, steps):
    """Median seconds of sampling and of an update at each of the sizes, of an untrained model."""
    device, rows = setup(p), []
    base = Pretraining(p, device, Processes(device))
    given = {name: getattr(p, name) for name in (*asdict(DeviceOptions()), "eval_problems")}
    given |= {"kl": 1e-3}  # so that solutions of advantage 0, as all of these are, are computed
    with tempfile.TemporaryDirectory() as folder:
        given["init_from"] = folder + "/start"
        save_checkpoint(folder + "/start", base.model, base.tokenizer, {}, {"step": 0})
        for size in sizes:
            given |= {**size, "minibatch": size["prompts"]}
            o = train_grpo.Options(**{**train_grpo.PRESETS["tiny"], **given})
            run = train_grpo.GRPO(o, device, Processes(device))
            run.tokenizer.eos_id = -1  # no token stops
            taken = [run.take_step()[0] for _ in range(1 + steps)][1:]
            medians = {part: statistics.median(t[f"time/{part}"] for t in taken) for part in PARTS}
            rows.append({**size, **medians})
    return rows


# ------------------------------------------------------------------------------------------------------------
# What is printed


def report(rows, names, measured, fitted):
    """A row a size, then how each factor counts → {"seconds over layers": (exponent, residual)}."""
    print("".join(f"{name:>16}" for name in (*names, *measured)))
    for row in rows:
        values = (round(row[name], 3 if row[name] < 100 else None) for name in (*names, *measured))
        print("".join(f"{value:>16,}" for value in values))
    found = {}
    for name, y in product(names, fitted):
        some = [row for row in rows if all(row[n] == rows[0][n] for n in names if n != name)]
        found[f"{y} over {name}"] = power, off = exponent(*zip(*((row[name], row[y]) for row in some)))
        print(f"{y:>16} ~ {name}^{power:.2f} (± {off:.0%})")
    return found


def report_paper(run, rows):
    """Straight lines over all training rows, of time and of memory, and where they put the paper preset."""
    micro = [(row["flops"] / row["micro_batches"], row["seconds"] / row["micro_batches"]) for row in rows]
    constant, slope, off = straight(*zip(*micro))
    print(f"\na micro-batch takes {constant:.2g} s + FLOPs / {1 / slope / 1e9:.1f} GFLOP/s (± {off:.0%})")
    fixed, factor, off = straight(*zip(*((row["estimate MiB"], row["tensors MiB"]) for row in rows)))
    print(f"tensors take {fixed:.1f} MiB + {factor:.2f} x the estimate (± {off:.0%})")
    most, paper = max(rows, key=lambda row: row["estimate MiB"]), expected(run, run.mixture.tokens)
    ratio, flops, estimate = most["tensors MiB"] / most["estimate MiB"], paper["flops"], paper["estimate MiB"]
    verdict = "within 25%" if abs(ratio - 1) <= 0.25 else "NOT within 25%: lab/cost.py is wrong here"
    print(f"tensors of the largest size: {ratio:.2f} of the estimate, {verdict}")
    print(f"\nthe paper preset, {paper['parameters']:,} parameters and {flops:.3g} FLOPs, on this machine:")
    rate, seconds = matmul_rate(run.device, run.model.compute_dtype), constant * paper["micro_batches"]
    found = {"by these lines": (seconds + slope * flops, fixed + factor * estimate)}
    found["--dry-run"] = flops / (EXPECTED * rate), estimate
    for name, (seconds, mib) in found.items():
        print(
            f"{name:16}{seconds / 3600:,.0f} hours, {flops / seconds / rate:.0%} of the matmul rate", end=""
        )
        print(f"; {mib / 1024:.1f} GiB of tensors")
    print(f"each of 32 processes would send {bytes_sent(paper['parameters'], 32) / MIB:,.0f} MiB a step")
    return {"ratio": ratio, "seconds": (constant, slope), "tensors": (fixed, factor), **found}


def report_processes(tiny, steps):
    """The base step by one process, by one with two replicas, by two; a thread for each → {way: tokens/s}."""
    print("\nthe same step, one thread for each replica or process")
    rates = {}
    for name, replicas, processes in WAYS:
        p = replace(tiny, threads=replicas, replicas=replicas)
        row = fresh(measure_training, p, steps, processes=processes)
        rates[name] = row["tokens/s"]
        print(f"{name:24}{rates[name]:10,.0f} tokens/s{rates[name] / rates['1 process']:8.2f}")
    n = row["parameters"]
    print(f"each of 2 sends {bytes_sent(n, 2) / MIB:.1f} MiB a step: 2(p - 1)/p x 4 bytes x {n:,} parameters")
    return rates


def resized(p, hidden_size, **others):
    """The options at another size: heads stay as wide, the MLP in proportion."""
    names, by = ("heads", "kv_heads", "intermediate_size"), hidden_size / p.hidden_size
    parts = {name: max(1, round(by * getattr(p, name))) for name in names}
    return replace(p, hidden_size=hidden_size, **parts, **others)


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__)
    device = setup(o)
    if device.type != "cpu" or not Path("/proc/self/clear_refs").exists():
        raise UserError("peak memory is read from Linux's /proc: choose --device cpu there")
    given = {**{name: getattr(o, name) for name in asdict(DeviceOptions())}, "replicas": 1, "device": "cpu"}
    given |= dict(workers=0, eval_problems=1)
    tiny, paper = (PretrainOptions(**{**PRESETS[n], **given, "preset": n}) for n in ("tiny", "paper"))
    sizes, grpo_sizes = around(o, {name: getattr(tiny, name) for name in SIZES}), around(o, GRPO_BASE)
    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/tokenizer.json"
        train_tokenizer(Mixture.parse(tiny.mixture), (), tiny.vocab_size, o.seed).save(path)
        tiny = replace(tiny, tokenizer=path)
        rows = [fresh(measure_training, resized(tiny, **size), o.steps) for size in sizes]
        found = report(rows, SIZES, MEASURED, ("seconds", "tensors MiB"))
        print("\nGRPO, seconds of a step's two parts")
        grpo = fresh(measure_grpo, tiny, grpo_sizes, o.steps)
        found |= report(grpo, tuple(GRPO_BASE), PARTS, PARTS)
        rates = report_processes(tiny, o.steps)
    paper = report_paper(Pretraining(paper, device, Processes(device)), rows)
    if o.json:
        out = {"training": rows, "grpo": grpo, "exponents": found, "tokens/s": rates, "paper": paper}
        write_atomic(o.json, json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    run_torch_script(main)

"""What the training and evaluation scripts share: presets, device, seeding, metrics, checkpoints."""

import ctypes
import dataclasses
import errno
import io
import json
import math
import os
import platform
import shutil
import signal
import sys
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import cli
import data
import sampler
import verify
from attention import choose
from model import ModelConfig, Qwen2
from tokenizer import Tokenizer

# ----------------------------------------------------------------------------------------------------------------------
# Presets: for each, the fields of ModelConfig and of each script's Options that differ from the defaults.

TINY_WORLD = "template zoo; mode forward; distractors 2-4; literals 1-9; bound 99; letters ordered"
PRESETS = {
    "tiny": {
        "pretrain": {
            "mixture": f"op 2-4; {TINY_WORLD}; tokens 9M", "solution_only": True, "vocab_size": 600,
            "hidden_size": 128, "layers": 4, "heads": 4, "kv_heads": 4,
            "local_heads": True, "intermediate_size": 384, "context": 1024,
            "rows": 1, "row_tokens": 1536, "optimizer": "muon", "lr": 1e-3, "min_lr": 1e-4, "muon_lr": 0.003, "warmup": 0.02,
            "eval_every": 1000,
        },
        "grpo": {
            "mixture": f"op 5-6; {TINY_WORLD}", "steps": 32, "prompts": 32, "group": 8, "minibatch": 16, "max_new_tokens": 200,
            "lr": 1e-4, "row_tokens": 1536, "micro_batch_size": 8, "sample_rows": 256,
        },
        "evaluate": {
            "mixture": f"op 2-8; {TINY_WORLD}", "bands": "id=2-4,edge=5-6,hard=7-8", "problems": 100, "samples": 8, "k": "1,8",
            "max_new_tokens": 256, "sample_rows": 256,
        },
    },
    "small": {
        "pretrain": {
            "mixture": "op 2-10; template zoo, school, festival; tokens 500M", "hidden_size": 512, "layers": 6, "heads": 8, "kv_heads": 2,
            "intermediate_size": 1536, "rows": 32, "micro_batch_size": 16, "row_tokens": 2048, "optimizer": "muon", "lr": 1e-3, "min_lr": 1e-4, "muon_lr": 5e-3,
            "local_heads": True, "solution_only": True,
        },
        "grpo": {"mixture": "op 11-14; template zoo, school, festival", "prompts": 128, "group": 8, "minibatch": 64, "lr": 1e-5},
        "evaluate": {"mixture": "op 2-20; template zoo, school, festival", "samples": 32, "k": "1,8,32"},
    },
    "paper": {
        "pretrain": {"mixture": "op 2-10; template zoo:0.99, school:0.01; tokens 10B", "micro_batch_size": 16},
        "grpo": {"mixture": "op 11-14", "sample_rows": 2048},
        "evaluate": {"sample_rows": 2048},
    },
}  # fmt: skip


def preset(script):
    """{name: {field: value}} of one script, for cli.parse_options."""
    return {name: sections[script] for name, sections in PRESETS.items()}


# ----------------------------------------------------------------------------------------------------------------------
# Device


def setup(device, seed, threads=0, attention="auto"):
    """Seed torch, choose the device ("auto": a GPU if there is one: CUDA, or Apple's), print one banner line. Returns torch.device.

    Raises UserError if a device is asked for that is not here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device not in ("cpu", "cuda", "mps"):
        raise cli.UserError(f"unknown device {device!r}: choose from auto, cpu, cuda, mps")
    if (device == "cuda" and not torch.cuda.is_available()) or (device == "mps" and not torch.backends.mps.is_available()):
        raise cli.UserError(f"device {device} was asked for, but torch sees none here; use --device cpu")
    if device == "cuda":  # one GPU for each process that torchrun starts here
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if threads:
        torch.set_num_threads(threads)
    if device == "cpu" and platform.libc_ver()[0] == "glibc":
        # Keep freed memory: giving activations back to the kernel and faulting them in again costs a tenth of a CPU training step.
        libc, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = ctypes.CDLL(None), -1, -3
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
    attention = choose(attention, torch.device(device))
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("high")
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    if os.environ.get("RANK", "0") == "0":
        print(f"device {device} ({name}), attention {attention}, torch {torch.__version__}, Python {platform.python_version()}, seed {seed}")
    return torch.device(device)


DTYPES = ("auto", "float32", "bfloat16")


def compute_dtype(name, device):
    """What the layers' matrix products are taken in: "auto" is bfloat16 on a CUDA GPU, float32 elsewhere.

    A CPU with avx512_bf16 or AMX trains half again as fast in bfloat16, but the tiny preset learns less in it (bench/RESULTS.md).
    """
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def compile_layers(model, o, device):
    """With --compile, as Qwen2.compile_layers. Raises UserError on a CPU, where documents of other lengths would be compiled anew each step."""
    if o.compile and device.type != "cuda":
        raise cli.UserError(f"--compile is for a CUDA GPU, and the device is {device.type}: leave it out")
    if o.compile:
        model.compile_layers()


def run(main):
    """cli.run, with one line for memory or disk that runs out."""

    def guarded():
        try:
            main()
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError; on a CPU it has no type of its own
            if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
                raise cli.UserError("out of memory: lower --micro-batch-size (training) or --sample-rows (sampling); results do not depend "
                                    "on them") from None  # fmt: skip
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise cli.UserError(f"cannot write ({error.strerror}): make room, then go on with --resume; no checkpoint is lost") from None
            raise
        finally:
            for bar in list(getattr(tqdm, "_instances", ())):  # so that a message begins on its own line
                bar.close()

    cli.run(guarded)


def describe_cost(model, tokens, steps, micro_batch, document, passes=3):
    """Print what a training run would take, without running it: parameters, FLOPs, memory, time on this machine.

    micro_batch: its tokens; document: tokens of one. passes: forward passes' worth of work for each token; forward and backward are 3.
    FLOPs: 2 for each pass, parameter and token, and 2·L·C·document for causal attention. Memory: fp32 weights, gradients and two moments;
    activations of 34 numbers a layer, token and unit of width (Korthikanti et al. 2022, eq. 1, without the scores), and the logits.
    """
    config, device = model.config, next(model.parameters()).device
    n, layers, width = model.num_parameters(), config.num_hidden_layers, config.hidden_size
    flops = passes * tokens * (2 * n + 2 * layers * width * document)
    state = 16 * n
    activations = 4 * micro_batch * (34 * layers * width + 2 * config.vocab_size)
    a = torch.randn(2048, 2048, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    rates = []
    for _ in range(5):
        clock = time.perf_counter()
        float((a @ a)[0, 0])
        rates.append(2 * 2048**3 / (time.perf_counter() - clock))
    seconds = flops / (0.4 * max(rates))
    print(f"parameters {n:,} ({n - model.model.embed_tokens.weight.numel():,} without the embedding)\n"
          f"tokens     {tokens:,} in {steps:,} steps\n"
          f"FLOPs      {flops:.3g}\n"
          f"memory     about {(state + activations) / 2**30:.2f} GiB ({state / 2**30:.2f} weights, gradients, moments; {activations / 2**30:.2f} activations)\n"
          f"time       about {seconds / 3600:.2f} hours at 40% of this machine's {max(rates) / 1e9:,.0f} GFLOP/s")  # fmt: skip


def to_device(batch, device):
    """numpy arrays → torch tensors on the device: tokens, doc_start int; targets int64."""
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in batch]
    if device.type == "cuda":
        tensors = [t.pin_memory().to(device, non_blocking=True) for t in tensors]
    tokens, targets, doc_start = tensors
    return tokens.long(), targets.long(), doc_start


@torch.no_grad()
def held_out_nll(model, tokenizer, problems, device, row_tokens=2048, rows=4):
    """Mean negative log-likelihood, nats per token of the solution, of each number of operations: {"2": 0.31, …}."""
    out = {}
    for op in sorted({p.op for p in problems}):
        documents = [data.encode(tokenizer, p) for p in problems if p.op == op]
        places, n = data.place([len(ids) for ids, _ in documents], row_tokens)
        batch = data.fill(documents, places, n, row_tokens, tokenizer.pad_id, solution_only=True)
        total, count = 0.0, int((batch.targets != data.IGNORE).sum())
        for i in range(0, n, rows):
            micro = data.Batch(*(a[i : i + rows] for a in batch))
            tokens, targets, doc_start = to_device(micro, device)
            total += float(model(tokens, doc_start, targets, loss_only=True)[1]) * int((micro.targets != data.IGNORE).sum())
        out[str(op)] = total / count
    return out


def solve(model, tokenizer, problems, group_size, **sampling):
    """Sample a group of solutions of each problem and judge them → prompts (ids), samples, texts, verdicts; the last three prompt-major.

    sampling: as sampler.generate's.
    """
    prompts = [tokenizer.encode(data.prompt_text(p)) for p in problems]
    samples = sampler.generate(model, prompts, group_size=group_size, stop_id=tokenizer.eos_id, **sampling)
    texts = [tokenizer.decode(ids) for ids in samples.ids]
    return prompts, samples, texts, [verify.verify(text, problems[i // group_size]) for i, text in enumerate(texts)]


# ----------------------------------------------------------------------------------------------------------------------
# Processes


class World:
    """The processes of one run, as torchrun starts them: `rank` of `size`. Gradients and counts are summed over them."""

    def __init__(self, device):
        self.rank, self.size, self.device = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), device
        if self.size > 1:
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")

    def sum(self, numbers):
        """Sum a list of numbers over the processes (fp64) → list of floats, the same in each."""
        if self.size == 1:
            return [float(n) for n in numbers]
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def sum_gradients(self, model):
        """Sum the gradients over the processes, as one flat tensor. Each process's loss is its share of one global mean."""
        if self.size == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        torch.distributed.all_reduce(flat)
        for p, g in zip(model.parameters(), flat.split([g.numel() for g in gradients])):
            p.grad = g.view_as(p)

    def close(self):
        if self.size > 1:
            torch.distributed.barrier()  # nobody leaves while another still works: the first process hosts the meeting place
            torch.distributed.destroy_process_group()


class Guard:
    """Counts steps whose loss or gradient is not finite: they are skipped, and too many in a row end the run."""

    def __init__(self, most, skipped=0, in_a_row=0):
        self.most, self.skipped, self.in_a_row = most, skipped, in_a_row

    def passes(self, step, run, *numbers):
        """Whether to take this step. Raises UserError at the last of `most` bad ones in a row."""
        if all(map(math.isfinite, numbers)):
            self.in_a_row = 0
            return True
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row >= self.most:
            raise cli.UserError(f"loss or gradient not finite {self.most} times in a row, last at step {step}: lower the learning rate "
                                f"or look at the data; the last good checkpoint is {run.newest()}")  # fmt: skip
        return False

    def state(self):
        return {"skipped": self.skipped, "skipped_in_a_row": self.in_a_row}


# ----------------------------------------------------------------------------------------------------------------------
# Runs


# What may differ when a run is resumed: it changes speed and memory, not what is computed (but for rounding).
FREE = {"out", "resume", "device", "threads", "workers", "micro_batch_size", "sample_rows", "keep", "tensorboard", "wandb", "attention", "compile", "dry_run"}


def keeps_options(o, saved, what, free=FREE):
    """Raise UserError if an option that is not in `free` differs from the saved one of what is resumed."""
    for name, value in saved.items():
        if name not in free and getattr(o, name, value) != value:
            raise cli.UserError(f"the {what} in {o.out} has --{name.replace('_', '-')} {value}, not {getattr(o, name)}: resumed, it keeps its options; "
                                "start another with another --out")  # fmt: skip


def parse(cls, script, description):
    """The options of a training script, and the checkpoint folder to go on from: with --resume those of the run in --out, if there is one.

    Raises UserError for a flag that contradicts the run that is resumed, and if none of its checkpoints is intact.
    """
    o = cli.parse_options(cls, description=description, presets=preset(script))
    path = newest_checkpoint(o.out) if o.resume else None
    if o.resume and path is None and any(Path(o.out).glob("step_???????")):
        raise cli.UserError(f"no checkpoint in {o.out} is intact: move the folder away and start again without --resume")
    if path is None:
        return o, None
    saved = json.loads((path / "config.json").read_text())["options"]
    o = cli.parse_options(cls, description=description, presets=preset(script), saved={**saved, "resume": True, "out": o.out})
    keeps_options(o, saved, "run")
    return o, path


class Run:
    """The folder of one training run: metrics.jsonl, samples.txt, checkpoints step_N, and the links `latest` and `best`.

    A checkpoint knows how long the text files were: resuming cuts them back to there, so that the record of a run is the
    same however often it was interrupted. SIGTERM and SIGINT set `stopping`; a second SIGINT interrupts at once.
    Raises UserError if the folder holds a run that is not to be resumed.
    """

    TEXTS = ("metrics.jsonl", "samples.txt")

    def __init__(self, o, world):
        self.path, self.o, self.world, self.stopping, self.sinks = Path(o.out), o, world, False, []
        if not (o.resume or o.dry_run) and (any(self.path.glob("step_*")) or any((self.path / name).exists() for name in self.TEXTS)):
            raise cli.UserError(f"{self.path} already holds a run: add --resume to continue it, or choose another --out")
        self.started = time.perf_counter()

    def open(self, checkpoint=None):
        """Begin, or go on from a checkpoint of this run; from here on a signal stops the run after the step it is in."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        if self.world.rank:
            return
        self.sinks = sinks(self.o, self.path)  # before anything is written: one may be missing
        self.path.mkdir(parents=True, exist_ok=True)
        for unfinished in self.path.glob("step_*.tmp"):
            shutil.rmtree(unfinished)
        for name in self.TEXTS:
            file, length = self.path / name, checkpoint.state["lengths"][name] if checkpoint else 0
            if file.exists() and file.stat().st_size > length:
                os.truncate(file, length)
        if checkpoint:
            print(f"resuming {self.path} at step {checkpoint.state['step']}")
            if checkpoint.state["code"] != code_hash():
                print("note: the code has changed since that checkpoint was written")

    def _stop(self, number, frame):
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        if self.world.rank == 0:
            tqdm.write(f"{signal.Signals(number).name}: finishing this step, then saving (again to stop at once)", file=sys.stderr)

    def should_stop(self):
        """Whether any process was told to stop."""
        return bool(self.world.sum([self.stopping])[0])

    def log(self, step, values):
        """Append one line to metrics.jsonl, flushed at once. What depends on the clock is under `time/`."""
        if self.world.rank == 0:
            values = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
            seconds = round(time.perf_counter() - self.started, 2)
            self.append("metrics.jsonl", json.dumps({"step": step, **values, "time/seconds": seconds}) + "\n")
            for sink in self.sinks:
                sink(step, values)

    def append(self, name, text):
        """Add to one of the text files; it is open no longer than that."""
        if self.world.rank == 0:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(text)

    def newest(self):
        return newest_checkpoint(self.path)

    def save(self, step, model, tokenizer, state, optimizers, score=None):
        """Write checkpoint step_N and point `latest` at it; `best` too if no score was higher. Old ones go, but for the last `keep`."""
        if self.world.rank:
            return
        for name in self.TEXTS:
            with (self.path / name).open("a") as file:
                os.fsync(file.fileno())
        lengths = {name: (self.path / name).stat().st_size for name in self.TEXTS}
        path = self.path / f"step_{step:07d}"
        save_checkpoint(path, model, tokenizer, self.o, {"step": step, **state, "score": score, "lengths": lengths}, optimizers)
        _link(path, "latest")
        best = self.path / "best"
        if score is not None and (not best.exists() or json.loads((best / "state.json").read_text())["score"] <= score):
            _link(path, "best")
        for old in sorted(self.path.glob("step_???????"))[: -self.o.keep]:
            if old.name not in (path.name, os.readlink(best) if best.is_symlink() else ""):
                shutil.rmtree(old)

    def stopped(self, script):
        print(f"stopped; continue with: python {script} --resume --out {self.path}")


def _link(path, name):
    """Make the link `name` beside path point at it, in one atomic step."""
    temporary = path.parent / f".{name}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(path.name)
    os.replace(temporary, path.parent / name)
    _sync(path.parent)


def sinks(o, path):
    """Where else metrics go: TensorBoard and Weights & Biases, if asked for → functions of (step, values)."""
    out = []
    if o.tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise cli.UserError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
        writer = SummaryWriter(str(path / "tensorboard"))
        out.append(lambda step, values: [writer.add_scalar(name, value, step) for name, value in values.items()] and writer.flush())
    if o.wandb:
        try:
            import wandb
        except ImportError:
            raise cli.UserError("--wandb needs the package wandb: pip install wandb") from None
        path.mkdir(parents=True, exist_ok=True)
        wandb.init(project="reasoning-lab", name=path.name, dir=str(path), config=dataclasses.asdict(o))
        out.append(lambda step, values: wandb.log(values, step=step))
    return out


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints: a folder of tensors (loaded without pickle's code), tokenizer and readable JSON, with a hash of every file.


def code_hash():
    """What the code of this repository is, in 16 characters."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return blake2b(b"".join(f.read_bytes() for f in files), digest_size=8).hexdigest()


def save_checkpoint(path, model, tokenizer, options, state, optimizers=()):
    """Write a checkpoint folder whole or not at all: into a temporary folder, synced to disk, then renamed.

    options: the script's frozen dataclass, or a dict; state: a dict of readable facts (step, tokens seen, scores). No state of a random
    generator is among them: every draw is a function of (seed, step).
    Raises UserError if the disk does not take it; what was there before stays.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    options = options if isinstance(options, dict) else dataclasses.asdict(options)
    config = {"model": dataclasses.asdict(model.config), "options": options}
    state = {**state, "tokenizer_hash": tokenizer.hash, "code": code_hash(), "torch": torch.__version__}
    content = {
        "weights.pt": _bytes({k: v.cpu() for k, v in model.state_dict().items()}),
        "optimizer.pt": _bytes([o.state_dict() for o in optimizers]),
        "tokenizer.json": tokenizer.to_json().encode(),
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
        "state.json": (json.dumps(state, indent=2) + "\n").encode(),
    }
    hashes = {name: blake2b(data, digest_size=16).hexdigest() for name, data in content.items()}
    content["manifest.json"] = (json.dumps(hashes, indent=2) + "\n").encode()
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, data in content.items():
            with (temporary / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        _sync(temporary)
        if path.exists():  # the same step, written again: a folder cannot be replaced in one move
            shutil.rmtree(path)
        os.rename(temporary, path)
        _sync(path.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise cli.UserError(f"cannot write checkpoint {path} ({error.strerror}): make room; the newest complete one is "
                            f"{newest_checkpoint(path.parent)}") from None  # fmt: skip


def _bytes(tensors):
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def _sync(folder):
    """Have the folder's entries on disk."""
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def damage(path):
    """What is wrong with the checkpoint folder, in a few words, or None: every file must be what the manifest says."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name in ("weights.pt", "optimizer.pt", "tokenizer.json", "config.json", "state.json"):
            if blake2b((path / name).read_bytes(), digest_size=16).hexdigest() != manifest[name]:
                return f"{name} is not what manifest.json says"
    except OSError as error:
        return f"{Path(error.filename).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError) as error:
        return f"manifest.json ({type(error).__name__}: {error})"
    return None


def newest_checkpoint(run):
    """The newest intact checkpoint folder of a run folder, or None; says which damaged ones it passes over."""
    for path in sorted(Path(run).glob("step_???????"), reverse=True):
        wrong = damage(path)
        if wrong is None:
            return path
        print(f"passing over damaged checkpoint {path}: {wrong}", file=sys.stderr)
    return None


@dataclasses.dataclass
class Checkpoint:
    path: Path
    model: Qwen2
    tokenizer: Tokenizer
    options: dict  # of the script that wrote it
    state: dict

    def load_optimizers(self, optimizers):
        saved = torch.load(self.path / "optimizer.pt", map_location="cpu", weights_only=True)
        for optimizer, state in zip(optimizers, saved, strict=True):
            optimizer.load_state_dict(state)


def weights_hash(checkpoint):
    return json.loads((checkpoint.path / "manifest.json").read_text())["weights.pt"]


def load_checkpoint(path, device, dtype="float32"):
    """Read a checkpoint folder → Checkpoint with the model on `device`. dtype: of matrix products, see compute_dtype.

    Raises UserError, one line, for a missing or damaged file, weights of another shape, or another tokenizer's weights; it names
    another checkpoint of the run that can be used instead.
    """
    path = Path(path)
    if not path.is_dir():
        raise cli.UserError(f"no checkpoint at {path}: expected a folder with config.json, state.json, weights.pt and tokenizer.json")
    path = path.resolve()  # `latest` may point elsewhere tomorrow
    wrong = damage(path)
    if wrong is None:
        try:
            config, state = (json.loads((path / name).read_text()) for name in ("config.json", "state.json"))
            model, tokenizer = Qwen2(ModelConfig(**config["model"])), Tokenizer.load(path / "tokenizer.json")
            if tokenizer.hash != state["tokenizer_hash"]:
                wrong = f"it was trained with tokenizer {state['tokenizer_hash']}, but its tokenizer.json is {tokenizer.hash}"
            else:
                model.load_state_dict(torch.load(path / "weights.pt", map_location="cpu", weights_only=True))
                model.compute_dtype = compute_dtype(dtype, device)
                return Checkpoint(path, model.to(device), tokenizer, config["options"], state)
        except Exception as error:  # the files are what was written, but no checkpoint of this code; torch raises a dozen types
            wrong = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    others = [other for other in sorted(path.parent.glob("step_???????")) if other != path and damage(other) is None]
    raise cli.UserError(f"checkpoint {path} cannot be used: {wrong}" + (f"; {others[-1]} is intact" if others else ""))

"""What the training and evaluation scripts share: presets, device, seeding, metrics, checkpoints."""

import ctypes
import dataclasses
import json
import os
import platform
import shutil
import time
from pathlib import Path

import numpy as np
import torch

import cli
import data
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
            "lr": 1e-4, "row_tokens": 1536, "micro_rows": 8, "sample_rows": 256,
        },
        "evaluate": {
            "mixture": f"op 2-8; {TINY_WORLD}", "bands": "id=2-4,edge=5-6,hard=7-8", "problems": 100, "samples": 8, "k": "1,8",
            "max_new_tokens": 256, "sample_rows": 256,
        },
    },
    "small": {
        "pretrain": {
            "mixture": "op 2-10; template zoo, school, festival; tokens 500M", "hidden_size": 512, "layers": 6, "heads": 8, "kv_heads": 2,
            "intermediate_size": 1536, "rows": 32, "row_tokens": 2048, "optimizer": "muon", "lr": 1e-3, "min_lr": 1e-4, "muon_lr": 5e-3,
            "local_heads": True, "solution_only": True,
        },
        "grpo": {"mixture": "op 11-14; template zoo, school, festival", "prompts": 128, "group": 8, "minibatch": 64, "lr": 1e-5},
        "evaluate": {"mixture": "op 2-20; template zoo, school, festival", "samples": 32, "k": "1,8,32"},
    },
    "paper": {
        "pretrain": {"mixture": "op 2-10; template zoo:0.99, school:0.01; tokens 10B"},
        "grpo": {"mixture": "op 11-14"},
        "evaluate": {},
    },
}  # fmt: skip


def preset(script):
    """{name: {field: value}} of one script, for cli.parse_options."""
    return {name: sections[script] for name, sections in PRESETS.items()}


# ----------------------------------------------------------------------------------------------------------------------
# Device


def setup(device, seed, threads=0):
    """Seed torch, choose the device ("auto": a GPU if there is one), print one banner line. Returns torch.device.

    Raises UserError if a device is asked for that is not here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise cli.UserError(f"unknown device {device!r}: choose from auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise cli.UserError("device cuda was asked for, but torch sees no GPU here; use --device cpu")
    if threads:
        torch.set_num_threads(threads)
    if device == "cpu" and platform.libc_ver()[0] == "glibc":
        # Keep freed memory: giving activations back to the kernel and faulting them in again costs a tenth of a CPU training step.
        libc, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = ctypes.CDLL(None), -1, -3
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("high")
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(f"device {device} ({name}), torch {torch.__version__}, Python {platform.python_version()}, seed {seed}")
    return torch.device(device)


def autocast(device):
    """bfloat16 matrix products on a GPU; fp32 on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


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
            with autocast(device):
                total += float(model(tokens, doc_start, targets)[1]) * int((micro.targets != data.IGNORE).sum())
        out[str(op)] = total / count
    return out


# ----------------------------------------------------------------------------------------------------------------------
# Metrics


class Metrics:
    """Append one JSON object a line to a file, flushed at once: `log(step, {"train/loss": 1.2})`."""

    def __init__(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a", encoding="utf-8")
        self.started = time.perf_counter()

    def log(self, step, values):
        values = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        self.file.write(json.dumps({"step": step, "seconds": round(time.perf_counter() - self.started, 2), **values}) + "\n")
        self.file.flush()


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints: a folder of weights (loaded without pickle's code), optimizer state, tokenizer and readable JSON.


def save_checkpoint(path, model, tokenizer, options, state, optimizer=None):
    """Write a checkpoint folder whole: into a temporary folder beside it, then renamed.

    options: the script's frozen dataclass; state: a dict of readable facts (step, tokens seen, metrics).
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    torch.save({k: v.cpu() for k, v in model.state_dict().items()}, temporary / "weights.pt")
    if optimizer is not None:
        torch.save([o.state_dict() for o in optimizer], temporary / "optimizer.pt")
    tokenizer.save(temporary / "tokenizer.json")
    config = {"model": dataclasses.asdict(model.config), "options": dataclasses.asdict(options)}
    state = {**state, "tokenizer_hash": tokenizer.hash, "torch": torch.__version__}
    (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    old = path.with_name(path.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.rename(path, old)
    os.rename(temporary, path)
    shutil.rmtree(old, ignore_errors=True)


@dataclasses.dataclass
class Checkpoint:
    path: Path
    model: Qwen2
    tokenizer: Tokenizer
    options: dict  # of the script that wrote it
    state: dict


def load_checkpoint(path, device):
    """Read a checkpoint folder → Checkpoint with the model on `device`.

    Raises UserError, one line, for a missing or damaged file, weights of another shape, or another tokenizer's weights.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise cli.UserError(f"no checkpoint at {path}: the folder must hold config.json, state.json, weights.pt and tokenizer.json")
    try:
        config = json.loads((path / "config.json").read_text())
        state = json.loads((path / "state.json").read_text())
        model = Qwen2(ModelConfig(**config["model"]))
        options = config["options"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise cli.UserError(f"checkpoint {path} is damaged: config.json or state.json ({type(error).__name__}: {error})") from None
    tokenizer = Tokenizer.load(path / "tokenizer.json")
    if tokenizer.hash != state.get("tokenizer_hash"):
        raise cli.UserError(f"checkpoint {path} was trained with tokenizer {state.get('tokenizer_hash')}, "
                            f"but its tokenizer.json is {tokenizer.hash}")  # fmt: skip
    try:
        weights = torch.load(path / "weights.pt", map_location="cpu", weights_only=True)
        model.load_state_dict(weights)
    except Exception as error:  # torch raises a dozen types for damaged files
        raise cli.UserError(f"checkpoint {path} is damaged: weights.pt ({type(error).__name__}: {str(error).splitlines()[0]})") from None
    return Checkpoint(path, model.to(device), tokenizer, options, state)

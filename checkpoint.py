"""A checkpoint: a folder of tensors (loaded without pickle's code), tokenizer and readable JSON, with a hash
of every file.

    weights.pt, optimizer.pt     state_dicts
    tokenizer.json
    config.json                  the model's configuration, and the options of the script that wrote it
    state.json                   readable facts: step, tokens seen, cursors
    manifest.json                hashes (lab.runs.write_folder)

No state of a random generator is among them: every draw is a function of (seed, purpose, step).
"""

import io
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.device import compute_dtype
from lab.options import UserError, read_json
from lab.runs import as_json, checkpoint_folder, code_hash, damage, follow, step_folders, write_folder

import torch

from attention import choose
from model import ModelConfig, Qwen2
from tokenizer import Tokenizer

FILES = ("weights.pt", "optimizer.pt", "tokenizer.json", "config.json", "state.json")


@dataclass
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


def checkpoint_files(model, tokenizer, options, state, optimizers=()):
    """What a checkpoint folder holds, {name: bytes}. options: a dataclass or a dict; state: a dict of
    readable facts.
    """
    options = options if isinstance(options, dict) else asdict(options)
    state = {**state, "tokenizer_hash": tokenizer.hash, "code": code_hash(), "torch": torch.__version__}
    return {
        "weights.pt": _bytes({name: value.cpu() for name, value in model.state_dict().items()}),
        "optimizer.pt": _bytes([optimizer.state_dict() for optimizer in optimizers]),
        "tokenizer.json": tokenizer.to_json().encode(),
        "config.json": as_json({"model": asdict(model.config), "options": options}),
        "state.json": as_json(state),
    }


def save_checkpoint(path, model, tokenizer, options, state, optimizers=()):
    """Write a checkpoint folder whole or not at all. Raises UserError if the disk does not take it."""
    write_folder(Path(path), checkpoint_files(model, tokenizer, options, state, optimizers))


def _bytes(tensors):
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def load_checkpoint(path, device, dtype="float32", attention="auto"):
    """Read a checkpoint folder, or `latest` of a run folder → Checkpoint with the model on `device`. dtype,
    attention: as of DeviceOptions.

    Raises UserError, one line, for a missing or damaged file, weights of another shape, or another
    tokenizer's weights; it names another checkpoint of the run that can be used instead.
    """
    given, path = path, follow(checkpoint_folder(path))  # `latest` may point elsewhere tomorrow
    if not path.is_dir():
        raise UserError(f"no checkpoint at {given}: expected a folder with {', '.join(FILES)}")
    try:
        missing = (f"{name} is missing" for name in FILES if not (path / name).exists())
        if wrong := damage(path) or next(missing, None):
            raise UserError(wrong)
        config, state = (read_json(path / name) for name in ("config.json", "state.json"))
        tokenizer = Tokenizer.load(path / "tokenizer.json")
        if tokenizer.hash != (trained := state["tokenizer_hash"]):
            raise UserError(f"its tokenizer is {tokenizer.hash}, it was trained with {trained}")
        weights = torch.load(path / "weights.pt", map_location="cpu", weights_only=True)
        model = new_model(ModelConfig(**config["model"]), device, dtype, attention, weights)
        return Checkpoint(path, model, tokenizer, config["options"], state)
    except Exception as error:  # what is no checkpoint of this code: torch raises a dozen types
        wrong = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    others = [other for other in step_folders(path.parent) if other != path and damage(other) is None]
    instead = f"; {others[-1]} is intact" if others else ""
    foreign = "; import it: export_hf.py --import" if (path / "model.safetensors").exists() else ""
    raise UserError(f"checkpoint {path} cannot be used: {wrong.splitlines()[0]}{instead or foreign}")


def new_model(config, device, dtype="float32", attention="auto", weights=None):
    """A Qwen2 on `device`, with fresh weights or these. dtype, attention: as of DeviceOptions.

    Raises UserError if the weights are of another shape or not finite: shapes are compared before any memory
    is taken.
    """
    if weights is not None:
        check_shapes(config, {name: list(tensor.shape) for name, tensor in weights.items()})
        if wild := next((name for name, it in weights.items() if not it.isfinite().all()), None):
            raise UserError(f"{wild} holds numbers that are not finite")
    model = Qwen2(config)
    if weights is not None:
        model.load_state_dict(weights)
    model.compute_dtype = compute_dtype(dtype, device)
    model.backend, model.backend_note = choose(attention, device, config.head_dim, model.compute_dtype)
    return model.to(device)


def check_shapes(config, shapes):
    """Raise UserError unless {name: list} are the shapes of this configuration's weights. Takes no memory:
    they are compared on torch's meta device.
    """
    layers = len({name.split(".")[2] for name in shapes if name.startswith("model.layers.")})
    if layers != config.num_hidden_layers:
        raise UserError(f"the weights have {layers} layers, the config {config.num_hidden_layers} layers")
    with torch.device("meta"):
        wanted = {name: list(value.shape) for name, value in Qwen2(config).state_dict().items()}
    for name in sorted(wanted.keys() | shapes.keys()):
        if shapes.get(name) != wanted.get(name):
            raise UserError(f"{name} has shape {shapes.get(name)}, the config asks for {wanted.get(name)}")

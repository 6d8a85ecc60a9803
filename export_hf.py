"""To and from the Hugging Face format: a folder that AutoModelForCausalLM and AutoTokenizer load offline.

    python export_hf.py --ckpt out/demo/grpo/latest --out out/hf
    python export_hf.py --import --ckpt out/hf --out out/back

Exporting writes config.json (Qwen2ForCausalLM), model.safetensors, tokenizer.json, tokenizer_config.json,
generation_config.json and a model card. Importing reads such a folder, or, with a --tokenizer of ours, any
Qwen2 checkpoint of transformers. Neither touches a folder that it did not write. Needs safetensors.
"""

import importlib.util
import json
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path

from lab.options import CheckedOptions, UserError, opt, parse_options, read_json, run_script, write_atomic

import torch

from checkpoint import check_finite, check_shapes, load_checkpoint, save_checkpoint
from model import ModelConfig, Qwen2
from tokenizer import PATTERN, SPECIALS, Tokenizer

KEY = "reasoning_lab"  # of config.json: what only we know, so that import and export are each other's inverse


@dataclass(frozen=True)
class Options(CheckedOptions):
    ckpt: str | None = opt(None, "checkpoint folder to export (with --import: Hugging Face folder to read)")
    out: str = opt("out/hf", "folder to write (with --import: a checkpoint folder)")
    results: str | None = opt(None, "results.json of evaluate.py for the model card")
    import_: bool = opt(False, "read a Hugging Face folder and write a checkpoint")
    tokenizer: str | None = opt(None, "with --import: tokenizer.json of ours for a checkpoint without one")


# ------------------------------------------------------------------------------------------------------------
# Export


def config_json(config, tokenizer, options, state):
    """ModelConfig → transformers' Qwen2Config as a dict: what version 5 writes and version 4 reads."""
    own = {f.name: getattr(config, f.name) for f in fields(ModelConfig)}
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **own,
        "initializer_range": config.initializer_range or config.hidden_size**-0.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "hidden_act": "silu", "attention_dropout": 0.0, "use_sliding_window": False, "sliding_window": None,
        "max_window_layers": config.num_hidden_layers,
        "layer_types": ["full_attention"] * config.num_hidden_layers,
        "use_cache": True, "dtype": "float32", "torch_dtype": "float32", **token_ids(tokenizer),
        KEY: {"initializer_range": config.initializer_range, "options": options, "state": state},
    }  # fmt: skip


def token_ids(tokenizer):
    return {f"{kind}_token_id": getattr(tokenizer, f"{kind}_id") for kind in ("bos", "eos", "pad")}


def bytes_to_unicode():
    """{byte: character}: the stand-ins of GPT-2's byte-level BPE, which the tokenizers library uses.

    Printable Latin-1 stands for itself, the other bytes for the characters from U+0100 on.
    """
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (b for b in range(256) if b not in shown)
    return {**{b: chr(b) for b in shown}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def tokenizer_json(tokenizer):
    """Our tokenizer as the tokenizers library's: the same pre-tokens, and bytes as characters."""
    shown = bytes_to_unicode()

    def text(token):
        return "".join(shown[b] for b in token)

    merges = []
    for token in tokenizer.merges:
        parts = [bytes([b]) for b in token]
        while len(parts) > 2:  # the merges before this one leave two parts: those it joins
            pairs = enumerate(zip(parts, parts[1:]))
            _, i = min((tokenizer.ranks.get(a + b, tokenizer.vocab_size), i) for i, (a, b) in pairs)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        merges.append([text(part) for part in parts])
    vocab = {**tokenizer.special_ids, **{text(token): i for token, i in tokenizer.ranks.items()}}
    special = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": name, **special} for i, name in enumerate(SPECIALS)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": True, "vocab": vocab, "merges": merges},
    }  # fmt: skip


def model_card(options, state, results):
    """A README.md: what it is, how it was trained, what was measured (evaluate.py's results or None)."""
    measured = []
    if results is not None:
        rows = ["| checkpoint | band | correct@1 | 95% interval | answer@1 |", "|---|---|---|---|---|"]
        for name, result in results["results"].items():
            for band, score in result["band"].items():
                correct = "{mean:.3f} | {low:.3f} to {high:.3f}".format(**score["correct@1"])
                rows.append(f"| {name} | {band} | {correct} | {score['answer@1']['mean']:.3f} |")
        measured += [
            "\n".join(rows),
            "{samples} samples a problem, seed {seed}.".format(**results["options"]),
        ]
    facts = "Step {step}, tokenizer `{tokenizer_hash}`, code `{code}`, torch {torch}."
    paragraphs = [
        "---\nlibrary_name: transformers\ntags: [reasoning, synthetic, from-scratch]\n---",
        "# A small model of a synthetic reasoning world",
        "Trained from scratch on generated word problems whose reasoning graph is known. Prompt: "
        "`[BOS]<question> … </question> <solution>`; it writes the steps, then `<answer> N </answer>[EOS]`.",
        "## Recipe",
        facts.format_map(defaultdict(lambda: None, state)),
        f"```json\n{json.dumps(options, indent=1)}\n```",
        "## Measured",
        *(measured or ["Nothing was measured for this card."]),
    ]
    return "\n\n".join(paragraphs) + "\n"


def export(checkpoint, out, results=None):
    """Checkpoint → Hugging Face folder. Raises UserError if the results are not those of evaluate.py."""
    from safetensors.torch import save

    tokenizer, config = checkpoint.tokenizer, checkpoint.model.config
    weights = {k: v.detach().float().cpu().contiguous() for k, v in checkpoint.model.state_dict().items()}
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
    try:
        card = model_card(checkpoint.options, checkpoint.state, results)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"the results are not those of evaluate.py ({type(error).__name__}: {error})"
        ) from None
    texts = {
        "config.json": config_json(config, tokenizer, checkpoint.options, checkpoint.state),
        "tokenizer.json": tokenizer_json(tokenizer),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.max_position_embeddings,
            **{f"{kind}_token": name for kind, name in zip(("pad", "unk", "bos", "eos"), SPECIALS)},
            # transformers 5 has every qwen2 model split words in Qwen's way, whatever tokenizer.json says,
            # unless there is an auto_map; an empty one names no code, and tokenizer.json is used
            "clean_up_tokenization_spaces": False, "auto_map": {"AutoTokenizer": ["", ""]},
        },
        "generation_config.json": {**token_ids(tokenizer), "do_sample": False},
    }  # fmt: skip
    for name, content in texts.items():
        write_atomic(out / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_atomic(out / "README.md", card)
    write_atomic(out / "model.safetensors", save(weights, metadata={"format": "pt"}))


# ------------------------------------------------------------------------------------------------------------
# Import


def import_(folder, tokenizer_path=None):
    """Hugging Face folder → (model, tokenizer, options, state).

    Raises UserError if it is no Qwen2 checkpoint that our Qwen2 computes, or has no tokenizer of ours.
    """
    try:
        content = read_json(folder / "config.json")
        extra = content.get(KEY, {})
        config = read_config(content, extra)
        weights = read_weights(folder, config)
        tokenizer = Tokenizer.load(tokenizer_path) if tokenizer_path else read_tokenizer(folder)
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}")
        model = Qwen2(config)
        model.load_state_dict(weights)
        with torch.no_grad():
            if not model(torch.tensor([[0, 1]]))[0].isfinite().all():
                raise UserError("its logits are not finite")
        return model, tokenizer, dict(extra.get("options", {})), dict(extra.get("state", {"step": 0}))
    except Exception as error:  # whatever another program wrote there
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"cannot import {folder}: {kind}{(str(error).splitlines() or [''])[0]}") from None


def read_config(content, extra):
    """config.json → ModelConfig. Raises UserError if it means another computation than ours."""
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    found = {**content, "rope_type": rope.get("rope_type", rope.get("type", "default"))}
    ours = {"model_type": "qwen2", "hidden_act": "silu", "use_sliding_window": False, "rope_type": "default"}
    for name, value in ours.items():
        if found.get(name, value) != value:
            raise UserError(f"{name} is {found[name]!r}, not {value!r}")
    known = {f.name: content[f.name] for f in fields(ModelConfig) if f.name in content}
    known["rope_theta"] = rope.get("rope_theta", content.get("rope_theta", 10000.0))
    known["initializer_range"] = extra.get("initializer_range", known.get("initializer_range"))
    return ModelConfig(**known)


def read_weights(folder, config):
    """The tensors of a folder's safetensors files by name, in float32.

    Raises UserError if a number is not finite; and, before anything is allocated, if the names and shapes are
    others than the config asks for.
    """
    from safetensors import safe_open

    files = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))]
    where = {name: file for file in files for name in file.keys()}  # noqa: SIM118
    shapes = {name: file.get_slice(name).get_shape() for name, file in where.items()}
    if config.tie_word_embeddings:  # whose head may or may not be among the tensors
        shapes["lm_head.weight"] = shapes.get("model.embed_tokens.weight")
    check_shapes(config, shapes)
    weights = {name: file.get_tensor(name).float() for name, file in where.items()}
    check_finite(weights)
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return weights


def read_tokenizer(folder):
    """The inverse of `tokenizer_json`. Raises UserError if it is another kind of tokenizer."""
    try:
        content = read_json(folder / "tokenizer.json")
        if content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] != PATTERN:
            raise UserError("it splits words another way")
        hidden = {c: b for b, c in bytes_to_unicode().items()}
        return Tokenizer([bytes(hidden[c] for c in a + b) for a, b in content["model"]["merges"]])
    except (KeyError, IndexError, TypeError, ValueError, UserError) as error:
        raise UserError(f"its tokenizer is none of ours ({error}): give one with --tokenizer") from None


# ------------------------------------------------------------------------------------------------------------
# Command line


def check_out(out, source):
    """Raise UserError if something could be lost: `out` must be new or empty, and no part of what is read."""
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"--out {out} is inside of --ckpt {source}: choose another folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is not empty: choose a new folder")


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__)
    if o.ckpt is None:
        raise UserError("nothing to do: python export_hf.py --ckpt out/base/latest --out out/hf")
    if importlib.util.find_spec("safetensors") is None:
        raise UserError("export needs the package safetensors: pip install safetensors")
    source, out = Path(o.ckpt), Path(o.out)
    check_out(out, source)
    if o.import_:
        model, tokenizer, options, state = import_(source, o.tokenizer)
        save_checkpoint(out, model, tokenizer, options, state)
    else:
        results = read_json(o.results) if o.results else None
        export(load_checkpoint(source, torch.device("cpu")), out, results)
    print(f"wrote {out}: " + ", ".join(sorted(path.name for path in out.iterdir())))


if __name__ == "__main__":
    run_script(main)

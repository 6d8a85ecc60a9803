"""To and from the Hugging Face format: a folder that AutoModelForCausalLM and AutoTokenizer load offline, with no code of ours.

    python export_hf.py --ckpt out/demo/grpo/latest --out out/hf
    python export_hf.py --import --ckpt out/hf --out out/back

Exporting writes config.json (Qwen2ForCausalLM), model.safetensors, tokenizer.json, tokenizer_config.json, generation_config.json and a model
card. Importing reads such a folder, or any Qwen2 checkpoint of transformers with --tokenizer. Needs the package safetensors.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import torch

import cli
import common
from model import ModelConfig, Qwen2
from tokenizer import PATTERN, SPECIALS, Tokenizer, bytes_to_unicode

KEY = "reasoning_lab"  # of config.json: what only this repository knows, so that import → export is the identity


@dataclass(frozen=True)
class Options:
    ckpt: str | None = cli.opt(None, "checkpoint folder to export (with --import: Hugging Face folder to read)")
    out: str = cli.opt("out/hf", "folder to write (with --import: a checkpoint folder)")
    results: str | None = cli.opt(None, "results.json of evaluate.py for the model card")
    import_: bool = cli.opt(False, "read a Hugging Face folder and write a checkpoint")
    tokenizer: str | None = cli.opt(None, "with --import: tokenizer.json of ours for a checkpoint that has none of ours")


def config_json(config, tokenizer, options, state):
    """ModelConfig → transformers' Qwen2Config as a dict: keys as version 5 writes and version 4 reads them."""
    own = {f.name: getattr(config, f.name) for f in fields(ModelConfig)}
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **own, "initializer_range": config.initializer_range or config.hidden_size**-0.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}, "hidden_act": "silu", "attention_dropout": 0.0,
        "use_sliding_window": False, "sliding_window": None, "max_window_layers": config.num_hidden_layers,
        "layer_types": ["full_attention"] * config.num_hidden_layers, "use_cache": True, "dtype": "float32", "torch_dtype": "float32",
        "bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id,
        KEY: {"initializer_range": config.initializer_range, "options": options, "state": state},
    }  # fmt: skip


def tokenizer_json(tokenizer):
    """Our tokenizer as the tokenizers library's: the same pre-tokens, bytes as printable characters, merges as pairs."""
    shown = bytes_to_unicode()

    def text(token):
        return "".join(shown[b] for b in token)

    merges = []
    for token in tokenizer.merges:
        parts = [bytes([b]) for b in token]
        while len(parts) > 2:  # the merges before this one leave two parts: those it joins
            _, i = min((tokenizer.ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(zip(parts, parts[1:])))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        merges.append([text(part) for part in parts])
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
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                  "byte_fallback": False, "ignore_merges": True,
                  "vocab": {**tokenizer.special_ids, **{text(token): i for token, i in tokenizer.ranks.items()}}, "merges": merges},
    }  # fmt: skip


def tokenizer_from_json(content):
    """The inverse of `tokenizer_json`. Raises KeyError, TypeError or ValueError if it is another kind of tokenizer."""
    if content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] != PATTERN:
        raise ValueError("it splits words another way")
    hidden = {c: b for b, c in bytes_to_unicode().items()}
    return Tokenizer([bytes(hidden[c] for c in a + b) for a, b in content["model"]["merges"]])


def model_card(options, state, results):
    """A README.md: what it is, how it was trained, what was measured."""
    lines = [
        "---", "library_name: transformers", "tags: [reasoning, synthetic, from-scratch]", "---", "",
        "# A small model of a synthetic reasoning world", "",
        "Trained from scratch on generated word problems whose reasoning graph is known. Prompt: "
        "`[BOS]<question> … </question> <solution>`; it writes the steps, then `<answer> N </answer>[EOS]`.", "",
        "## Recipe", "", f"Step {state.get('step')}, tokenizer `{state.get('tokenizer_hash')}`, code `{state.get('code')}`, torch {state.get('torch')}.", "",
        "```json", json.dumps(options, indent=1), "```", "", "## Measured", "",
    ]  # fmt: skip
    if state.get("nll"):
        lines += ["Held-out NLL in nats per token, by operations: " + ", ".join(f"{op}: {v:.4f}" for op, v in state["nll"].items()), ""]
    if results:
        lines += ["| checkpoint | band | correct@1 | 95% interval | answer@1 |", "|---|---|---|---|---|"]
        for name, result in results["results"].items():
            for band, s in result["band"].items():
                one = s["correct@1"]
                lines.append(f"| {name} | {band} | {one['mean']:.3f} | {one['low']:.3f} to {one['high']:.3f} | {s['answer@1']['mean']:.3f} |")
        lines += ["", f"{results['options']['samples']} samples a problem, seed {results['options']['seed']}."]
    elif not state.get("nll"):
        lines.append("Nothing was measured for this card.")
    return "\n".join(lines) + "\n"


def export(checkpoint, out, results=None):
    """Checkpoint → Hugging Face folder."""
    from safetensors.torch import save

    state = {name: value for name, value in checkpoint.state.items() if name != "lengths"}
    weights = {k: v.detach().float().cpu().contiguous() for k, v in checkpoint.model.state_dict().items()}
    if checkpoint.model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    tokenizer, config = checkpoint.tokenizer, checkpoint.model.config
    named = {f"{kind}_token": SPECIALS[i] for kind, i in zip(("pad", "unk", "bos", "eos"), range(4))}
    texts = {
        "config.json": config_json(config, tokenizer, checkpoint.options, state),
        "tokenizer.json": tokenizer_json(tokenizer),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.max_position_embeddings, **named,
                                  "clean_up_tokenization_spaces": False,
                                  # transformers 5 gives every qwen2 model Qwen's own way of splitting words, whatever tokenizer.json says, unless
                                  # there is an auto_map; an empty one names no code, and tokenizer.json is used (without trust_remote_code)
                                  "auto_map": {"AutoTokenizer": ["", ""]}},
        "generation_config.json": {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id, "do_sample": False},
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    for name, content in texts.items():
        cli.write_atomic(out / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    cli.write_atomic(out / "README.md", model_card(checkpoint.options, state, results))
    cli.write_atomic(out / "model.safetensors", save(weights, metadata={"format": "pt"}))


def import_(folder, tokenizer_path, device):
    """Hugging Face folder → (model, tokenizer, options, state). Raises UserError if it is no Qwen2 checkpoint, or has no tokenizer of ours."""
    from safetensors.torch import load_file

    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if content.get("model_type") != "qwen2":
            raise cli.UserError(f"{folder} holds a model of type {content.get('model_type')!r}, not qwen2")
        extra = content.get(KEY, {})
        known = {f.name: content[f.name] for f in fields(ModelConfig) if f.name in content}
        known["rope_theta"] = (content.get("rope_parameters") or {}).get("rope_theta", content.get("rope_theta", 10000.0))
        known["initializer_range"] = extra.get("initializer_range", known.get("initializer_range"))
        model, weights = Qwen2(ModelConfig(**known)), {}
        for file in sorted(folder.glob("*.safetensors")):
            weights.update(load_file(file))
        if model.config.tie_word_embeddings:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        model.load_state_dict({k: v.float() for k, v in weights.items()})
        if tokenizer_path:
            tokenizer = Tokenizer.load(tokenizer_path)
        else:
            tokenizer = tokenizer_from_json(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
    except cli.UserError:
        raise
    except Exception as error:  # whatever another program wrote there
        message = str(error).splitlines()[0] if str(error) else ""
        hint = "; give a tokenizer of ours with --tokenizer" if "tokenizer.json" in message or isinstance(error, (KeyError, ValueError)) else ""
        raise cli.UserError(f"cannot import {folder} ({type(error).__name__}: {message}){hint}") from None
    if tokenizer.vocab_size > model.config.vocab_size:
        raise cli.UserError(f"the tokenizer has {tokenizer.vocab_size} tokens but the model only {model.config.vocab_size}")
    return model.to(device), tokenizer, extra.get("options", {}), extra.get("state", {"step": 0})


def main():
    o = cli.parse_options(Options, description=__doc__)
    if o.ckpt is None:
        raise cli.UserError("nothing to do: python export_hf.py --ckpt out/base/latest --out out/hf")
    try:
        import safetensors  # noqa: F401
    except ImportError:
        raise cli.UserError("export needs the package safetensors: pip install safetensors") from None
    device, out = torch.device("cpu"), Path(o.out)
    if o.import_:
        model, tokenizer, options, state = import_(Path(o.ckpt), o.tokenizer, device)
        common.save_checkpoint(out, model, tokenizer, options, state)
    else:
        try:
            results = json.loads(Path(o.results).read_text(encoding="utf-8")) if o.results else None
        except (OSError, ValueError) as error:
            raise cli.UserError(f"cannot read {o.results} ({error})") from None
        export(common.load_checkpoint(o.ckpt, device), out, results)
    print(f"wrote {out}: " + ", ".join(sorted(p.name for p in out.iterdir())))


if __name__ == "__main__":
    common.run(main)

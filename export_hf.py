"""To and from the Hugging Face format: a folder that AutoModelForCausalLM and AutoTokenizer load offline.

    python export_hf.py --ckpt out/demo/grpo/latest --out out/hf
    python export_hf.py --import --ckpt out/hf --out out/back
    python export_hf.py --lm-eval records.jsonl --out out/task

Exporting writes config.json (Qwen2ForCausalLM), model.safetensors, tokenizer.json, tokenizer_config.json,
generation_config.json and a model card. Importing reads such a folder, or, with a --tokenizer of ours, any
Qwen2 checkpoint of transformers. With --lm-eval it writes records as a task of lm-evaluation-harness, which
our judge scores. None writes to a folder that holds something. Needs safetensors.
"""

import importlib.util
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lab.options import CheckedOptions, UserError, opt, parse_options, read_json, run_script, write_atomic
from lab.runs import follow

import torch

from checkpoint import load_checkpoint, new_model, save_checkpoint
from data import prompt_text
from model import ModelConfig
from tasks import read_tasks
from tokenizer import PATTERN, SPECIALS, Tokenizer

KEY = "reasoning_lab"  # of config.json: what only we know, so that import and export are each other's inverse
# GPT-2's byte-level BPE, which the tokenizers library uses, writes bytes as characters: printable Latin-1
# stands for itself, the other bytes for the characters from U+0100 on.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
CHARACTERS = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(OTHERS)}
CARD = """---
library_name: transformers
tags: [reasoning, synthetic, from-scratch]
---
# A small model of a synthetic reasoning world
Trained from scratch on generated word problems whose reasoning graph is known. Prompt:
`[BOS]<question> … </question> <solution>`; it writes the steps, then `<answer> N </answer>[EOS]`.
## Recipe
Step {step}, tokenizer `{tokenizer_hash}`, code `{code}`, torch {torch}. Options:
```json
{options}
```
## Measured
{measured}
"""
HEAD = "| checkpoint | band | correct@1 | 95% interval | answer@1 |\n|---|---|---|---|---|"
# A task of lm-evaluation-harness. {{prompt}} is a field of a problem's line.
TASK = """task: reasoning_lab
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: ""
generation_kwargs: {until: ["[EOS]"], do_sample: false, max_gen_toks: 512}
process_results: !function judge.judge
metric_list: %s
"""
JUDGE = """import json
import sys

sys.path.append(%r)  # last: evaluate.py has the name of a package

from texts import resolved
from verify import verify


def judge(doc, results):
    verdict = verify(resolved(results[0]), json.loads(doc["record"]))
    judged = {"correct": verdict.solved, "answer": verdict.answer_correct, "faithful": verdict.faithful}
    return {name: float(value) for name, value in judged.items()} | {"process": verdict.process}
"""
METRICS = ("correct", "answer", "faithful", "process")
ROW = "| {correct@1[mean]:.3f} | {correct@1[low]:.3f} to {correct@1[high]:.3f} | {answer@1[mean]:.3f} |"


@dataclass(frozen=True)
class Options(CheckedOptions):
    ckpt: str | None = opt(None, "checkpoint folder to export (with --import: Hugging Face folder to read)")
    out: str = opt("out/hf", "folder to write (with --import: a checkpoint folder)")
    results: str | None = opt(None, "results.json of evaluate.py for the model card")
    import_: bool = opt(False, "read a Hugging Face folder and write a checkpoint")
    tokenizer: str | None = opt(None, "with --import: tokenizer.json of ours for a checkpoint without one")
    lm_eval: str | None = opt(None, "JSONL of problems to write as a task of lm-evaluation-harness")


# ------------------------------------------------------------------------------------------------------------
# Export


def export(checkpoint, out, results=None):
    """Checkpoint → Hugging Face folder. Raises UserError if the results are not those of evaluate.py."""
    from safetensors.torch import save

    weights = {name: v.float().cpu().contiguous() for name, v in checkpoint.model.state_dict().items()}
    if checkpoint.model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    card = model_card(checkpoint, results)  # first, for it may be refused
    for name, content in json_files(checkpoint).items():
        write_atomic(out / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_atomic(out / "README.md", card)
    write_atomic(out / "model.safetensors", save(weights, metadata={"format": "pt"}))


def json_files(checkpoint):
    """The folder's JSON files, {name: content}. config.json is what transformers 5 writes and 4 reads."""
    config, tokenizer = checkpoint.model.config, checkpoint.tokenizer
    layers, std = config.num_hidden_layers, config.initializer_range
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_id") for kind in ("bos", "eos", "pad")}
    return {
        "config.json": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **asdict(config),
            "initializer_range": checkpoint.model.initial_std,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
            "hidden_act": "silu", "attention_dropout": 0.0, "use_sliding_window": False,
            "sliding_window": None, "max_window_layers": layers, "layer_types": ["full_attention"] * layers,
            "use_cache": True, "dtype": "float32", "torch_dtype": "float32", **ids,
            KEY: {"initializer_range": std, "options": checkpoint.options, "state": checkpoint.state}},
        "tokenizer.json": tokenizer_json(tokenizer),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.max_position_embeddings,
            **{f"{kind}_token": name for kind, name in zip(("pad", "unk", "bos", "eos"), SPECIALS)},
            # transformers 5 has every qwen2 model split words in Qwen's way, whatever tokenizer.json says,
            # unless there is an auto_map; an empty one names no code, and tokenizer.json is used
            "clean_up_tokenization_spaces": False, "auto_map": {"AutoTokenizer": ["", ""]}},
        "generation_config.json": {**ids, "do_sample": False},
    }  # fmt: skip


def tokenizer_json(tokenizer):
    """Our tokenizer as the tokenizers library's: the same pre-tokens, and bytes as characters."""
    ranks = {token.decode("latin-1").translate(CHARACTERS): i for token, i in tokenizer.ranks.items()}
    special = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    words = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    as_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        # `special` ones are left out where others decode, and a solution without <answer> has none
        "added_tokens": [
            {"id": i, "content": name, **special, "special": i < 4} for i, name in enumerate(SPECIALS)],
        "normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [words, as_bytes]},
        "post_processor": None, "decoder": {**as_bytes, "add_prefix_space": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
            "vocab": tokenizer.special_ids | ranks, "merges": [split(t, ranks) for t in list(ranks)[256:]]},
    }  # fmt: skip


def split(token, ranks):
    """The two parts of a token that are left when all merges but its own are done."""
    parts = list(token)
    while len(parts) > 2:
        i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], float("inf")))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def model_card(checkpoint, results):
    """A README.md: what it is, how it was trained, what was measured (evaluate.py's results or None)."""
    rows = ["Nothing was measured for this card."]
    if results is not None:
        try:
            rows = ["{samples} samples a problem, seed {seed}.\n".format(**results["options"]), HEAD]
            for name, result in results["results"].items():
                rows += [f"| {name} | {band} {ROW.format(**score)}" for band, score in result["band"].items()]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"the results are not those of evaluate.py ({error!r})") from None
    facts = dict.fromkeys(("step", "code", "torch")) | checkpoint.state
    return CARD.format(**facts, options=json.dumps(checkpoint.options, indent=1), measured="\n".join(rows))


# ------------------------------------------------------------------------------------------------------------
# Import


def import_(folder, tokenizer_path=None):
    """Hugging Face folder → (model, tokenizer, options, state).

    Raises UserError if it is no Qwen2 checkpoint that our Qwen2 computes, or has no tokenizer of ours.
    """
    from safetensors.torch import load_file

    try:
        content = read_json(folder / "config.json")
        own = content.get(KEY, {})
        config = read_config(content, own)
        tokenizer = Tokenizer.load(tokenizer_path) if tokenizer_path else read_tokenizer(folder)
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}")
        weights = {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}
        if config.tie_word_embeddings and "model.embed_tokens.weight" in weights:  # the head need not be
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        model = new_model(config, torch.device("cpu"), weights=weights)
        if not model(torch.tensor([[0, 1]]))[0].isfinite().all():
            raise UserError("its logits are not finite")
        return model, tokenizer, dict(own.get("options", {})), dict(own.get("state", {"step": 0}))
    except Exception as error:  # whatever another program wrote there
        wrong = str(error) if isinstance(error, UserError) else repr(error)
        raise UserError(f"cannot import {folder}: {wrong}") from None


def read_config(content, own):
    """config.json → ModelConfig. Raises UserError if it means another computation than ours."""
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    found = {"rope_type": rope.get("type", "default"), **content, **rope, **own}
    ours = {"model_type": "qwen2", "hidden_act": "silu", "use_sliding_window": False, "rope_type": "default"}
    for name, value in ours.items():
        if found.get(name, value) != value:
            raise UserError(f"{name} is {found[name]!r}, not {value!r}")
    return ModelConfig(**{f.name: found[f.name] for f in fields(ModelConfig) if f.name in found})


def read_tokenizer(folder):
    """The inverse of `tokenizer_json`. Raises UserError if it is another kind of tokenizer."""
    try:
        content = read_json(folder / "tokenizer.json")
        if content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] != PATTERN:
            raise UserError("it splits words another way")
        byte = {character: byte for byte, character in CHARACTERS.items()}
        return Tokenizer([bytes(byte[c] for c in a + b) for a, b in content["model"]["merges"]])
    except (KeyError, IndexError, TypeError, ValueError, UserError) as error:
        raise UserError(f"its tokenizer is none of ours ({error}): give one with --tokenizer") from None


# ------------------------------------------------------------------------------------------------------------
# Other programs


def write_task(records, out):
    """Records → a folder for `lm_eval --include_path`: the task, its problems, and the judge it calls."""
    asked = ({"prompt": prompt_text(record), "record": json.dumps(record)} for record in records)
    lines = [json.dumps(line) + "\n" for line in asked]
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in METRICS]
    task = TASK % tuple(map(json.dumps, (str((out / "problems.jsonl").resolve()), metrics)))
    files = {"problems.jsonl": "".join(lines), "judge.py": JUDGE % str(Path(__file__).parent.resolve())}
    for name, content in {**files, "reasoning_lab.yaml": task}.items():
        write_atomic(out / name, content)


# ------------------------------------------------------------------------------------------------------------
# Command line


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__)
    source, out = Path(o.ckpt or o.lm_eval or ""), Path(o.out)
    if not (o.ckpt or o.lm_eval):
        raise UserError("nothing to do: python export_hf.py --ckpt out/base/latest --out out/hf")
    if o.ckpt and o.lm_eval:
        raise UserError("--lm-eval writes a task, --ckpt is for a checkpoint: give one of them")
    if importlib.util.find_spec("safetensors") is None:
        raise UserError("export needs the package safetensors: pip install safetensors")
    if out.resolve().is_relative_to(follow(source)):  # it would become a part of what is read
        raise UserError(f"--out {out} is inside of --ckpt {source}: choose another folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):  # and what is there would be lost
        raise UserError(f"--out {out} is not empty: choose a new folder")
    if o.lm_eval:
        write_task(read_tasks(o.lm_eval), out)
    elif o.import_:
        save_checkpoint(out, *import_(source, o.tokenizer))
    else:
        export(load_checkpoint(source, torch.device("cpu")), out, read_json(o.results) if o.results else None)
    print(f"wrote {out}: " + ", ".join(sorted(path.name for path in out.iterdir())))


if __name__ == "__main__":
    run_script(main)

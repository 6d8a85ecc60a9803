"""How many lines of code a reader meets: no blanks, comments or docstrings.

python bench/code_lines.py
"""

import ast
import io
import json
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [str(ROOT)]

from lab.options import CheckedOptions, opt, parse_options, run_script, write_atomic  # noqa: E402

NO_CODE = (
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)  # fmt: skip
# In reading order; a file imports only files above it. The reading path goes from graph.py to evaluate.py.
FILES = (
    "lab/__init__.py", "lab/options.py", "lab/device.py", "lab/cost.py", "lab/replicas.py", "lab/muon.py",
    "lab/runs.py", "lab/statistics.py", "lab/worker.py", "lab/workshop.py", "graph.py", "datagen.py", "verify.py", "rewards.py",
    "tasks.py", "tokenizer.py", "texts.py", "data.py", "flash.py", "attention.py", "model.py", "sampler.py",
    "checkpoint.py", "rollout.py", "sampled.py", "training.py", "train_pretrain.py", "train_grpo.py", "tries.py",
    "chains.py", "report.py", "evaluate.py", "talk.py", "export_hf.py", "studies/__init__.py", "studies/scales.py",
    "studies/interplay.py", "studies/hidden_thoughts.py", "studies/long_cot.py", "claims.py", "experiments.py")  # fmt: skip
# What one reads and trains without.
BESIDE = ("rewards.py", "tasks.py", "texts.py", "sampled.py", "tries.py", "chains.py", "report.py", "talk.py",
          "export_hf.py", "claims.py", "experiments.py")  # fmt: skip


@dataclass(frozen=True)
class Options(CheckedOptions):
    json: str | None = opt(None, "write the numbers here too")


def code_lines(path):
    """The numbers of the lines that hold code."""
    source, documentation = path.read_text(encoding="utf-8"), set()
    for node in ast.walk(ast.parse(source)):
        first = getattr(node, "body", None) and not isinstance(node, ast.Lambda | ast.IfExp) and node.body[0]
        if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
            documentation.update(range(first.lineno, first.end_lineno + 1))
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines - documentation


def imports(path):
    """The files of this repository that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    known = {name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in FILES}
    return sorted((known[name] for name in names if name in known), key=FILES.index)


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__)
    lines = {name: len(code_lines(ROOT / name)) for name in FILES}
    for name, n in lines.items():
        print(f"{name:18} {n:5}   {', '.join(imports(ROOT / name))}")
    reading = sum(
        n for name, n in lines.items() if not name.startswith(("lab/", "studies/")) and name not in BESIDE
    )
    print(f"reading path, graph.py to evaluate.py {reading}, all {sum(lines.values())}")
    if o.json:
        write_atomic(o.json, json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)

"""Where the loss of a solution lies: nats a document, and how often the likeliest token is right, by kind of token.

    python bench/loss_by_kind.py out/base/latest --mixture "op 2-6; template zoo" --problems 48

Kinds, in the order of a sentence: which sentence comes next (open); what a plan is for (goal), what that needs
(need), whether it needs more (more); the quantity that is defined (define) and its letter; an operand (ref), a
number read in the text, of a literal (leaf) or a constant; operators; numbers put in for letters (put in) and
computed (result); where an expression ends (end); the answer; and what is always the same (form).
"""

import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [str(ROOT)]

from lab.device import DeviceOptions, run_torch_script, setup  # noqa: E402
from lab.options import UserError, opt, parse_options  # noqa: E402

import torch  # noqa: E402

from checkpoint import load_checkpoint  # noqa: E402
from data import completion_text, prompt_text  # noqa: E402
from datagen import Mixture, held_out, parse_ops  # noqa: E402

KINDS = ("open", "goal", "need", "more", "define", "letter", "ref", "leaf", "constant", "operator", "put in",
         "result", "end", "answer", "form")  # fmt: skip


@dataclass(frozen=True)
class Options(DeviceOptions):
    checkpoint: str | None = opt(None, "folder")
    mixture: str | None = opt(None, "problems (default: what the checkpoint was trained on)")
    op: str | None = opt(None, "operations (default: those of the mixture)")
    problems: int = opt(48, "problems of each number of operations", within="[1, inf)")


def kinds_of(words):
    """The kind of each word (a token without its space) of a solution."""
    kinds, sentence = [], []  # the words of the sentence so far
    for word in words:
        kind = "form"
        if word == "":
            pass
        elif not sentence and word in ("To", "Define", "</solution>"):
            kind = "open"
        elif sentence[:1] == ["To"]:
            if word in (",", "."):
                kind = "more"
            elif word not in ("find", "we", "need"):
                kind = "need" if "need" in sentence else "goal"
        elif sentence[:1] == ["Define"] and "as" not in sentence:
            kind = "form" if word == "as" else "define"
        elif sentence[:1] == ["Define"]:
            kind = kind_in_equation(word, sentence)
        elif sentence[:1] == ["<answer>"] and word.isdigit():
            kind = "answer"
        kinds.append(kind)
        if word:
            ends = word == "</solution>" or (word == "." and sentence[:1] in (["To"], ["Define"]))
            sentence = [] if ends else [*sentence, word]
    return kinds


def kind_in_equation(word, sentence):
    """… of a word after "Define NAME as"."""
    clause = " ".join(sentence[sentence.index("as") + 1 :]).split(";")[-1]
    sides = clause.split("=")[1:]
    if word in ("=", ";", ".", "so"):
        return "end" if sides else "form"
    if not sides:
        return "letter"
    if word in "+-*/":
        return "operator"
    if not word.isdigit():
        return "ref"
    if any(sign in side for sign in "+-*/" for side in sides[:-1]):
        return "put in" if len(sides) == 2 else "result"
    literal = len(sides) == 1 and sentence.count(";") == 1 and not any(sign in sides[0] for sign in "+-*/")
    return (
        "leaf"
        if literal and not sides[0].strip(" 0123456789")
        else "constant"
        if len(sides) == 1
        else "result"
    )


@torch.no_grad()
def tabulate(model, tokenizer, problems):
    """{(op, kind): Counter of tokens, nats, right}."""
    table = defaultdict(Counter)
    for p in problems:
        prompt, completion = tokenizer.encode(prompt_text(p)), tokenizer.encode(completion_text(p))
        tokens = torch.tensor([prompt + completion], device=model.lm_head.weight.device)
        logits, targets = model.logits(tokens)[0, len(prompt) - 1 : -1], tokens[0, len(prompt) :]
        nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none").tolist()
        right = (logits.argmax(-1) == targets).tolist()
        words = [tokenizer.decode([i]).strip() for i in completion]
        for kind, n, r in zip(kinds_of(words), nats, right):
            table[p.op, kind].update(tokens=1, nats=n, right=r)
    return table


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__, positional="checkpoint")
    if o.checkpoint is None:
        raise UserError("no checkpoint: python bench/loss_by_kind.py out/base/latest")
    it = load_checkpoint(o.checkpoint, setup(o), o.dtype, o.attention)
    mixture = Mixture.parse(o.mixture or it.options["mixture"])
    ops = parse_ops(o.op) if o.op else mixture.ops
    table = tabulate(it.model, it.tokenizer, held_out(mixture, ops, o.problems, o.seed, "dev"))
    print(
        f"{it.path}: {o.problems} problems an op; nats a document (share of tokens whose likeliest is right)"
    )
    print("kind".ljust(9), *(f"{f'op {op}':>13}" for op in ops))
    for kind in KINDS:
        cells = [table[op, kind] for op in ops]
        told = [f"{c['nats'] / o.problems:.3f} ({c['right'] / c['tokens']:.3f})" if c else "" for c in cells]
        print(kind.ljust(9), *(cell.rjust(13) for cell in told))
    sums = [sum(table[op, kind]["nats"] for kind in KINDS) / o.problems for op in ops]
    print("all".ljust(9), *(f"{total:.3f}".rjust(13) for total in sums))


if __name__ == "__main__":
    run_torch_script(main)

"""Evaluate checkpoints on the same held-out problems: pass@k by operations, band, mode and template.

    python evaluate.py base=out/base/latest grpo=out/grpo/latest --preset tiny --report out/eval/report.html

Every problem gets `samples` tries; each is judged as correct (every step and the answer), by its answer
alone, and as faithful. Writes judged.jsonl (each problem's counts, as it goes), results.json and figure.png
to --out, prints the table. Stopped by ctrl-C or SIGTERM it exits with 75; --resume goes on from judged.jsonl.
"""

import json
import signal
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path

from lab.device import run_torch_script, setup
from lab.options import STOPPED, UserError, colour, opt, printable, read_jsonl, write_atomic
from lab.runs import RunOptions, as_json, own_folder, parse_run_options
from lab.statistics import gain, interval

import numpy as np

from chains import ASKS, account, ask, gold_logps
from checkpoint import load_checkpoint, weights_hash
from datagen import TINY_WORLD, Mixture, held_out, parse_ops
from report import check_page, draw_results, print_table, write_report
from rollout import check_room, held_out_nll, roll_out
from texts import resolved
from verify import explain, pass_at_k

FLOORS = {"guess_floor": "guess floor", "copy_floor": "copy floor", "plus_floor": "plus floor"}
JUDGED = ("correct", "answer", "faithful")
PRESETS = {
    "tiny": dict(mixture=f"op 2-8; {TINY_WORLD}", bands="id=2-4,edge=5-6,hard=7-8", problems=100, samples=8,
                 k="1,8", max_new_tokens=256, sample_rows=256, replicas=2),
    "small": dict(mixture="op 2-20; template zoo, school, festival", samples=32, k="1,8,32"),
    "paper": dict(sample_rows=2048),
}  # fmt: skip


@dataclass(frozen=True)
class Options(RunOptions):
    out: str = opt("out/eval", "folder for all that is written", group="run", free=True)
    checkpoints: str | None = opt(None, "folders, or name=folder", group="evaluation", free=True)
    bands: str = opt("id=2-10,edge=11-14,hard=15-20", "name=operations of each band")
    mixture: str = opt("op 2-20", "world to draw from: datagen.Mixture, but for its ops, which the bands say")
    ask: str | None = opt(None, "how problems are put, if not as in training: chains.py", tuple(ASKS))
    problems: int = opt(100, "problems of each number of operations", within="[2, inf)")
    samples: int = opt(128, "tries for each problem, n", within="[1, inf)")
    k: str = opt("1,8,32,128", "values of k for pass@k, each at most n")
    temperature: float = opt(1.0, "of sampling (0: greedy)", within="[0, 100]")
    top_p: float = opt(1.0, "of sampling", within="(0, 1]")
    max_new_tokens: int = opt(1024, "longest completion, in tokens", within="[1, inf)")
    sample_rows: int = opt(512, "rows that are sampled together, for memory", within="[1, inf)", free=True)
    show: int = opt(1, "sample solutions to print, judged step by step", free=True)
    report: str | None = opt(None, "one HTML page to write: table, figure, judged solutions", free=True)
    report_samples: int = opt(100, "solutions of each checkpoint on that page", within="[1, inf)", free=True)


def parse_bands(text):
    """ "id=2-4,edge=5-6" → {"id": [2, 3, 4], "edge": [5, 6]}. Raises UserError."""
    parts = [part.partition("=") for part in text.split(",")]
    bands = {name.strip(): parse_ops(ops) for name, equals, ops in parts if equals}
    if len(bands) < len(parts):
        raise UserError(f"bands {text!r}: write name=operations for each, such as id=2-4,edge=5-6")
    if len({op for ops in bands.values() for op in ops}) < sum(map(len, bands.values())):
        raise UserError(f"bands {text!r}: a number of operations is in two bands")
    return bands


def parse_ks(text, samples):
    """ "1,8" → [1, 8]. Raises UserError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and 1 <= int(word) <= samples for word in words):
        raise UserError(f"k {text!r} must be numbers from 1 to --samples {samples}")
    return [int(word) for word in words]


def named_folders(text):
    """ "base=out/base/latest,out/grpo/latest" → {"base": …, "grpo": …}. Raises UserError where there is none,
    or two have one name.
    """
    if text is None:
        raise UserError("no checkpoint to evaluate: python evaluate.py name=folder name=folder")
    named = {}
    for item in text.split(","):
        name, equals, path = item.strip().rpartition("=")
        name = name if equals else Path(path).parent.name
        if name in named:
            raise UserError(f"two checkpoints are called {name!r}: give one a name, as in other={path}")
        named[name] = path
    return named


# ------------------------------------------------------------------------------------------------------------
# Statistics


def sums_suffice(problem, constants):
    """Whether it is solved by a policy that finds every quantity and what it depends on, but only adds up.

    constants: whether it adds a quantity's constant too ("3 times V" is V + 3), or ignores it (V).
    """
    sums = {}
    for node in problem.nodes:
        parts = [sums[name] for name in node.operands]
        parts += [(0, node.constant)] if constants and node.constant else []
        gold = node.value if isinstance(node.value, tuple) else (0, node.value)
        sums[node.name] = tuple(map(sum, zip(*parts))) if parts else gold
        if sums[node.name] != gold:
            return False
    return True


def summarise(problems, counts, chosen, ks, n):
    """Statistics of the problems with indices `chosen`: pass@k under each judgement with intervals, process,
    and floors: what the commonest answer earns, and what adding up earns, without constants or with them.
    """
    commonest = Counter(problems[i].answer for i in chosen).most_common(1)[0][1]
    out = {"problems": len(chosen), "guess_floor": commonest / len(chosen)}
    out |= {name: float(counts[name][chosen].mean()) for name in ("copy_floor", "plus_floor", "process")}
    for kind, k in product(JUDGED, ks):
        values = [pass_at_k(n, int(c), k) for c in counts[kind][chosen]]
        low, high = interval(values)
        out[f"{kind}@{k}"] = {"mean": float(np.mean(values)), "low": low, "high": high}
    return out


# ------------------------------------------------------------------------------------------------------------
# Evaluation


def judge(checkpoint, problems, numbers, o):
    """Sample and judge problems of one number of operations → a dict for one line of judged.jsonl.

    numbers: the problems' indices, which their samples' randomness depends on. Counts are of tries that pass,
    one a problem; errors: of how many tries in all; logp: of gold solutions.
    """
    model, tokenizer, op = checkpoint.model, checkpoint.tokenizer, problems[0].op
    how = dict(temperature=o.temperature, top_p=o.top_p, max_new_tokens=o.max_new_tokens)
    how |= dict(batch_size=o.sample_rows, progress=f"op {op}", workers=o.replicas)
    asked, begun = zip(*(ask(o.ask, p, o.seed, number) for p, number in zip(problems, numbers)))
    how |= dict(begun=begun)
    rollouts = roll_out(model, tokenizer, asked, o.samples, (o.seed, "evaluation"), numbers, **how)
    verdicts, errors = [rollout.verdict for rollout in rollouts], Counter()
    for verdict in verdicts:  # each kind once; no set: its order would depend on the hash seed
        nodes = [f"node_{status}" for status in verdict.nodes.values() if status != "ok"]
        errors.update(dict.fromkeys(verdict.errors + nodes, 1))
    errors["unfinished"] = sum(not rollout.finished for rollout in rollouts)
    return {
        "op": op,
        "correct": np.reshape([v.correct for v in verdicts], (-1, o.samples)).sum(1).tolist(),
        "answer": np.reshape([v.answer_correct for v in verdicts], (-1, o.samples)).sum(1).tolist(),
        "faithful": np.reshape([v.faithful for v in verdicts], (-1, o.samples)).sum(1).tolist(),
        "process": np.reshape([v.process for v in verdicts], (-1, o.samples)).mean(1).tolist(),
        "errors": dict(errors),
        **account(o.ask, rollouts, begun, problems),
        "answers": [v.parsed.answer for v in verdicts],  # of every try, as are tokens
        "tokens": [len(rollout.completion_ids) for rollout in rollouts],
        "texts": [rollout.text for rollout in rollouts[:: o.samples]],
        "logp": [round(logp, 3) for logp in gold_logps(model, tokenizer, problems)],
        "nll": held_out_nll(model, tokenizer, problems)[op],
    }


def judged_before(path):
    """{(name, weights, op): line} of an evaluation that was interrupted; a line that was being written is
    done again.
    """
    content = path.read_bytes() if path.exists() else b""
    write_atomic(path, content[: content.rfind(b"\n") + 1])
    return {(line["name"], line["weights"], line["op"]): line for _, line in read_jsonl(path)}


class Evaluation:
    """The problems, in bands; what has been judged of each checkpoint."""

    def __init__(self, o):
        self.o, self.bands, self.ks = o, parse_bands(o.bands), parse_ks(o.k, o.samples)
        self.folders, mixture = named_folders(o.checkpoints), Mixture.parse(o.mixture)
        band_of = {op: band for band, ops in self.bands.items() for op in ops}
        self.problems = held_out(mixture, band_of, o.problems, o.seed, "eval")
        self.groups = {}  # by → value → indices of problems
        for i, p in enumerate(self.problems):
            kinds = dict(band=band_of[p.op], op=str(p.op), mode=p.mode, template=p.template)
            for by, value in kinds.items():
                self.groups.setdefault(by, {}).setdefault(value, []).append(i)
        self.floors = {  # of each problem, besides the guess floor
            "copy_floor": np.array([sums_suffice(p, constants=False) for p in self.problems]),
            "plus_floor": np.array([sums_suffice(p, constants=True) for p in self.problems]),
        }
        self.results, self.counts, self.texts = {}, {}, {}
        tries = f"{len(self.problems)} problems, {o.samples} samples each, temperature {o.temperature}"
        self.caption = f"{tries}, seed {o.seed}; 95% intervals over problems"

    def load(self, device):
        """The checkpoints → {name: Checkpoint}."""
        o, checkpoints = self.o, {}
        for name, folder in self.folders.items():
            checkpoints[name] = it = load_checkpoint(folder, device, o.dtype, o.attention)
            check_room(it.model, it.tokenizer, self.problems, o.max_new_tokens)
        return checkpoints

    def run(self, checkpoints):
        """Judge what has not been judged before, a line of judged.jsonl at a time."""
        o, path = self.o, Path(self.o.out) / "judged.jsonl"
        done = judged_before(path)
        with path.open("a", encoding="utf-8") as file:
            for name, checkpoint in checkpoints.items():
                weights, lines = weights_hash(checkpoint.path), []
                for op, chosen in self.groups["op"].items():
                    line = done.get((name, weights, int(op)))
                    if line is None:
                        line = {"name": name, "checkpoint": str(checkpoint.path), "weights": weights}
                        line |= judge(checkpoint, [self.problems[i] for i in chosen], chosen, o)
                        print(json.dumps(line), file=file, flush=True)
                    lines.append(line)
                self.add(name, checkpoint, lines)
        write_atomic(path.with_name("results.json"), as_json({"options": asdict(o), "results": self.results}))

    def add(self, name, checkpoint, lines):
        """Take in a checkpoint's lines, in order of op."""
        counts = {kind: np.concatenate([line[kind] for line in lines]) for kind in (*JUDGED, "process")}
        counts |= self.floors
        self.counts[name], self.texts[name] = counts, [text for line in lines for text in line["texts"]]
        result = {"checkpoint": str(checkpoint.path), "step": checkpoint.state.get("step")}
        result["nll"] = {str(line["op"]): line["nll"] for line in lines}
        result["errors"] = dict(sum((Counter(line["errors"]) for line in lines), Counter()).most_common())
        for by, groups in self.groups.items():
            result[by] = {}
            for value, chosen in groups.items():
                result[by][value] = summarise(self.problems, counts, chosen, self.ks, self.o.samples)
        self.results[name] = result

    def table(self):
        """→ rows of strings: the header, then a row a band and checkpoint."""
        columns = [f"correct@{k}" for k in self.ks] + ["answer@1", "faithful@1"]
        rows = [["band", "checkpoint", *columns, *FLOORS.values(), "NLL"]]
        for (band, ops), (name, result) in product(self.bands.items(), self.results.items()):
            stats, nll = result["band"][band], np.mean([result["nll"][str(op)] for op in ops])
            cells = ["{mean:.3f} [{low:.3f},{high:.3f}]".format(**stats[column]) for column in columns]
            floors = [f"{stats[floor]:.3f}" for floor in FLOORS]
            rows.append([band, name, *cells, *floors, f"{nll:.3f}"])
        return rows

    def table_by_op(self):
        """→ rows of strings: the header, then a row an op: correct@k of each checkpoint, and the floors."""
        columns = list(product(self.results, self.ks))
        rows = [["op", *(f"{name} @{k}" for name, k in columns), *FLOORS.values()]]
        for op in self.groups["op"]:
            stats = {name: result["op"][op] for name, result in self.results.items()}
            cells = [stats[name][f"correct@{k}"]["mean"] for name, k in columns]
            cells += [next(iter(stats.values()))[floor] for floor in FLOORS]
            rows.append([op, *(f"{cell:.3f}" for cell in cells)])
        return rows

    def print(self):
        """Some tries of the last checkpoint, the table, and each checkpoint's paired difference from the one
        before.
        """
        name, band = list(self.results)[-1], list(self.bands)[:2][-1]
        for i in self.groups["band"][band][: self.o.show]:
            problem, text = self.problems[i], self.texts[name][i]
            print(f"\n{name}, a try at op {problem.op}:\n{problem.problem}\n{problem.question}")
            print(f"{printable(text.strip())}\n{explain(resolved(text), problem, colour())}")
        print(f"\n{self.caption}")
        print_table(self.table(), left=2)
        print_table(self.table_by_op(), left=1)
        for (before, after), band in product(pairwise(self.results), self.bands):
            counts = [self.counts[name]["correct"][self.groups["band"][band]] for name in (before, after)]
            print(f"{after} - {before}, {band}: {gain(*counts, self.o.samples)}")
        print(f"results: {Path(self.o.out) / 'results.json'}")

    def tries(self):
        """(checkpoint, problem, text) of the first try at some problems of each op."""
        every = max(1, len(self.problems) // self.o.report_samples)
        for (name, texts), i in product(self.texts.items(), range(0, len(self.problems), every)):
            yield name, self.problems[i], texts[i]


def main(argv=None):
    o = parse_run_options(Options, argv, PRESETS, __doc__, positional="checkpoints")
    it = Evaluation(o)
    checkpoints = it.load(setup(o))  # before the folder is made: one may be missing
    if o.report:
        check_page(Path(o.report), Path(o.out))
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)  # it stops as ctrl-C does
    try:
        with own_folder(o):
            it.run(checkpoints)
            it.print()
            png = draw_results(it.results, it.bands, it.ks, Path(o.out) / "figure.png")
            if o.report:
                write_report(o.report, it.caption, it.table(), png, it.tries())
    except KeyboardInterrupt:  # judged.jsonl holds what was judged
        print(f"stopped; continue with: python evaluate.py --resume --out {o.out}")
        return STOPPED
    finally:
        signal.signal(signal.SIGTERM, handler)


if __name__ == "__main__":
    run_torch_script(main)

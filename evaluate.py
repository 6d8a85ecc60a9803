"""Evaluate checkpoints on the same held-out problems: pass@k by operations, band, mode and template.

    python evaluate.py out/base out/grpo --preset tiny --report out/eval/report.html
    python evaluate.py out/grpo --data records.jsonl --samples 8 --k 1,8 --out out/own
    python evaluate.py --rescore --out out/eval

Every problem gets `samples` tries; each is judged as correct (every step and the answer), by its answer
alone, and as faithful; of a record of --data that has an answer alone, that is all. Writes samples.jsonl (the
tries, as it goes), judged.jsonl (each problem's counts), results.json and figure.png to --out, prints
tables by band and by op. Stopped by ctrl-C or SIGTERM it exits with 75; --resume goes on from samples.jsonl.
"""

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from lab.device import run_torch_script, setup
from lab.options import UserError, hush, opt, recover_jsonl, write_atomic
from lab.runs import Progress, RunOptions, as_json, own_folder, parse_run_options, stoppable, weights_hash
from lab.statistics import interval

import numpy as np

from chains import ASKS, account, ask, check_asked, gold_logps
from checkpoint import load_checkpoint
from data import with_solutions
from datagen import KEYS_HELP, Mixture, held_out, parse_ops
from report import check_page, floors, show
from rollout import check_room, held_out_nll, roll_out
from tasks import read_problems
from texts import resolved
from verify import pass_at_k, verify

JUDGED = ("correct", "answer", "faithful")
# of samples.jsonl
LINE = {"name", "weights", "op", "checkpoint", "step", "made", "nll", "logp", "tokens", "finished", "texts"}
PRESETS = {
    "tiny": dict(mixture="op 2-9; world mini", bands="id=2-5,edge=6-7,hard=8-9",
                 problems=100, samples=8, k="1,8", max_new_tokens=256, sample_rows=256, replicas=2),
    "small": dict(mixture="op 2-20; template zoo, school, festival", samples=32, k="1,8,32"),
    "paper": dict(sample_rows=2048),
}  # fmt: skip


@dataclass(frozen=True)
class Options(RunOptions):
    out: str = opt("out/eval", "folder for all that is written", group="run", free=True)
    checkpoints: str | None = opt(None, "folders, or name=folder", group="evaluation", free=True)
    bands: str = opt("id=2-10,edge=11-14,hard=15-20", "name=operations of each band")
    data: str | None = opt(None, "evaluate on the problems of this JSONL file instead; `answer` will do")
    rescore: bool = opt(False, "judge the tries in --out anew, without a model", free=True)
    mixture: str = opt("op 2-20", f"world to draw from, its ops those of the bands: {KEYS_HELP}")
    ask: str | None = opt(None, "how problems are put, if not as in training: chains.py", tuple(ASKS))
    problems: int = opt(100, "problems of each number of operations", within="[2, inf)")
    per_band: bool = opt(False, "--problems are of each band instead, spread over its operations")
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
    bands = {name.strip(): parse_ops(ops) for name, equals, ops in parts if equals and name.strip()}
    if len(bands) < len(parts):
        raise UserError(f"bands {text!r}: write name=operations once for each, such as id=2-4,edge=5-6")
    if len({op for ops in bands.values() for op in ops}) < sum(map(len, bands.values())):
        raise UserError(f"bands {text!r}: a number of operations is in two bands")
    return bands


def number_of_problems(o):
    """{operations: how many problems of so many}, in order."""
    bands = parse_bands(o.bands).values()
    sharing = {op: len(ops) if o.per_band else 1 for ops in bands for op in ops}  # the same --problems
    return {op: max(2, o.problems // n) for op, n in sorted(sharing.items())}


def parse_ks(text, samples):
    """ "1,8" → [1, 8]. Raises UserError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and 1 <= int(word) <= samples for word in words):
        raise UserError(f"k {text!r} must be numbers from 1 to --samples {samples}")
    return list(dict.fromkeys(map(int, words)))


def named_folders(text):
    """ "base=out/base/latest,out/grpo/latest" → {"base": …, "grpo": …}. Raises UserError where there is none,
    or two have one name.
    """
    if text is None:
        raise UserError("no checkpoint to evaluate: python evaluate.py name=folder name=folder")
    named = {}
    for item in text.split(","):
        name, equals, path = item.strip().rpartition("=")
        place = Path(path).absolute()
        link = re.fullmatch(r"latest|best|step_\d+", place.name)
        name = name if equals else (place.parent if link else place).name
        if name in named:
            raise UserError(f"two checkpoints are called {name!r}: give one a name, as in other={path}")
        named[name] = path
    return named


# ------------------------------------------------------------------------------------------------------------
# Statistics


def summarise(problems, counts, chosen, ks, n):
    """Statistics of the problems with indices `chosen`: pass@k under each judgement with intervals, process,
    and floors: what the commonest answer earns, and what adding up earns, without constants or with them.
    """
    commonest = Counter(problems[i].answer for i in chosen).most_common(1)[0][1]
    out = {"problems": len(chosen), "guess_floor": commonest / len(chosen)}
    out |= {name: float(of[chosen].mean()) for name, of in counts.items() if name not in JUDGED}
    for kind, k in product(JUDGED, ks):
        values = [pass_at_k(n, int(c), k) for c in counts[kind][chosen]]
        low, high = interval(values)
        out[f"{kind}@{k}"] = {"mean": float(np.mean(values)), "low": low, "high": high}
    return out


# ------------------------------------------------------------------------------------------------------------
# Evaluation


def try_out(checkpoint, problems, numbers, o, progress=None):
    """Sample tries at problems of one number of operations → a dict for one line of samples.jsonl.

    numbers: the problems' indices, which their samples' randomness depends on; logp: of gold solutions.
    """
    model, tokenizer, op = checkpoint.model, checkpoint.tokenizer, problems[0].op
    how = dict(temperature=o.temperature, top_p=o.top_p, max_new_tokens=o.max_new_tokens)
    how |= dict(batch_size=o.sample_rows, progress=progress, workers=o.replicas)
    asked, begun = put(problems, numbers, o)
    stream = (o.seed, "evaluation")
    rollouts = roll_out(model, tokenizer, asked, o.samples, stream, numbers, begun=begun, **how)
    solved = with_solutions(problems)
    made = {what: checkpoint.state.get(what) for what in ("code", "torch", "tokenizer_hash")}
    return {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.state.get("step"),
        "made": made | {"options": checkpoint.options},  # for the report
        "op": op,
        "nll": held_out_nll(model, tokenizer, solved)[op] if solved else None,
        "tokens": [len(rollout.completion_ids) for rollout in rollouts],
        "finished": [rollout.finished for rollout in rollouts],
        "texts": [rollout.text for rollout in rollouts],  # problem-major
        "logp": [round(logp, 3) for logp in gold_logps(model, tokenizer, solved)] if solved else [],
    }


def put(problems, numbers, o):
    """How these problems are put to a model → lists of what is asked, and of what stands already."""
    return zip(*(ask(o.ask, problem, o.seed, number) for problem, number in zip(problems, numbers)))


def judge(line, problems, numbers, o):
    """A line of samples.jsonl, the tries at these problems → a line of judged.jsonl: how many pass."""
    n, texts, (_, begun) = o.samples, line["texts"], put(problems, numbers, o)
    verdicts = [verify(resolved(text), problems[i // n]) for i, text in enumerate(texts)]
    errors = Counter()
    for verdict in verdicts:  # each kind once; no set: its order would depend on the hash seed
        nodes = [f"node_{status}" for status in verdict.nodes.values() if status != "ok"]
        errors.update(dict.fromkeys(verdict.errors + nodes, 1))
    errors["unfinished"] = line["finished"].count(False)
    passed = np.reshape([(v.solved, v.answer_correct, v.faithful) for v in verdicts], (-1, n, 3)).sum(1)
    return {
        **line,
        **dict(zip(JUDGED, passed.T.tolist())),
        "process": np.reshape([v.process for v in verdicts], (-1, n)).mean(1).tolist(),
        "errors": dict(errors),
        **account(o.ask, texts, line["tokens"], verdicts, begun, problems),
        "answers": [v.parsed.answer for v in verdicts],  # of every try, as are tokens
        "texts": texts[::n],
    }


class Evaluation:
    """The problems, in bands; what has been judged of each checkpoint."""

    def __init__(self, o):
        self.o, self.bands, self.ks = o, parse_bands(o.bands), parse_ks(o.k, o.samples)
        self.folders, mixture = named_folders(o.checkpoints), Mixture.parse(o.mixture)
        if o.data:
            self.problems = read_problems(o.data)
            self.bands = {Path(o.data).stem: sorted({problem.op for problem in self.problems})}
        else:
            numbers = number_of_problems(o).items()
            self.problems = [p for op, n in numbers for p in held_out(mixture, [op], n, o.seed, "eval")]
        check_asked(o.ask, self.problems)
        band_of = {op: band for band, ops in self.bands.items() for op in ops}
        self.groups = {}  # by → value → indices of problems
        for i, p in enumerate(self.problems):
            kinds = dict(band=band_of[p.op], op=str(p.op), mode=p.mode, template=p.template)
            for by, value in kinds.items():
                self.groups.setdefault(by, {}).setdefault(value, []).append(i)
        self.floors = floors(self.problems)
        self.results, self.counts, self.texts, self.made = {}, {}, {}, {}
        tries = f"{len(self.problems)} problems, {o.samples} samples each, temperature {o.temperature}"
        self.caption = f"{tries}, seed {o.seed}; 95% intervals over problems"

    def load(self, device):
        """The checkpoints → {name: Checkpoint}."""
        o, checkpoints = self.o, {}
        asked, begun = put(self.problems, range(len(self.problems)), o)
        for name, folder in self.folders.items():
            checkpoints[name] = it = load_checkpoint(folder, device, o.dtype, o.attention)
            check_room(it.model, it.tokenizer, asked, o.max_new_tokens, begun)
        return checkpoints

    def run(self, checkpoints):
        """Sample what has not been sampled before, a line of samples.jsonl at a time; judge all of it.

        checkpoints: {name: Checkpoint}, or None to judge what there is: UserError if that is not all.
        """
        o, out, judged = self.o, Path(self.o.out), []
        done = recover_jsonl(out / "samples.jsonl", LINE)
        before = {(line["name"], line["op"]): line for line in done}  # the later line stands
        n = len(self.folders) * len(self.problems) * o.samples
        progress = Progress(out.name, 0, n, not o.quiet, "sample")
        with progress, (out / "samples.jsonl").open("a", encoding="utf-8") as file:
            for name in self.folders:
                weights, lines = checkpoints and weights_hash(checkpoints[name].path), []
                for op, chosen in self.groups["op"].items():
                    line, problems = before.get((name, int(op))), [self.problems[i] for i in chosen]
                    if checkpoints and (line is None or line["weights"] != weights):
                        progress.words, line = f"{name} op {op}", {"name": name, "weights": weights}
                        line |= try_out(checkpoints[name], problems, chosen, o, progress)
                        print(json.dumps(line), file=file, flush=True)
                    else:
                        progress.skip(len(chosen) * o.samples)
                    if line is None:
                        raise UserError(f"{file.name} lacks the tries of {name} at op {op}: --resume first")
                    lines.append(judge(line, problems, chosen, o))
                self.add(name, lines)
                judged += lines
        write_atomic(out / "judged.jsonl", "".join(json.dumps(line) + "\n" for line in judged))
        write_atomic(out / "results.json", as_json({"options": asdict(o), "results": self.results}))

    def add(self, name, lines):
        """Take in a checkpoint's judged lines, in order of op."""
        counts = {kind: np.concatenate([line[kind] for line in lines]) for kind in (*JUDGED, "process")}
        counts |= self.floors
        self.counts[name], self.texts[name] = counts, [text for line in lines for text in line["texts"]]
        result = {"checkpoint": lines[0]["checkpoint"], "step": lines[0]["step"]}
        self.made[name] = result | {"weights": lines[0]["weights"], **lines[0]["made"]}
        result["nll"] = {str(line["op"]): line["nll"] for line in lines}
        result["errors"] = dict(sum((Counter(line["errors"]) for line in lines), Counter()).most_common())
        for by, groups in self.groups.items():
            result[by] = {}
            for value, chosen in groups.items():
                result[by][value] = summarise(self.problems, counts, chosen, self.ks, self.o.samples)
        self.results[name] = result


def main(argv=None):
    o = parse_run_options(Options, argv, PRESETS, __doc__, positional="checkpoints")
    it = Evaluation(o)
    with hush(o.quiet) as stdout:
        # before the folder is made: one may be missing
        checkpoints = None if o.rescore else it.load(setup(o))
        if o.report:
            check_page(Path(o.report), Path(o.out))
        with stoppable(o.out) as stopped, own_folder(o, inputs=[o.data] if o.data else []):
            it.run(checkpoints)
            show(it, stdout)
        return stopped.code  # samples.jsonl holds what was sampled


if __name__ == "__main__":
    run_torch_script(main)

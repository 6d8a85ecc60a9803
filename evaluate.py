"""Evaluate checkpoints on the same held-out problems: pass@k by operations, band, mode and template.

    python evaluate.py base=out/base/latest grpo=out/grpo/latest --preset tiny --out out/eval --report out/eval/report.html
    python evaluate.py --plot out/demo/*

Every problem gets `samples` tries; each is judged as correct (every step and the answer), by its answer alone, and as faithful.
Writes judged.jsonl (each problem's counts, as it goes), results.json and figure.png to --out, prints the table.
"""

import json
from base64 import b64encode
from collections import Counter
from dataclasses import asdict, dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np

import cli
import common
import data
import datagen
import verify
from attention import BACKENDS

JUDGED = ("correct", "answer", "faithful")


@dataclass(frozen=True)
class Options:
    checkpoints: str | None = cli.opt(None, "checkpoint folders; name=folder names one (with --plot: run and evaluation folders)")
    preset: str = cli.opt("tiny", "defaults of all other options: " + ", ".join(common.PRESETS))
    out: str = cli.opt("out/eval", "folder for judged.jsonl, results.json and figure.png")
    resume: bool = cli.opt(False, "go on with the evaluation in --out, if there is one")
    seed: int = cli.opt(1, "seed of problems and samples")
    device: str = cli.opt("auto", "auto, cpu, cuda or mps")
    threads: int = cli.opt(0, "CPU threads (0: torch's default)")
    attention: str = cli.opt("auto", "triton, sdpa, reference, or auto: the Triton kernels on a CUDA GPU; results differ in rounding only", BACKENDS)
    dtype: str = cli.opt("auto", "of matrix products: float32, bfloat16, or auto: bfloat16 on a CUDA GPU, else float32", common.DTYPES)
    bands: str = cli.opt("id=2-10,edge=11-14,hard=15-20", "name=operations of each band")
    mixture: str = cli.opt("op 2-20", "the world to draw from: see data.Mixture (its ops are replaced by the bands')")
    problems: int = cli.opt(100, "problems of each number of operations")
    samples: int = cli.opt(128, "tries for each problem, n")
    k: str = cli.opt("1,8,32,128", "values of k for pass@k, each at most n")
    temperature: float = cli.opt(1.0, "of sampling (0: greedy)")
    top_p: float = cli.opt(1.0, "of sampling")
    max_new_tokens: int = cli.opt(1024, "longest completion, in tokens")
    sample_rows: int = cli.opt(512, "rows that are sampled together")
    show: int = cli.opt(1, "sample solutions to print, judged step by step")
    report: str | None = cli.opt(None, "write one self-contained HTML page here: table, figure, judged solutions")
    report_samples: int = cli.opt(100, "solutions of each checkpoint on that page")
    plot: bool = cli.opt(False, "compare runs in one figure instead: pass@1 by operations, reward by step, NLL by operations")

    def __post_init__(self):
        if self.checkpoints is None:
            raise cli.UserError("no checkpoint to evaluate: python evaluate.py name=folder name=folder")
        cli.at_least(self, 1, "samples", "max_new_tokens", "sample_rows", "report_samples")
        cli.at_least(self, 2, "problems")
        cli.at_least(self, 0, "show", "threads", "temperature")


def bootstrap(values, seed=0, resamples=2000):
    """95% percentile interval of the mean of values (problems,), resampling problems (Efron 1979) → (low, high)."""
    values = np.asarray(values, np.float64)
    index = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    return tuple(np.percentile(values[index].mean(1), [2.5, 97.5]))


def judge(checkpoint, problems, first, o, device):
    """Sample and judge problems of one number of operations → a dict for one line of judged.jsonl.

    first: index of the first of them, which their samples' randomness depends on. Counts are of tries that pass, one a problem.
    """
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    _, samples, texts, verdicts = common.solve(
        model, tokenizer, problems, o.samples, max_new_tokens=o.max_new_tokens, temperature=o.temperature, top_p=o.top_p, seed=o.seed,
        batch_size=o.sample_rows, indices=range(first, first + len(problems)), progress=f"op {problems[0].op}")  # fmt: skip
    shape = (len(problems), o.samples)
    errors = Counter(kind for v in verdicts for kind in dict.fromkeys(v.errors))  # not a set: its order would depend on the hash seed
    errors.update(f"node_{status}" for v in verdicts for status in dict.fromkeys(v.nodes.values()) if status != "ok")
    errors["unfinished"] = len(verdicts) - sum(samples.finished)
    return {
        "correct": np.array([v.correct for v in verdicts]).reshape(shape).sum(1).tolist(),
        "answer": np.array([v.answer_correct for v in verdicts]).reshape(shape).sum(1).tolist(),
        "faithful": np.array([v.faithful for v in verdicts]).reshape(shape).sum(1).tolist(),
        "process": np.array([v.process for v in verdicts]).reshape(shape).mean(1).tolist(),
        "errors": dict(errors),
        "texts": texts[:: o.samples],
        "nll": common.held_out_nll(model, tokenizer, problems, device)[str(problems[0].op)],
    }


def judged_before(path, o):
    """{(name, weights, op): line} of an evaluation that was interrupted. Raises UserError if its options were others."""
    done = {}
    if not path.exists():
        return done
    if not o.resume:
        raise cli.UserError(f"{path.parent} already holds an evaluation: add --resume to continue it, or choose another --out")
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"\n") + 1])  # a line that was being written is done again
    for number, line in cli.read_jsonl(path):
        if number == 1:
            common.keeps_options(o, line["options"], "evaluation", common.FREE | {"checkpoints", "show", "report", "report_samples"})
        else:
            done[line["name"], line["weights"], line["op"]] = line
    return done


def summarise(problems, counts, chosen, ks, n):
    """Statistics of the problems with indices `chosen`: pass@k under each judgement with intervals, process, guess floor."""
    commonest = Counter(problems[i].answer for i in chosen).most_common(1)[0][1]
    out = {"problems": len(chosen), "guess_floor": commonest / len(chosen), "process": float(counts["process"][chosen].mean())}
    for kind in JUDGED:
        for k in ks:
            values = [verify.pass_at_k(n, int(c), k) for c in counts[kind][chosen]]
            low, high = bootstrap(values)
            out[f"{kind}@{k}"] = {"mean": float(np.mean(values)), "low": low, "high": high}
    return out


def gain(before, after, n):
    """Paired difference of pass@1 over the same problems → (mean, standard error). before, after: (problems,) counts."""
    difference = (after - before) / n
    return float(difference.mean()), float(difference.std(ddof=1) / len(difference) ** 0.5)


def parse_bands(text):
    """ "id=2-4,edge=5-6" → {"id": [2, 3, 4], "edge": [5, 6]}. Raises UserError."""
    bands = {}
    for part in text.split(","):
        name, equals, ops = part.partition("=")
        if not equals or name.strip() in bands:
            raise cli.UserError(f"bands {text!r}: write name=operations for each, such as id=2-4,edge=5-6,hard=7-8")
        bands[name.strip()] = datagen.parse_ops(ops)
    ops = [op for ops in bands.values() for op in ops]
    if len(set(ops)) < len(ops):
        raise cli.UserError(f"bands {text!r}: a number of operations is in two bands")
    return bands


def pyplot():
    """matplotlib's pyplot without a display, or None (and a line that says so) where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no figure: matplotlib is not installed (pip install '.[figures]')")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def compare_runs(paths, out):
    """One figure of many folders, of what each holds: evaluations (pass@1 by operations), GRPO runs (reward), training runs (NLL)."""
    evaluations, rewards, nll = {}, {}, {}
    for path in map(Path, paths):
        if path.is_file():
            continue  # of `out/demo/*`
        if (path / "results.json").is_file():
            for name, result in json.loads((path / "results.json").read_text())["results"].items():
                evaluations[f"{path.name}/{name}"] = {int(op): s["correct@1"] for op, s in result["op"].items()}
        elif (path / "metrics.jsonl").is_file():
            for _, line in cli.read_jsonl(path / "metrics.jsonl"):
                if "rollout/reward" in line:
                    rewards.setdefault(path.name, []).append((line["step"], line["rollout/reward"]))
                ops = {int(key.removeprefix("eval/nll_op")): value for key, value in line.items() if key.startswith("eval/nll_op")}
                if ops:
                    nll[path.name] = ops  # the last evaluation
        else:
            raise cli.UserError(f"{path} holds neither metrics.jsonl of a run nor results.json of an evaluation")
    plt = pyplot()
    if plt is None:
        return
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    for name, stats in evaluations.items():
        ops = sorted(stats)
        (line,) = left.plot(ops, [stats[op]["mean"] for op in ops], ".-", label=name)
        left.fill_between(ops, [stats[op]["low"] for op in ops], [stats[op]["high"] for op in ops], color=line.get_color(), alpha=0.25, lw=0)
    for name, points in rewards.items():
        middle.plot(*zip(*points), label=name)
    for name, ops in nll.items():
        right.plot(sorted(ops), [ops[op] for op in sorted(ops)], ".-", label=name)
    left.set(xlabel="operations", ylabel="pass@1 (every step correct)", ylim=(0, 1.05))
    middle.set(xlabel="GRPO step", ylabel="mean reward")
    right.set(xlabel="operations", ylabel="held-out NLL (nats per token)", yscale="log")
    for axes, shown in ((left, evaluations), (middle, rewards), (right, nll)):
        if shown:
            axes.legend(fontsize="small")
    out.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(out, dpi=120)
    print(f"figure: {out}")


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}}table{{border-collapse:collapse}}
td,th{{padding:.2em .7em;border-bottom:1px solid #ccc;text-align:left;vertical-align:top}}th{{cursor:pointer}}img{{max-width:100%}}
pre{{white-space:pre-wrap;margin:0;font-size:13px}}.good{{color:#17702a}}.bad{{color:#b3261e}}.extra{{color:#777}}</style>
<h1>Evaluation</h1><p>{caption}</p>{table}<p>{figure}</p><h2>Solutions, judged step by step</h2>
<p>The first try at some problems of each number of operations. Show <select id="which"><option value="">all</option>{options}</select>;
click a heading to sort.</p><table id="solutions"><thead><tr><th>checkpoint<th>op<th>verdict<th>process<th>problem and solution</thead>
<tbody>{rows}</tbody></table>
<script>
const body = document.querySelector("#solutions tbody"), rows = [...body.rows];
document.querySelectorAll("#solutions th").forEach((th, i) => {{ let up = 1; th.onclick = () => {{
  rows.sort((a, b) => up * a.cells[i].textContent.localeCompare(b.cells[i].textContent, "en", {{numeric: true}})); up = -up; body.append(...rows); }}; }});
document.querySelector("#which").onchange = e => rows.forEach(r => r.hidden = e.target.value && r.cells[2].textContent != e.target.value);
</script></html>"""


def write_report(path, caption, header, table, png, tries):
    """One HTML page that needs nothing but itself. tries: (checkpoint, problem, text) of each solution to show."""
    rows, kinds = [], set()
    for name, p, text in tries:
        verdict = verify.verify(text, p)
        kinds.add(verdict.kind)
        judged = "".join(f'<div class="{dict(zip("✓✗·", ("good", "bad", "extra"))).get(line[0], "")}">{escape(line)}</div>'
                         for line in verify.explain(text, p).splitlines())  # fmt: skip
        rows.append(f"<tr><td>{escape(name)}<td>{p.op}<td>{verdict.kind}<td>{verdict.process:.2f}<td><pre>{escape(p.problem)}\n<b>{escape(p.question)}</b>\n\n"
                    f"{escape(text.strip())}</pre>{judged}")  # fmt: skip
    cells = "".join("<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) for row in table)
    image = f'<img alt="pass@1 by operations, pass@k by k" src="data:image/png;base64,{b64encode(png).decode()}">' if png else ""
    cli.write_atomic(path, PAGE.format(
        caption=escape(caption), table="<table><tr>" + "".join(f"<th>{escape(h)}" for h in header) + cells + "</table>", figure=image,
        options="".join(f"<option>{kind}</option>" for kind in sorted(kinds)), rows="".join(rows)))  # fmt: skip
    print(f"report: {path}")


def figure(results, bands, ks, path):
    """Left: pass@1 by operations, with intervals, the bands shaded. Right: pass@k by k for each band."""
    plt = pyplot()
    if plt is None:
        return
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    colours = dict(zip(results, plt.rcParams["axes.prop_cycle"].by_key()["color"]))
    for (name, ops), shade in zip(bands.items(), ("0.93", "0.86", "0.79", "0.72")):
        left.axvspan(min(ops) - 0.5, max(ops) + 0.5, color=shade, lw=0)
        left.text(sum(ops) / len(ops), 1.03, name, ha="center")
    for name, result in results.items():
        ops = sorted(map(int, result["op"]))
        stats = [result["op"][str(op)]["correct@1"] for op in ops]
        left.plot(ops, [s["mean"] for s in stats], "o-", color=colours[name], label=name)
        left.fill_between(ops, [s["low"] for s in stats], [s["high"] for s in stats], color=colours[name], alpha=0.25, lw=0)
        for band, style in zip(bands, ("-", "--", ":", "-.")):
            right.plot(ks, [result["band"][band][f"correct@{k}"]["mean"] for k in ks], style, marker=".", color=colours[name], label=f"{name}, {band}")
    left.set(xlabel="operations", ylabel="pass@1 (every step correct)", ylim=(0, 1.1))
    right.set(xlabel="k", ylabel="pass@k (every step correct)", ylim=(0, 1.1), xscale="log", xticks=ks, xticklabels=ks)
    left.legend(loc="lower left")
    right.minorticks_off()
    right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    fig.savefig(path, dpi=120)
    print(f"figure: {path}")


def main():
    o = cli.parse_options(Options, description=__doc__, presets=common.preset("evaluate"), positional="checkpoints")
    if o.plot:
        compare_runs(o.checkpoints.split(","), Path(o.out) / "runs.png")
        return
    bands, ks = parse_bands(o.bands), [int(k) for k in o.k.split(",") if k.strip().isdigit()]
    if not ks or not 1 <= min(ks) <= max(ks) <= o.samples:
        raise cli.UserError(f"k {o.k!r} must be numbers from 1 to --samples {o.samples}")
    device = common.setup(o.device, o.seed, o.threads, o.attention)
    mixture = data.Mixture.parse(o.mixture)
    rand = np.random.default_rng(o.seed).random
    problems = [datagen.generate(o.seed, i, split="eval", **{**mixture.arguments(rand), "op": op})
                for ops in bands.values() for op in ops for i in range(o.problems)]  # fmt: skip
    groups = {"band": {}, "op": {}, "mode": {}, "template": {}}
    for i, p in enumerate(problems):
        band = next(name for name, ops in bands.items() if p.op in ops)
        for by, value in (("band", band), ("op", str(p.op)), ("mode", p.mode), ("template", p.template)):
            groups[by].setdefault(value, []).append(i)

    named = {}
    for item in o.checkpoints.split(","):
        name, equals, path = item.strip().rpartition("=")
        named[name if equals else Path(path).parent.name] = common.load_checkpoint(path, device, o.dtype)
    out = Path(o.out)
    done = judged_before(out / "judged.jsonl", o)
    out.mkdir(parents=True, exist_ok=True)
    results, counts, texts = {}, {}, {}
    with (out / "judged.jsonl").open("a", encoding="utf-8") as file:
        if not file.tell():
            file.write(json.dumps({"options": asdict(o)}) + "\n")
        for name, checkpoint in named.items():
            weights, lines = common.weights_hash(checkpoint), []
            for op, chosen in groups["op"].items():
                line = done.get((name, weights, int(op)))
                if line is None:
                    line = judge(checkpoint, [problems[i] for i in chosen], chosen[0], o, device)
                    line = {"name": name, "checkpoint": str(checkpoint.path), "weights": weights, "op": int(op), **line}
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                lines.append(line)
            counts[name] = {kind: np.concatenate([line[kind] for line in lines]) for kind in (*JUDGED, "process")}
            texts[name] = [text for line in lines for text in line["texts"]]
            errors = sum((Counter(line["errors"]) for line in lines), Counter())
            results[name] = {
                "checkpoint": str(checkpoint.path), "step": checkpoint.state.get("step"), "nll": {str(line["op"]): line["nll"] for line in lines},
                "errors": dict(errors.most_common()),
                **{by: {value: summarise(problems, counts[name], chosen, ks, o.samples) for value, chosen in values.items()}
                   for by, values in groups.items()},
            }  # fmt: skip

    cli.write_atomic(out / "results.json", json.dumps({"options": asdict(o), "results": results}, indent=1) + "\n")
    for i in range(min(o.show, len(problems))):
        which = groups["band"][list(bands)[min(1, len(bands) - 1)]][i]
        print(f"\n{name}, a try at op {problems[which].op}:\n{problems[which].problem}\n{problems[which].question}\n{texts[name][which].strip()}")
        print(verify.explain(texts[name][which], problems[which], cli.colour()))
    caption = f"{len(problems)} problems, {o.samples} samples each, temperature {o.temperature}, seed {o.seed}; 95% intervals over problems"
    columns = [f"correct@{k}" for k in ks] + ["answer@1", "faithful@1"]
    table = []
    for band, ops in bands.items():
        for name, result in results.items():
            stats = result["band"][band]
            cells = [f"{stats[c]['mean']:.3f} [{stats[c]['low']:.3f},{stats[c]['high']:.3f}]" for c in columns]
            nll = np.mean([result["nll"][str(op)] for op in ops])
            table.append([band, name, *cells, f"{stats['guess_floor']:.3f}", f"{nll:.3f}"])
    print(f"\n{caption}\n{'':6} {'':10} " + " ".join(f"{c:>19}" for c in columns) + f" {'guess floor':>12} {'NLL':>6}")
    for band, name, *cells, floor, nll in table:
        print(f"{band:6} {name:10} " + " ".join(f"{c:>19}" for c in cells) + f" {floor:>12} {nll:>6}")
    for before, name in pairwise(results):
        for band, chosen in groups["band"].items():
            mean, error = gain(counts[before]["correct"][chosen], counts[name]["correct"][chosen], o.samples)
            print(f"{name} - {before}, {band}: correct@1 {mean:+.3f}, standard error {error:.3f} ({mean / max(error, 1e-9):+.1f} SE)")
    print(f"results: {out / 'results.json'}")
    figure(results, bands, ks, out / "figure.png")
    if o.report:
        every = max(1, len(problems) // o.report_samples)
        tries = [(name, problems[i], texts[name][i]) for name in results for i in range(0, len(problems), every)]
        png = (out / "figure.png").read_bytes() if (out / "figure.png").exists() else None
        write_report(o.report, caption, ["band", "checkpoint", *columns, "guess floor", "NLL"], table, png, tries)


if __name__ == "__main__":
    common.run(main)

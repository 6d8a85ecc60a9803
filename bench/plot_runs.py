"""Compare runs in one figure: pass@1 by operations, reward by step, held-out NLL by operations.

    python bench/plot_runs.py out/demo/* --out out/runs.png

Each folder gives what it holds: an evaluation's results.json, or the metrics.jsonl of a training run.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lab.options import CheckedOptions, UserError, opt, parse_options, read_json, read_jsonl, run_script

from report import correct_by_op, draw_by_op, pyplot, save_figure

NLL = "eval/nll_op"
BOUNDS = ("mean", "low", "high")


@dataclass(frozen=True)
class Options(CheckedOptions):
    folders: str | None = opt(None, "run and evaluation folders; files among them are passed over")
    out: str = opt("out/runs.png", "the figure to write")


def read_evaluation(path):
    """{folder/checkpoint: pass@1 by operations, with its interval} of an evaluation's folder."""
    results, out = read_json(path / "results.json")["results"], {}
    for name, result in results.items():
        stats = correct_by_op(result).items()
        out[f"{path.name}/{name}"] = {op: {key: float(s[key]) for key in BOUNDS} for op, s in stats}
    return out


def read_run(path):
    """The metrics of a run's folder → ([(step, mean reward)], the last evaluation's NLL by operations)."""
    rewards, nll = [], {}
    for _, line in read_jsonl(path / "metrics.jsonl"):
        if "rollout/reward" in line:
            rewards.append((int(line["step"]), float(line["rollout/reward"])))
        by_op = {int(key.removeprefix(NLL)): float(v) for key, v in line.items() if key.startswith(NLL)}
        nll = by_op or nll
    return rewards, nll


def read_folders(paths):
    """→ (evaluations, rewards, nll), each {label: what to draw}.

    Raises UserError for a folder that holds none of it.
    """
    evaluations, rewards, nll = {}, {}, {}
    for path in map(Path, paths):
        if path.is_file():
            continue  # of `out/demo/*`
        try:
            if (path / "results.json").is_file():
                evaluations |= read_evaluation(path)
            elif (path / "metrics.jsonl").is_file():
                rewards[path.name], nll[path.name] = read_run(path)
            else:
                raise UserError(
                    f"{path} holds neither metrics.jsonl of a run nor results.json of an evaluation"
                )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{path} does not hold what our scripts write ({error!r})") from None
    return evaluations, {k: v for k, v in rewards.items() if v}, {k: v for k, v in nll.items() if v}


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__, positional="folders")
    if o.folders is None:
        raise UserError("no folder: python bench/plot_runs.py out/demo/* --out out/runs.png")
    evaluations, rewards, nll = read_folders(o.folders.split(","))
    plt = pyplot()
    if plt is None:
        return
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    for name, stats in evaluations.items():
        draw_by_op(left, stats, name)
    for name, points in rewards.items():
        middle.plot(*zip(*points), label=name)
    for name, ops in nll.items():
        right.plot(sorted(ops), [ops[op] for op in sorted(ops)], ".-", label=name)
    left.set(xlabel="operations", ylabel="pass@1 (every step correct)", ylim=(0, 1.05))
    middle.set(xlabel="GRPO step", ylabel="mean reward")
    right.set(xlabel="operations", ylabel="held-out NLL (nats per token)", yscale="log")
    for axes, shown in ((left, evaluations), (middle, rewards), (right, nll)):
        axes.xaxis.get_major_locator().set_params(integer=True)
        if shown:
            axes.legend(fontsize="small")
    save_figure(fig, o.out)


if __name__ == "__main__":
    run_script(main)

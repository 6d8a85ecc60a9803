"""What one looks at: tables, figures and an HTML page of judged solutions, which opens offline."""

import io
import json
from base64 import b64encode
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import asdict
from hashlib import sha256
from html import escape
from itertools import combinations, cycle, pairwise, product
from pathlib import Path
from string import Template

from lab.options import UserError, colour, printable, write_atomic
from lab.runs import code_hash
from lab.statistics import gain

import numpy as np

from texts import resolved
from verify import explain, verify

FLOORS = {"guess_floor": "guess floor", "copy_floor": "copy floor", "plus_floor": "plus floor"}
PAGE = Path(__file__).with_name("docs") / "page.html"
IMAGE = '<div class="wide"><img alt="{}" src="data:image/png;base64,{}"></div>'
CLASSES = {"✓": "good", "✗": "bad", "·": "dim"}  # of a line of `explain`, by how it begins
LEVELS = ("wrong", "answer only", "correct", "faithful")  # Verdict.kind, the best last
SHOWN = {"0123": "any", "123": "answer right", "23": "correct", "3": "faithful", "01": "not correct"}


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


def floors(problems):
    """{name: bools, one a problem}, besides the guess floor; empty where not all graphs are known."""
    if not all(problem.nodes for problem in problems):
        return {}
    policies = (("copy_floor", False), ("plus_floor", True))
    return {name: np.array([sums_suffice(it, constants) for it in problems]) for name, constants in policies}


def show(it, stdout):
    """Print what an evaluate.Evaluation found, draw its figure and write its page. stdout: for the tables."""
    out = Path(it.o.out)
    print_tries(it)
    with redirect_stdout(stdout):
        print_tables(it)
    print(f"results: {out / 'results.json'}")
    png = draw_results(it.results, it.bands, it.ks, out / "figure.png")
    if it.o.report:
        write_report(it, png)


def print_tries(it):
    """Some of the last checkpoint."""
    name, band = list(it.results)[-1], list(it.bands)[:2][-1]
    for i in it.groups["band"][band][: it.o.show]:
        problem, text = it.problems[i], it.texts[name][i]
        told = printable(f"{problem.problem}\n{problem.question}")
        print(f"\n{name}, a try at op {problem.op}:\n{told}")
        print(f"{printable(text.strip())}\n{explain(resolved(text), problem, colour())}")


def print_tables(it):
    """By band and by op, and each checkpoint's paired difference from the one before."""
    print(f"\n{it.caption}")
    print_table(table(it), left=2)
    print_table(table_by_op(it), left=1)
    for pair, band, said in differences(it, pairwise(it.results)):
        print(f"{pair}, {band}: {said}")


def table(it):
    """→ rows of strings: the header, then a row a band and checkpoint."""
    columns = [f"correct@{k}" for k in it.ks] + ["answer@1", "faithful@1"]
    rows = [["band", "checkpoint", *columns, *FLOORS.values(), "NLL"]]
    for (band, ops), (name, result) in product(it.bands.items(), it.results.items()):
        stats, nll = result["band"][band], [result["nll"][str(op)] for op in ops]
        cells = ["{mean:.3f} [{low:.3f},{high:.3f}]".format(**stats[column]) for column in columns]
        numbers = [*map(stats.get, FLOORS), None if None in nll else np.mean(nll)]
        rows.append([band, name, *cells, *map(three_places, numbers)])
    return rows


def table_by_op(it):
    """→ rows of strings: the header, then a row an op: correct@k of each checkpoint, and the floors."""
    columns = list(product(it.results, it.ks))
    rows = [["op", *(f"{name} @{k}" for name, k in columns), *FLOORS.values()]]
    for op in it.groups["op"]:
        stats = {name: result["op"][op] for name, result in it.results.items()}
        cells = [stats[name][f"correct@{k}"]["mean"] for name, k in columns]
        cells += map(next(iter(stats.values())).get, FLOORS)
        rows.append([op, *map(three_places, cells)])
    return rows


def three_places(number):
    return "-" if number is None else f"{number:.3f}"


def differences(it, pairs):
    """Rows of strings: (after - before, band, how they differ over the same problems)."""
    for (before, after), (band, chosen) in product(pairs, it.groups["band"].items()):
        counts = [it.counts[name]["correct"][chosen] for name in (before, after)]
        yield f"{after} - {before}", band, gain(*counts, it.o.samples)


def check_page(path, out):
    """Raise UserError or OSError if no page can be written to `path`, which the folder `out` is not to be."""
    if path.is_dir() or path == out:
        raise UserError(f"--report {path} is a folder: name a file, such as {path / 'report.html'}")
    if (path.exists() and not path.is_file()) or (
        path.resolve().parent == out.resolve() and path.suffix != ".html"
    ):
        raise UserError(f"--report {path} would replace something else: name a file such as report.html")
    trial = path.with_name(path.name + ".trial")
    write_atomic(trial, "")
    trial.unlink()


def write_page(path, title, caption, contents):
    """One HTML page that needs nothing but itself. contents: HTML, by the functions below.

    Its policy lets a browser run this page's own script, which a hash names, and load nothing: whatever a
    model wrote is text, and would stay that if it were not escaped.
    """
    page, hashes = PAGE.read_text(encoding="utf-8"), {}
    for tag in ("style", "script"):
        content = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        hashes[f"{tag}_hash"] = f"sha256-{b64encode(sha256(content.encode()).digest()).decode()}"
    words = dict(title=escape(title), caption=escape(caption))
    write_atomic(path, Template(page).substitute(contents="\n".join(contents), **words, **hashes))
    print(f"report: {path}")


def write_report(it, png):
    """The page of an evaluate.Evaluation: tables, figure, the first try at some problems of each op, and how
    all of it was made.
    """
    tries, options = len(it.problems) * it.o.samples, {"code": code_hash(), "options": asdict(it.o)}
    errors = {name: result["errors"] for name, result in it.results.items()}
    kinds = sum(map(Counter, errors.values()), Counter()).most_common()
    shares = ([kind, *(f"{of.get(kind, 0) / tries:.3f}" for of in errors.values())] for kind, _ in kinds)
    paired = [["", "band", "over the same problems"], *differences(it, combinations(it.results, 2))]
    contents = ["<h2>By band</h2>", html_table(table(it))]
    contents += [html_figure(png, "pass@1 by operations, pass@k by k")]
    contents += ["<h2>By operations</h2>", html_table(table_by_op(it))]
    contents += ["<h2>Paired differences</h2>", html_table(paired)] * (len(it.results) > 1)
    contents += ["<h2>Errors, as shares of all tries</h2>", html_table([["", *errors], *shares])]
    contents += ["<h2>Where it comes from</h2>"]
    for what, facts in {"this evaluation": options, **it.made}.items():
        told = escape(json.dumps(facts, indent=1))
        contents.append(f"<details><summary>{escape(what)}</summary><pre>{told}</pre></details>")
    every = max(1, len(it.problems) // it.o.report_samples)
    band_of = {i: band for band, chosen in it.groups["band"].items() for i in chosen}
    contents += ["<h2>Solutions, judged step by step</h2>", html_filters(list(it.results), list(it.bands))]
    for i, problem in list(enumerate(it.problems))[::every]:
        contents.append(html_problem(problem, band_of[i], {name: of[i] for name, of in it.texts.items()}))
    write_page(it.o.report, "Evaluation", it.caption, contents)


def html_filters(names, bands):
    """Which checkpoints are shown, side by side, of which band, and how at least one of them must do."""
    box = '<label><input type="checkbox" name="checkpoint" value="{0}" checked> {0}</label>'
    boxes = "".join(box.format(escape(name)) for name in names)
    picks = {"band": {"": "all", **dict(zip(bands, bands))}}
    picks["verdict"] = SHOWN | ({"differ": "they differ"} if len(names) > 1 else {})
    for name, values in picks.items():
        options = (f'<option value="{escape(v)}">{escape(said)}</option>' for v, said in values.items())
        boxes += f'<label>{name} <select name="{name}">{"".join(options)}</select></label>'
    return f'<form id="filters">{boxes}<output class="dim"></output></form>'


def html_problem(problem, band, texts):
    """A problem, and what each checkpoint made of it."""
    kind = f"op {problem.op} · {band} · {problem.mode} · {problem.template}"
    cards = []
    for name, text in texts.items():
        plain = resolved(text)
        verdict, lines = verify(plain, problem), explain(plain, problem).split("\n")
        judged = "".join(f'<div class="{CLASSES.get(line[0], "dim")}">{escape(line)}</div>' for line in lines)
        data = f'data-checkpoint="{escape(name)}" data-level="{LEVELS.index(verdict.kind)}"'
        mark = "good" if verdict.solved else "bad"
        title = f'<h4>{escape(name)} · <span class="{mark}">{verdict.kind}</span></h4>'
        told = f'<pre>{escape(printable(text.strip()))}</pre><div class="judged">{judged}</div>'
        cards.append(f"<section {data}>{title}{told}</section>")
    asked = f"{escape(problem.problem)} <b>{escape(problem.question)}</b>"
    start = f'<article data-band="{escape(band)}"><h3>{escape(kind)}</h3><p>{asked}</p>'
    return f'{start}<div class="tries">{"".join(cards)}</div></article>'


def print_table(rows, left):
    """Rows of strings; the first columns, so many, are words."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:left], widths)]
        print(" ".join(cells + [cell.rjust(width) for cell, width in zip(row[left:], widths[left:])]))
    print()


def html_table(rows):
    """Rows of strings, the header first. It scrolls where it is wider than the page."""

    def cell(text):
        return f'<td class="long">{escape(text)}' if len(text) > 30 else f"<td>{escape(text)}"

    lines = [[f"<th>{escape(text)}" for text in rows[0]], *(map(cell, row) for row in rows[1:])]
    return f'<div class="wide"><table><tr>{"<tr>".join(map("".join, lines))}</table></div>'


def html_figure(png, alt):
    return IMAGE.format(escape(alt), b64encode(png).decode()) if png else ""


def pyplot():
    """matplotlib's pyplot without a display, or None (and a line that says so) where it is not installed."""
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no figure: matplotlib is not installed (pip install '.[figures]')")
        return None
    pyplot.switch_backend("Agg")
    return pyplot


def draw_by_op(axes, stats, label, **style):
    """pass@1 by operations with its interval. stats: {op: {mean, low, high}}."""
    ops = sorted(stats)
    axes.xaxis.get_major_locator().set_params(integer=True)
    (line,) = axes.plot(ops, [stats[op]["mean"] for op in ops], "o-", label=label, **style)
    low, high = ([stats[op][bound] for op in ops] for bound in ("low", "high"))
    axes.fill_between(ops, low, high, color=line.get_color(), alpha=0.25, lw=0)


def correct_by_op(result):
    return {int(op): stats["correct@1"] for op, stats in result["op"].items()}


def draw_results(results, bands, ks, path):
    """Left: pass@1 by operations, with intervals, the bands shaded. Right: pass@k by k for each band. Returns
    the PNG's bytes, or None.
    """
    plt = pyplot()
    if plt is None:
        return None
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for (name, ops), shade in zip(bands.items(), cycle(("0.93", "0.86", "0.79", "0.72"))):
        left.axvspan(min(ops) - 0.5, max(ops) + 0.5, color=shade, lw=0)
        left.text(sum(ops) / len(ops), 1.03, name, ha="center")
    for i, (name, result) in enumerate(results.items()):
        # matplotlib's colours begin anew where there are no more
        draw_by_op(left, correct_by_op(result), name, color=f"C{i}")
        for band, style in zip(bands, cycle(("-", "--", ":", "-."))):
            means = [result["band"][band][f"correct@{k}"]["mean"] for k in ks]
            right.plot(ks, means, style, marker=".", color=f"C{i}", label=f"{name}, {band}")
    left.set(xlabel="operations", ylabel="pass@1 (every step correct)", ylim=(0, 1.1))
    right.set(xlabel="k", ylabel="pass@k (every step correct)", ylim=(0, 1.1))
    right.set(xscale="log", xticks=ks, xticklabels=ks)
    left.legend(loc="lower left")
    right.minorticks_off()
    right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return save_figure(fig, path)


def save_figure(fig, path):
    buffer = io.BytesIO()
    fig.savefig(buffer, dpi=120)
    pyplot().close(fig)
    write_atomic(path, buffer.getvalue())
    print(f"figure: {path}")
    return buffer.getvalue()


def draw_dots(panels, path):
    """A row a metric, a column a band: each seed of an arm as a dot, a line through those of one seed; the
    mean as a cross-bar, its interval as an upright one, cut where it leaves the dots' panel. Returns the
    PNG's bytes, or None.

    panels: {(metric, band): {arm: (a number a seed, or nan; half the width of the mean's interval)}}.
    """
    plt = pyplot()
    if plt is None:
        return None
    metrics, bands = (list(dict.fromkeys(names)) for names in zip(*panels))
    size = dict(figsize=(4 * len(bands), 3 * len(metrics)), layout="constrained")
    fig, grid = plt.subplots(len(metrics), len(bands), squeeze=False, sharex=True, **size)
    for (metric, band), arms in panels.items():
        axes = grid[metrics.index(metric)][bands.index(band)]
        axes.plot([values for values, _ in arms.values()], color="0.8", zorder=0)
        for i, (values, _) in enumerate(arms.values()):
            axes.plot([i] * len(values), values, "o", color=f"C{i}", alpha=0.6)
        low, high = axes.get_ylim()
        room = max(0.0, 0.1 - (high - low)) / 2  # so that a difference of nothing looks like one
        for i, (values, half) in enumerate(arms.values()):
            axes.errorbar(i, np.nanmean(values), half, 0.25, color=f"C{i}", linewidth=2.5)
        axes.set_xticks(range(len(arms)), arms, rotation=30, ha="right")
        axes.set(title=band, ylim=(max(low - room, -0.01), high + room))
        axes.set_ylabel(metric if axes in grid[:, 0] else "")
    return save_figure(fig, path)


def draw_lines(panels, path, across, up, **axes):
    """A panel each: a line an arm. Returns the PNG's bytes, or None.

    panels: {title: {arm: (x, y), lists of numbers}}; across, up: what they are; axes: more of that.
    """
    plt = pyplot()
    if plt is None:
        return None
    size = dict(figsize=(4 * len(panels) + 1.5, 3.5), layout="constrained")
    fig, grid = plt.subplots(1, len(panels), squeeze=False, sharey=True, **size)
    for place, (title, arms) in zip(grid[0], panels.items()):
        for i, (arm, (x, y)) in enumerate(arms.items()):
            place.plot(x, y, ".-", color=f"C{i}", label=arm)
        place.xaxis.get_major_locator().set_params(integer=True)
        place.set(title=title, xlabel=across, **axes)
        if place.get_xscale() == "log":  # 100, 200, 500: matplotlib's own labels of minor ticks overlap
            place.xaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
            place.xaxis.set_major_formatter("{x:,.0f}")
            place.xaxis.set_minor_formatter(plt.NullFormatter())
    grid[0][0].set(ylabel=up)
    grid[0][-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return save_figure(fig, path)


def write_studies(path, caption, sections):
    """One page of studies. sections: (title, note, table as rows of strings, PNG or None) of each."""
    contents = []
    for title, note, table, png in sections:
        head = f"<h2>{escape(title)}</h2><p>{escape(note)}</p>"
        contents.append(head + html_table(table) + html_figure(png, f"{title}: each seed of each arm"))
    write_page(path, "Studies", caption, contents)

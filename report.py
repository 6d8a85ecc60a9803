"""What one looks at: figures of an evaluation, and one HTML page of judged solutions that opens offline."""

import io
from base64 import b64encode
from html import escape
from itertools import cycle
from pathlib import Path
from string import Template

from lab.options import UserError, write_atomic

from texts import resolved
from verify import explain, verify

PAGE, STUDIES = (Path(__file__).with_name("docs") / name for name in ("page.html", "studies.html"))
IMAGE = '<img alt="pass@1 by operations, pass@k by k" src="data:image/png;base64,{}">'
CLASSES = {"✓": "good", "✗": "bad", "·": "extra"}  # of a line of `explain`, by how it begins


def check_page(path, out):
    """Raise UserError or OSError if no page can be written to `path`, which the folder `out` is not to be."""
    if path.is_dir() or path == out:
        raise UserError(f"--report {path} is a folder: name a file, such as {path / 'report.html'}")
    trial = path.with_name(path.name + ".trial")
    write_atomic(trial, "")
    trial.unlink()


def write_report(path, caption, table, png, tries):
    """One HTML page that needs nothing but itself. table: rows of strings, the header first; tries:
    (checkpoint, problem, text) of each solution to show.
    """
    rows, kinds = [], set()
    for name, problem, text in tries:
        plain = resolved(text)
        verdict = verify(plain, problem)
        kinds.add(verdict.kind)
        lines = explain(plain, problem).splitlines()
        judged = "".join(f'<div class="{CLASSES.get(line[0], "")}">{escape(line)}</div>' for line in lines)
        told = f"{escape(problem.problem)}\n<b>{escape(problem.question)}</b>\n\n{escape(text.strip())}"
        shown = f"<pre>{told}</pre>{judged}"
        rows.append(html_row("td", escape(name), problem.op, verdict.kind, f"{verdict.process:.2f}", shown))
    figure = IMAGE.format(b64encode(png).decode()) if png else ""
    options = "".join(f"<option>{kind}</option>" for kind in sorted(kinds))
    parts = dict(table=html_table(table), figure=figure, options=options, rows="".join(rows))
    page = Template(PAGE.read_text(encoding="utf-8"))
    write_atomic(path, page.substitute(caption=escape(caption), **parts))
    print(f"report: {path}")


def print_table(rows, left):
    """Rows of strings; the first columns, so many, are words."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:left], widths)]
        print(" ".join(cells + [cell.rjust(width) for cell, width in zip(row[left:], widths[left:])]))
    print()


def html_row(tag, *cells):
    return "<tr>" + "".join(f"<{tag}>{cell}" for cell in cells)


def html_table(rows):
    """Rows of strings, the header first."""
    lines = (html_row("td" if i else "th", *map(escape, row)) for i, row in enumerate(rows))
    return f"<table>{''.join(lines)}</table>"


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
    write_atomic(path, buffer.getvalue())
    print(f"figure: {path}")
    return buffer.getvalue()


def draw_dots(panels, path):
    """A row a metric, a column a band: each seed of an arm as a dot, its mean and interval as a bar. Returns
    the PNG's bytes, or None.

    panels: {(metric, band): {arm: (one number a seed, half the width of the mean's interval)}}.
    """
    plt = pyplot()
    if plt is None:
        return None
    metrics, bands = (list(dict.fromkeys(names)) for names in zip(*panels))
    size = dict(figsize=(4 * len(bands), 3 * len(metrics)), layout="constrained")
    fig, grid = plt.subplots(len(metrics), len(bands), squeeze=False, sharex=True, sharey="row", **size)
    for (metric, band), arms in panels.items():
        axes = grid[metrics.index(metric)][bands.index(band)]
        for i, (values, half) in enumerate(arms.values()):
            axes.plot([i] * len(values), values, "o", color=f"C{i}", alpha=0.5)
            axes.errorbar(i + 0.2, sum(values) / len(values), half, color=f"C{i}", marker="_", capsize=4)
        axes.set_xticks(range(len(arms)), arms, rotation=30, ha="right")
        axes.set(title=band, ylabel=metric if axes in grid[:, 0] else "")
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
        place.set(title=title, xlabel=across, **axes)
    grid[0][0].set(ylabel=up)
    grid[0][-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return save_figure(fig, path)


def write_studies(path, caption, sections):
    """One page of studies. sections: (title, note, table as rows of strings, PNG or None) of each."""
    parts = []
    for title, note, table, png in sections:
        figure = f"<p>{IMAGE.format(b64encode(png).decode())}" if png else ""
        head = f"<h2>{escape(title)}</h2><p>{escape(note)}</p>"
        parts.append(head + html_table(table) + figure)
    page = Template(STUDIES.read_text(encoding="utf-8"))
    write_atomic(path, page.substitute(caption=escape(caption), studies="".join(parts)))
    print(f"report: {path}")

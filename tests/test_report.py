"""The pages: what a browser is told, that what a model wrote stays text, and, slow, how they look in Chromium.

PICTURES=folder python -m pytest tests/test_report.py -m slow     keeps the pictures
"""

import json
import os
import re
import shutil
import subprocess
from base64 import b64decode, b64encode
from hashlib import sha256
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import datagen
import evaluate
import report
from data import completion_text

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ATTACK = '</pre><script>document.title = "broken"</script><img src=x onerror="document.title=1">&lt;\x1b[2J"\'$title'
VOID = ("meta", "img", "input", "th", "td", "tr", "html")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of an evaluation of two checkpoints, one of which attacks it, and that of two studies."""
    path = tmp_path_factory.mktemp("pages")
    argv = [
        "base=x,<b>grpo</b>=y",
        "--bands",
        "id=2-3,edge=4-5",
        "--problems",
        "4",
        "--samples",
        "2",
        "--k",
        "1,2",
    ]
    o = evaluate.parse_run_options(
        evaluate.Options, [*argv, "--out", str(path / "eval"), "--report", str(path / "evaluation.html")],
        evaluate.PRESETS, "", positional="checkpoints")  # fmt: skip
    it = evaluate.Evaluation(o)
    for number, name in enumerate(it.folders):
        right = [(i + number) % 3 > 0 for i in range(16)]
        counts = np.array([2 * passed for passed in right])
        it.counts[name] = dict.fromkeys(evaluate.JUDGED, counts) | {"process": counts / 2} | it.floors
        wrong = f"Define {ATTACK} as a; so a = 1. {ATTACK}"
        it.texts[name] = [completion_text(p) if r else wrong for p, r in zip(it.problems, right)]
        it.results[name] = {
            "nll": dict.fromkeys("2345", 0.5),
            "errors": {"untrue": 3, "no_answer": 2 + number},
        }
        it.made[name] = {"step": 7, "options": {"lr": 0.1, "note": ATTACK}}
        for by, groups in it.groups.items():
            summaries = {
                v: evaluate.summarise(it.problems, it.counts[name], of, it.ks, 2) for v, of in groups.items()
            }
            it.results[name][by] = summaries
    report.write_report(it, report.draw_results(it.results, it.bands, it.ks, path / "figure.png"))
    arms = {
        arm: ([0.2 + i / 10, 0.3 + i / 10], 0.05) for i, arm in enumerate(("base", "short", "a long name"))
    }
    png = report.draw_dots(
        {(m, b): arms for m in ("correct@1", "correct@32") for b in ("id", "edge")}, path / "s.png"
    )
    claims = [["id", "claim", "effect", "95% interval", "seeds", "verdict"],
              ["C1a", "RL lifts pass@1 on id, in three of four ranges", "+0.041", "[+0.020, +0.062]", "4 × 2", "replicated"],
              ["C1b", ATTACK, "–", "–", "–", "not run"]]  # fmt: skip
    sections = [
        ("S3: which problems should RL see?", "RL at three ranges.", claims, png),
        ("tau", ATTACK, claims, None),
    ]
    report.write_studies(path / "studies.html", "Scale micro. 2 claims.", sections)
    return {name: path / f"{name}.html" for name in ("evaluation", "studies")}


class Parsed(HTMLParser):
    """The tags that are open, those that were seen with their attributes, and the text of each kind of tag."""

    def __init__(self, page):
        super().__init__()
        self.opened, self.seen, self.text = [], [], {}
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        self.opened += [tag] if tag not in VOID else []

    def handle_endtag(self, tag):
        assert tag == "html" or self.opened.pop() == tag

    def handle_data(self, data):
        for tag in self.opened[-1:]:
            self.text[tag] = self.text.get(tag, "") + data


@pytest.mark.parametrize("name", ["evaluation", "studies"])
def test_what_a_model_wrote_is_text(pages, name):
    page = Parsed(pages[name].read_text())
    assert not page.opened
    tags = [tag for tag, _ in page.seen]
    assert tags.count("script") == tags.count("style") == 1
    assert not any(
        key.startswith("on") or key == "style" for _, attributes in page.seen for key in attributes
    )
    images = [attributes["src"] for tag, attributes in page.seen if tag == "img"]
    assert len(images) == 1 and images[0].startswith("data:image/png;base64,")
    if name == "evaluation":  # what a terminal would obey is visible too
        assert ATTACK.replace("\x1b", "\\x1b") in page.text["pre"] and "\x1b" not in pages[name].read_text()
    else:
        assert ATTACK in page.text["p"] and ATTACK in page.text["table"]


@pytest.mark.parametrize("name", ["evaluation", "studies"])
def test_a_browser_is_told_to_run_nothing_else_and_to_load_nothing(pages, name):
    page = pages[name].read_text()
    policy = next(
        a["content"] for _, a in Parsed(page).seen if a.get("http-equiv") == "Content-Security-Policy"
    )
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    for tag in ("style", "script"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        assert rules[f"{tag}-src"] == [f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"]
    assert rules["default-src"] == ["'none'"] and rules["img-src"] == ["data:"]
    assert "http" not in page.replace("http-equiv", "") and '<meta name="viewport"' in page


def test_the_page_of_an_evaluation_has_all_of_it(pages):
    page = Parsed(pages["evaluation"].read_text())
    for words in (
        "By band",
        "By operations",
        "Paired differences",
        "Errors",
        "Where it comes from",
        "Solutions",
    ):
        assert words in page.text["h2"]
    text = pages["evaluation"].read_text()
    for words in (
        "guess floor",
        "plus floor",
        "standard error",
        "no_answer",
        "&quot;seed&quot;: 0",
        "&quot;code&quot;: ",
    ):
        assert words in text, words
    problems = [attributes for tag, attributes in page.seen if tag == "article"]
    tries = [attributes for tag, attributes in page.seen if tag == "section"]
    assert [it["data-band"] for it in problems] == ["id"] * 8 + ["edge"] * 8
    assert [it["data-checkpoint"] for it in tries[:2]] == ["base", "<b>grpo</b>"] and len(tries) == 32
    assert {it["data-level"] for it in tries} == {"0", "3"}


def test_the_page_is_that_of_the_judge():
    """Its levels are the judge's words, the best last, and each choice is a level and those above it."""
    problem = datagen.generate(1, 0, op=3)
    page = report.html_problem(
        problem, "id", {"a": problem.solution, "b": f"Answer: {problem.answer}.", "c": ""}
    )
    assert re.findall(r'data-level="(\d)"', page) == ["3", "1", "0"]
    assert [report.LEVELS[int(levels[0])] for levels in report.SHOWN][1:4] == [
        "answer only",
        "correct",
        "faithful",
    ]


def test_operations_are_whole_numbers_on_the_axis():
    plt = report.pyplot()
    axes = plt.figure(figsize=(4, 3)).add_subplot()
    report.draw_by_op(axes, {op: {"mean": 0.5, "low": 0.4, "high": 0.6} for op in (2, 3)}, "base")
    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_so_they_are_in_several_panels(monkeypatch):
    drawn, line = [], {"a": ([2, 3, 4, 5, 6], [0.5] * 5)}

    def save(figure, path):
        figure.draw_without_rendering()
        drawn.extend(figure.axes)

    monkeypatch.setattr(report, "save_figure", save)
    report.draw_lines(dict.fromkeys(("zoo", "school", "festival"), line), None, "operations", "pass@1")
    assert len(drawn) == 3 and all(tick == int(tick) for axes in drawn for tick in axes.get_xticks())
    report.draw_lines({"edge": {"a": ([100, 500], [0.1, 0.2])}}, None, "tokens", "right", xscale="log")


# ------------------------------------------------------------------------------------------------------------
# In a browser


class Chromium:
    """A headless Chromium with one tab, by its debugging protocol: JSON over two pipes, NUL after each message."""

    def __init__(self, folder):
        reads, self.to = os.pipe()
        back, writes = os.pipe()
        flags = f"--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --user-data-dir={folder} about:blank"
        command = f'exec "$0" "$@" 3<&{reads} 4>&{writes}'
        self.process = subprocess.Popen(
            ["bash", "-c", command, CHROMIUM, *flags.split()], pass_fds=(reads, writes), stderr=subprocess.DEVNULL)  # fmt: skip
        os.close(reads)
        os.close(writes)
        self.back, self.number, self.session, self.events = os.fdopen(back, "rb"), 0, {}, []
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(it["targetId"] for it in targets if it["type"] == "page")
        self.session = {
            "sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        }
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def read(self):
        message = bytearray()
        while (byte := self.back.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            message += byte
        return json.loads(message)

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters, **self.session}
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, page, width, scheme):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())

    def evaluate(self, script):
        out = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in out, out
        return out["result"].get("value")

    def picture(self, path, **clip):
        path.write_bytes(b64decode(self.call("Page.captureScreenshot", **clip)["data"]))

    def close(self):
        self.call("Browser.close")
        self.process.wait(20)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    browser = Chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


# Contrast (WCAG 2.2) of every text with what is behind it: the lowest, and where.
CONTRAST = """(() => {
  const light = ([r, g, b]) => [[r, .2126], [g, .7152], [b, .0722]].reduce((sum, [c, share]) =>
    sum + share * (c / 255 <= .04045 ? c / 255 / 12.92 : ((c / 255 + .055) / 1.055) ** 2.4), 0);
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  let worst = [21, ""];
  for (const it of document.querySelectorAll("body *")) {
    if (![...it.childNodes].some(n => n.nodeType == 3 && n.data.trim()) || !it.getClientRects().length) continue;
    let behind = it;
    while (behind && rgb(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
    const [a, b] = [getComputedStyle(it).color, getComputedStyle(behind ?? document.body).backgroundColor].map(c => light(rgb(c)));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < worst[0]) worst = [ratio, it.outerHTML.slice(0, 100)];
  }
  return worst;
})()"""
CHOOSE = """(() => {
  const form = document.querySelector("#filters"), chosen = %s;
  form.querySelectorAll("[name=checkpoint]").forEach((box, i) => box.checked = chosen.boxes[i]);
  form.elements.band.value = chosen.band;
  form.elements.verdict.value = chosen.verdict;
  form.dispatchEvent(new Event("change"));
  const seen = selector => [...document.querySelectorAll(selector)].filter(it => it.getClientRects().length);
  return [seen("article").map(it => it.dataset.band), seen("section").map(it => it.dataset.level),
          form.querySelector("output").value, seen("article:first-of-type section").map(it => it.getBoundingClientRect().top)];
})()"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, width, scheme", [*product(("evaluation", "studies"), (400, 1600), ("light", "dark"))]
)
def test_it_is_readable_at_every_width_and_colour(pages, chromium, name, width, scheme):
    chromium.open(pages[name], width, scheme)
    assert (
        chromium.evaluate("document.documentElement.scrollWidth") <= width
    )  # tables scroll, the page does not
    ratio, where = chromium.evaluate(CONTRAST)
    assert ratio >= 4.5, where
    dark = chromium.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    assert chromium.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 15
    assert chromium.evaluate("document.title") in ("Evaluation", "Studies")  # the attack has not changed it
    wrong = [
        event for event in chromium.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")
    ]
    assert not wrong  # nor has the policy had to stop anything, its own style and script least of all
    if "PICTURES" in os.environ:
        whole = dict(clip=dict(x=0, y=0, width=width, height=2600, scale=1), captureBeyondViewport=True)
        chromium.picture(Path(os.environ["PICTURES"], f"{name}-{width}-{scheme}.png"), **whole)


@pytest.mark.slow
def test_the_filters_show_what_they_say(pages, chromium):
    def choose(width=1600, **chosen):
        chromium.open(pages["evaluation"], width, "light")
        return chromium.evaluate(
            CHOOSE % json.dumps({"boxes": [1, 1], "band": "", "verdict": "0123"} | chosen)
        )

    bands, levels, said, tops = choose()
    assert (
        bands == ["id"] * 8 + ["edge"] * 8 and len(levels) == 32 and said == "16 shown" and tops[0] == tops[1]
    )
    assert (
        choose(width=400)[3][0] < choose(width=400)[3][1]
    )  # beside each other where there is room, else below
    bands, levels, _, tops = choose(boxes=[0, 1])
    assert len(bands) == len(levels) == 16 and len(tops) == 1
    assert choose(boxes=[0, 0])[2] == "0 shown"
    assert set(choose(band="edge")[0]) == {"edge"}
    bands, levels, *_ = choose(boxes=[1, 0], verdict="23")  # "correct" has the faithful ones too
    assert levels == ["3"] * 10 and set(choose(boxes=[1, 0], verdict="01")[1]) == {"0"}
    _, levels, *_ = choose(verdict="differ")
    assert levels and all({a, b} == {"0", "3"} for a, b in zip(levels[::2], levels[1::2]))


@pytest.mark.slow
def test_a_policy_stops_what_would_be_written_unescaped(pages, chromium, tmp_path):
    """As if escaping failed: a script and a style of somebody else's do nothing, and nothing is loaded."""
    page = (
        pages["studies"]
        .read_text()
        .replace("Scale micro.", ATTACK.partition("&lt;")[0] + "<style>body{display:none}</style>")
    )
    (tmp_path / "page.html").write_text(page)
    chromium.open(tmp_path / "page.html", 1600, "light")
    assert chromium.evaluate("document.title") == "Studies"
    assert chromium.evaluate("getComputedStyle(document.body).display") == "block"

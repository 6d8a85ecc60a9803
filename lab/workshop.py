"""A folder of many runs: stages that exchange nothing but folders, each run once, in the order they allow.

A stage is one command, with name, file, parents, ancestors (by name), work (a number), flags(place of a
stage's run → words) and distil(run folder → dict): studies.Stage. Several runners share the stages of one
folder, on one machine or many; a lock says who has which.

    OUT/stages/NAME/    run/ (the command's --out), log.txt, and done.json, stopped.json or failed.json
    RESULTS/NAME.json   what is kept of a stage: a few KB
"""

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from lab.options import FINISHED, STOPPED, UserError, read_json, write_atomic
from lab.runs import as_json, code_hash

import torch
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
POLL = 1.0  # seconds between looks at what runs
ENDS = ("done", "failed", "stopped")  # how a command has ended: NAME.json in its folder


class Workshop:
    """What has been done, and what is to do."""

    def __init__(self, out, results, strict=False):
        """strict: what other code has done counts for nothing."""
        self.out, self.results, self.strict, self.code = Path(out), Path(results), strict, code_hash()
        self.read = {}  # results, by name

    def folder(self, stage):
        return self.out / "stages" / stage.name

    def run_folder(self, stage):
        return self.folder(stage) / "run"

    def state(self, stage):
        """done, failed, stopped or, where nothing has ended, new."""
        return next((end for end in ENDS if (self.folder(stage) / f"{end}.json").exists()), "new")

    def result(self, name):
        """What is kept of the stage with this name, or None."""
        path = self.results / f"{name}.json"
        if name not in self.read and path.exists():
            self.read[name] = read_json(path)
        return self.read.get(name)

    def counts(self, facts):
        return not self.strict or facts["code"] == self.code

    def known(self, stage):
        """Whether it has a result."""
        return (result := self.result(stage.name)) is not None and self.counts(result)

    def here(self, stage):
        """Whether its run folder is whole."""
        done = self.folder(stage) / "done.json"
        return done.exists() and self.counts(read_json(done))

    def todo(self, stages):
        """{name: stage} to run, so that each of these has a result: they, and what they are made from. Those
        with most dependants come first.
        """
        found = {}

        def need(stage, there):
            if stage.name not in found and not there(stage):
                found[stage.name] = stage
                for parent in stage.parents:
                    need(parent, self.here)

        for stage in stages:
            need(stage, self.known)
        dependants = Counter(name for stage in found.values() for name in stage.ancestors)
        return dict(sorted(found.items(), key=lambda item: -dependants[item[0]]))

    def keep(self, stage):
        """Distil the run of a stage that is here into its result, unless it has one."""
        if not self.known(stage):
            command = shlex.join([stage.file.name, *stage.flags(lambda parent: parent.name)])
            done = read_json(self.folder(stage) / "done.json")
            result = {"command": command, "work": stage.work, **done, **stage.distil(self.run_folder(stage))}
            write_atomic(self.results / f"{stage.name}.json", json.dumps(result) + "\n")
            self.read[stage.name] = result

    def claim(self, stage):
        """The stage's lock, an open file, until it is closed; None if somebody else has it."""
        path = self.folder(stage) / "lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file


class Job(NamedTuple):
    """A command at work."""

    stage: object
    process: subprocess.Popen
    lock: object  # the command has it too: if its runner is killed, no other begins what still runs
    began: float
    code: str


class Runner:
    """Works through stages, `jobs` at once: `Runner(workshop, 2).run(stages)`."""

    def __init__(self, workshop, jobs=1, left=lambda stages: ""):
        """left: stages → how long they will take, in words."""
        self.workshop, self.size, self.left = workshop, jobs, left
        self.jobs, self.tried, self.stopping = {}, set(), False
        listed = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.gpus = listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]

    def run(self, stages, retry=False):
        """Until nothing is left that can be done → exit code; 75: something was stopped. retry: also what has
        failed. Raises UserError if anything has.
        """
        todo = self.workshop.todo(stages)
        for stage in todo.values() if retry else ():
            (self.workshop.folder(stage) / "failed.json").unlink(missing_ok=True)
        handlers = {number: signal.signal(number, self.stop) for number in (signal.SIGINT, signal.SIGTERM)}
        with tqdm(total=len(todo), unit="stage", mininterval=5) as bar:
            while self.turn(todo, bar):
                time.sleep(POLL)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        failed = [stage for stage in todo.values() if self.workshop.state(stage) == "failed"]
        if failed:
            log = self.workshop.folder(failed[0]) / "log.txt"
            raise UserError(f"stages that failed: {len(failed)}, first {log}: mend that, then run --retry")
        return STOPPED if todo else FINISHED

    def turn(self, todo, bar):
        """Look once at what has ended and what can begin → whether to look again."""
        for slot in [slot for slot, job in self.jobs.items() if job.process.poll() is not None]:
            self.end(self.jobs.pop(slot))
        done = list(filter(self.workshop.here, todo.values()))
        for stage in done:
            self.workshop.keep(stage)
            del todo[stage.name]
        elsewhere = [self.begin(stage) for stage in todo.values() if self.ready(stage)].count(False)
        at_work = " ".join(job.stage.name for job in self.jobs.values())
        bar.set_postfix_str(f"{self.left(todo.values())} {at_work}", refresh=False)
        bar.update(len(done))
        return bool(self.jobs) or (bool(elsewhere) and not self.stopping)

    def ready(self, stage):
        """Whether it may begin: not if it was stopped or has failed, since that would happen again."""
        again = stage.name in self.tried or self.workshop.state(stage) == "failed"
        return not (again or self.stopping) and all(map(self.workshop.here, stage.parents))

    def begin(self, stage):
        """Start a stage, if there is room for it → whether it was; not if another runner has it."""
        shop, free = self.workshop, set(range(self.size)) - set(self.jobs)
        lock = shop.claim(stage) if free else None
        if lock is None or shop.here(stage):
            return False
        run, slot, environment = shop.run_folder(stage), min(free), dict(os.environ)
        if shop.state(stage) == "done":  # by other code
            shutil.rmtree(run)
            (run.parent / "done.json").unlink()
        words = [*stage.flags(shop.run_folder), f"--out={run}", "--resume-or-start", *self.threads()]
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        with (run.parent / "log.txt").open("ab") as log:
            streams = dict(stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
            # in a session of its own: ctrl-C is ours to pass on
            how = dict(env=environment, pass_fds=[lock.fileno()], start_new_session=True)
            process = subprocess.Popen([sys.executable, str(stage.file), *words], **streams, **how)
        self.tried.add(stage.name)
        self.jobs[slot] = Job(stage, process, lock, time.perf_counter(), code_hash())
        return True

    def threads(self):
        """On a CPU, jobs share the cores; replicas on one core would only wait for each other."""
        n = max(1, os.cpu_count() // self.size)
        return [f"--threads={n}", f"--replicas={min(2, n)}"] if self.size > 1 and not self.gpus else []

    def end(self, job):
        """Note how a command has ended: done.json, stopped.json or failed.json."""
        folder, code = self.workshop.folder(job.stage), job.process.returncode
        end = {FINISHED: "done", STOPPED: "stopped"}.get(code, "stopped" if self.stopping else "failed")
        before, lines = folder / "stopped.json", (folder / "log.txt").read_text(errors="replace").splitlines()
        seconds = time.perf_counter() - job.began + (read_json(before)["seconds"] if before.exists() else 0)
        device = next((line for line in reversed(lines) if line.startswith("device ")), None)
        facts = {"seconds": round(seconds, 1), "exit": code, "device": device, "torch": torch.__version__}
        facts |= {"code": job.code, "commit": commit(), "last": lines[-3:] if end == "failed" else []}
        before.unlink(missing_ok=True)
        write_atomic(folder / f"{end}.json", as_json(facts))
        if end == "failed":
            tqdm.write(f"failed: {job.stage.name}: {lines[-1] if lines else f'exit code {code}'}")
        job.lock.close()

    def stop(self, number, frame):
        """Of a signal: the commands save and stop, at a second one at once."""
        self.stopping = True
        for job in self.jobs.values():
            job.process.terminate()


def commit():
    """The commit of this repository, or None outside of one."""
    words = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

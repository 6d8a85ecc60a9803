"""A folder of many runs: stages that exchange nothing but folders, each run once, in the order they allow.

A stage is one command, with name, file, parents, ancestors (by name), work (a number), flags(place of a
stage's run → words) and distil(run folder → dict): studies.Stage. Several runners share the stages of one
folder, on one machine or many; a lock says who has which.

    OUT/stages/NAME/    run/ (the command's --out), log.txt, and done.json, stopped.json or failed.json
    RESULTS/NAME.json   what is kept of a stage: a few KB
"""

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
from lab.runs import Progress, as_json, code_hash

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
        self.kept = {path.stem: read_json(path) for path in self.results.glob("*.json")}  # by name

    def folder(self, stage):
        return self.out / "stages" / stage.name

    def run_folder(self, stage):
        return self.folder(stage) / "run"

    def ended(self, stage, end):
        """What was noted when its command ended in this way, or None."""
        path = self.folder(stage) / f"{end}.json"
        return read_json(path) if path.exists() else None

    def state(self, stage):
        """done, failed, stopped or, where nothing has ended, new."""
        return next((end for end in ENDS if self.ended(stage, end)), "new")

    def counts(self, facts):
        return facts is not None and (not self.strict or facts["code"] == self.code)

    def known(self, stage):
        """Whether it has a result."""
        return self.counts(self.kept.get(stage.name))

    def here(self, stage):
        """Whether its run folder is whole."""
        return self.counts(self.ended(stage, "done"))

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
            facts = {"command": command, "work": stage.work, **self.ended(stage, "done")}
            self.save(stage, facts | stage.distil(self.run_folder(stage)))

    def save(self, stage, result):
        write_atomic(self.results / f"{stage.name}.json", json.dumps(result) + "\n")
        self.kept[stage.name] = result

    def claim(self, stage):
        """The stage's lock, an open file, until it is closed; None if somebody else has it. Raises UserError
        on Windows, where a command could not keep the lock of a runner that was killed.
        """
        try:
            import fcntl
        except ImportError:
            raise UserError("studies run on Linux and macOS; on Windows take its Linux subsystem") from None
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

    def __init__(self, shop, jobs=1, left=lambda stages: "", quiet=False):
        """left: stages → how long they will take, in words; quiet: show nothing but what fails."""
        self.shop, self.size, self.left, self.quiet = shop, jobs, left, quiet
        self.jobs, self.tried, self.stopping = {}, set(), False
        listed = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.gpus = listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]

    def run(self, stages, retry=False):
        """Until nothing is left that can be done → exit code; 75: something was stopped. retry: also what has
        failed. Raises UserError if anything has.
        """
        todo = self.shop.todo(stages)
        for stage in todo.values() if retry else ():
            (self.shop.folder(stage) / "failed.json").unlink(missing_ok=True)
        handlers = {number: signal.signal(number, self.stop) for number in (signal.SIGINT, signal.SIGTERM)}
        with Progress(self.shop.out.name, 0, len(todo), not self.quiet, "stage") as progress:
            while self.turn(todo, progress):
                time.sleep(POLL)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        failed = [stage for stage in todo.values() if self.shop.state(stage) == "failed"]
        if failed:
            log = self.shop.folder(failed[0]) / "log.txt"
            raise UserError(f"stages that failed: {len(failed)}, first {log}: mend that, then run --retry")
        return STOPPED if todo else FINISHED

    def turn(self, todo, progress):
        """Look once at what has ended and what can begin → whether to look again."""
        for slot in [slot for slot, job in self.jobs.items() if job.process.poll() is not None]:
            self.end(self.jobs.pop(slot))
        done = list(filter(self.shop.here, todo.values()))
        for stage in done:
            self.shop.keep(stage)
            del todo[stage.name]
        elsewhere = [self.begin(stage) for stage in todo.values() if self.ready(stage)].count(False)
        progress.words = " ".join(job.stage.name for job in self.jobs.values())
        progress.advance(len(done), self.left(todo.values()))
        return bool(self.jobs) or (bool(elsewhere) and not self.stopping)

    def ready(self, stage):
        """Whether it may begin: not if it was stopped or has failed, since that would happen again."""
        again = stage.name in self.tried or self.shop.state(stage) == "failed"
        return not (again or self.stopping) and all(map(self.shop.here, stage.parents))

    def begin(self, stage):
        """Start a stage, if there is room for it → whether it was; not if another runner has it."""
        free = set(range(self.size)) - set(self.jobs)
        lock = self.shop.claim(stage) if free else None
        if lock is None or self.shop.here(stage):
            return False
        run, slot, environment = self.shop.run_folder(stage), min(free), dict(os.environ)
        if self.shop.state(stage) == "done":  # by other code
            shutil.rmtree(run)
            (run.parent / "done.json").unlink()
        words = [*stage.flags(self.shop.run_folder), f"--out={run}", "--resume-or-start", *self.threads()]
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
        folder, code = self.shop.folder(job.stage), job.process.returncode
        end = {FINISHED: "done", STOPPED: "stopped"}.get(code, "stopped" if self.stopping else "failed")
        lines = (folder / "log.txt").read_text(errors="replace").splitlines()
        before = self.shop.ended(job.stage, "stopped") or {"seconds": 0}
        seconds = before["seconds"] + time.perf_counter() - job.began
        device = next((line for line in reversed(lines) if line.startswith("device ")), None)
        facts = {"seconds": round(seconds, 1), "exit": code, "device": device, "torch": torch.__version__}
        facts |= {"code": job.code, "commit": commit(), "last": lines[-3:] if end == "failed" else []}
        (folder / "stopped.json").unlink(missing_ok=True)
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
    git = f"git -C {shlex.quote(str(ROOT))} rev-parse --short HEAD 2>/dev/null"
    code, text = subprocess.getstatusoutput(git)
    return None if code else text

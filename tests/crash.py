"""Run a training script with --resume-or-start, kill -9 it at random moments, start it again, and let the
last one finish.

python tests/crash.py KILLS SECONDS train_pretrain --out out/x …

Each attempt is a fork of one process that has imported torch but used none of it: starting again costs
nothing. A moment of death is drawn from 0 to 1.3 SECONDS, earlier ones more often; they are seconds of
computing, so that a busy machine does not kill it before it has begun.
"""

import importlib
import os
import random
import signal
import sys
import time
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

from lab.device import run_torch_script

import torch._dynamo  # noqa: F401 (a second that the first optimizer takes, and no attempt should need)

import verify


def pay_the_untrained():
    """While it lasts, the reward "mixed" is one in which samples of a model that has learnt nothing differ."""
    return mock.patch.dict(verify.REWARDS, mixed=lambda verdict, alpha: 1 / (1 + len(verdict.errors)))


def attempt(main, arguments):
    """Run a script to its end in this process, which ends with the script's exit code."""
    code = 1
    try:
        with pay_the_untrained():
            run_torch_script(lambda: main(arguments))
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def cpu_seconds(pid):
    """How long a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main():
    kills, seconds, name, *arguments = sys.argv[1:]
    script = importlib.import_module(name)
    rand, killed = random.Random(0), 0
    while True:
        child = os.fork()
        if not child:
            attempt(script.main, [*arguments, "--resume-or-start"])
        if killed == int(kills):
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        moment = rand.uniform(0, float(seconds)) * (0.3 + rand.random())
        while (running := os.waitpid(child, os.WNOHANG) == (0, 0)) and cpu_seconds(child) < moment:
            time.sleep(0.002)
        if running:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        killed += 1
        print("killed", killed, flush=True)


if __name__ == "__main__":
    main()

"""Run a training script with --resume, kill -9 it at random moments, start it again, and let the last one finish.

python tests/crash.py KILLS SECONDS train_pretrain --out out/x …

Each attempt is a fork of one process that has imported torch but used none of it: starting again costs nothing. A moment of death is drawn
evenly from 0 to SECONDS.
"""

import importlib
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def main():
    kills, seconds, name, *arguments = sys.argv[1:]
    module = importlib.import_module(name)
    rand, killed = random.Random(0), 0
    while True:
        child = os.fork()
        if not child:
            sys.argv = [f"{name}.py", *arguments, "--resume"]
            code = 1
            try:
                module.main()
                code = 0
            except SystemExit as stop:
                code = stop.code
            finally:
                sys.stdout.flush()
                os._exit(code)
        if killed < int(kills):
            time.sleep(rand.uniform(0, float(seconds)) * (0.3 + rand.random()))
            if os.waitpid(child, os.WNOHANG) == (0, 0):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            killed += 1
            print("killed", killed, flush=True)
        else:
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()

#!/usr/bin/env bash
# RL from a base, once with each value of an option, and a table of paired differences:
#   bash runs/ablate.sh reward=outcome,strict
#   bash runs/ablate.sh kl=0,0.01 --seeds 2 --jobs 2
# Interrupted, it goes on where it was. Any option of train_grpo.py will do; experiments.py --help says the rest.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/setup.sh
.venv/bin/python experiments.py ablate "$@"

#!/usr/bin/env bash
# The whole laboratory on a laptop CPU: set up, pre-train, mid-train, GRPO on the edge band, evaluate.
# Needs Python 3.10+ and nothing else. Interrupted, it goes on where it was: every command takes up its run. A stage
# that is stopped exits with 75 and ends the script, so that none starts from half a model.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/setup.sh
export PATH="$PWD/.venv/bin:$PATH" TQDM_MININTERVAL=1
WORLD="template zoo; mode forward; distractors 2-4; literals 1-9; bound 99; letters ordered"
python train_pretrain.py --preset tiny --out out/demo/base --resume-or-start
python train_pretrain.py --preset tiny --out out/demo/mid --resume-or-start \
  --init-from out/demo/base/latest --mixture "op 2-4:0.6, 5-6:0.4; $WORLD; tokens 1M"
python train_grpo.py --preset tiny --out out/demo/grpo --resume-or-start --init-from out/demo/mid/latest
python evaluate.py --preset tiny --out out/demo/eval --resume-or-start --report out/demo/eval/report.html \
  base=out/demo/base/latest mid=out/demo/mid/latest grpo=out/demo/grpo/latest

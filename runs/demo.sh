#!/usr/bin/env bash
# The whole laboratory on a laptop CPU: set up, pre-train, mid-train, GRPO on the edge band and some of id, evaluate.
# Needs Python 3.10+ and nothing else. Interrupted, it goes on where it was: every command takes up its run. A stage
# that is stopped exits with 75 and ends the script, so that none starts from half a model.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/setup.sh
export PATH="$PWD/.venv/bin:$PATH" TQDM_MININTERVAL=1
python train_pretrain.py --preset tiny --out out/demo/base --resume-or-start --repeat 0.5
python train_pretrain.py --preset tiny --out out/demo/mid --resume-or-start --init-from out/demo/base/latest \
  --mixture "op 2-5:0.7, 6-7:0.3; world mini; tokens 2M" --lr 3e-4 --muon-lr 9e-4 --warmup 0.1 --cooldown 1
python train_grpo.py --preset tiny --out out/demo/grpo --resume-or-start --init-from out/demo/mid/latest
python evaluate.py --preset tiny --out out/demo/eval --resume-or-start --report out/demo/eval/report.html \
  base=out/demo/base/latest mid=out/demo/mid/latest grpo=out/demo/grpo/latest

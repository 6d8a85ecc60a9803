#!/usr/bin/env bash
# The preset small end to end, for one GPU: set up, pre-train 18M parameters on 500M tokens, mid-train, GRPO on the edge band,
# evaluate. Interrupted, it goes on where it was; a stage that is stopped exits with 75 and ends the script.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
CONTEXTS="template zoo, school, festival"
python train_pretrain.py --preset small --out out/gpu/base --resume-or-start
python train_pretrain.py --preset small --out out/gpu/mid --resume-or-start \
  --init-from out/gpu/base/latest --mixture "op 2-10:0.6, 11-14:0.4; $CONTEXTS; tokens 50M"
python train_grpo.py --preset small --out out/gpu/grpo --resume-or-start --init-from out/gpu/mid/latest
python evaluate.py --preset small --out out/gpu/eval --resume-or-start --report out/gpu/eval/report.html \
  base=out/gpu/base/latest mid=out/gpu/mid/latest grpo=out/gpu/grpo/latest

#!/usr/bin/env bash
# The whole laboratory on a laptop CPU: set up, pre-train, GRPO on the edge band, evaluate. Needs Python 3.10+ and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
python train_pretrain.py --preset tiny --out out/demo/base
python train_grpo.py --preset tiny --init-from out/demo/base/latest --out out/demo/grpo
python evaluate.py base=out/demo/base/latest,grpo=out/demo/grpo/latest --preset tiny --out out/demo/eval

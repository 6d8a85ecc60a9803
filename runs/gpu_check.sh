#!/usr/bin/env bash
# Is a GPU's result what the CPU's tests say, and how fast is it? The tests of the kernels and of sampling, the preset small for 200
# steps of pre-training and 3 of GRPO, a look at it, and four benches: each part with a limit in seconds, ten minutes in all. A part
# that fails does not stop the next. Needs a python with torch for CUDA, triton, pytest and what requirements.txt names; installs
# nothing.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/gpu_check}
python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "error: this python's torch finds no CUDA GPU" >&2; exit 2; }
mkdir -p "$out"
rm -rf "$out/base" "$out/rl" "$out/eval"
failed=()
part() { # NAME LIMIT COMMAND…
  local name=$1 limit=$2 began=$SECONDS
  shift 2
  timeout -k 10 "$limit" "$@" 2>&1 | tee "$out/$name.log" | tail -n 20
  local code=${PIPESTATUS[0]}
  [ "$code" = 0 ] || failed+=("$name (exit $code)")
  echo "== $name: exit $code, $((SECONDS - began)) s" | tee -a "$out/summary.txt"
}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/summary.txt"
part flash 120 python -m pytest -q -p no:cacheprovider tests/test_flash.py -x -k "not compile"
part sampler 45 python -m pytest -q -p no:cacheprovider tests/test_sampler.py
part pretrain 90 python train_pretrain.py --preset small --out "$out/base" --steps 200 --eval-every 200
part grpo 75 python train_grpo.py --preset small --init-from "$out/base" --out "$out/rl" --steps 3 --eval-every 3
part evaluate 40 python evaluate.py --preset small --problems 16 --out "$out/eval" base="$out/base" rl="$out/rl"
part train_speed 60 python bench/train_speed.py --rounds 3 --json "$out/train_speed.json"
part attention_speed 45 python bench/attention_speed.py --rounds 7 --json "$out/attention_speed.json"
part sampling_speed 45 python bench/sampling_speed.py --rounds 1 --batches 256 --json "$out/sampling_speed.json"
part grpo_speed 60 python bench/grpo_speed.py --ckpt "$out/base/latest" --preset small --rounds 2 --json "$out/grpo_speed.json"
rm -rf "$out/base" "$out/rl"
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }

#!/usr/bin/env bash
# Is a GPU's result what the CPU's tests say, and how fast is it? Two steps of the preset small, which compile what all others use; tests
# of the kernels and of sampling; 200 steps of pre-training and 3 of GRPO, and a look at both; four benches. Each part has a limit in
# seconds, ten minutes in all; one that fails does not stop the next. Needs a Python with torch for CUDA, triton, pytest and what
# requirements.txt names, and installs nothing: PYTHON=… bash runs/gpu_check.sh [OUT]
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
out=${1:-out/gpu_check}
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "error: the torch of $PYTHON finds no CUDA GPU" >&2; exit 2; }
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
part warm 120 "$PYTHON" train_pretrain.py --preset small --out "$out/base" --steps 2 --eval-every 2
rm -rf "$out/base"
part tests 100 "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_flash.py tests/test_sampler.py \
  -k "two_runs or heads_and_widths or formula or error_of_any_kernel or decode or graphs_on_a_gpu"
part pretrain 75 "$PYTHON" train_pretrain.py --preset small --out "$out/base" --steps 200 --eval-every 200
part grpo 75 "$PYTHON" train_grpo.py --preset small --init-from "$out/base" --out "$out/rl" --steps 3 --eval-every 3
part evaluate 40 "$PYTHON" evaluate.py --preset small --problems 16 --out "$out/eval" base="$out/base" rl="$out/rl"
part train_speed 60 "$PYTHON" bench/train_speed.py --rounds 1 --steps 4 --json "$out/train_speed.json"
part attention_speed 40 "$PYTHON" bench/attention_speed.py --rounds 7 --json "$out/attention_speed.json"
part sampling_speed 45 "$PYTHON" bench/sampling_speed.py --rounds 1 --rows 1024 --batches 1024 --new 100 --json "$out/sampling_speed.json"
part grpo_speed 45 "$PYTHON" bench/grpo_speed.py --ckpt "$out/base/latest" --preset small --rounds 2 --json "$out/grpo_speed.json"
rm -rf "$out/base" "$out/rl"
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }

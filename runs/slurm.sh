#!/usr/bin/env bash
# A study as an array of Slurm jobs, as many as you like: they share its stages over one folder, each of one GPU.
#   bash runs/test.sh                                                 # once, for .venv
#   sbatch --array=0-3 runs/slurm.sh --studies s3 --scale small       # what is after the file goes to experiments.py run
# Told to stop, by a cluster that preempts with notice or 120 seconds before its time is over, a job saves (exit code 75) and is
# queued again; it goes on where it was. Killed without notice it goes on from its last checkpoint.
#SBATCH --job-name=study
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=study-%A-%a.log
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" || exit 2  # Slurm runs a copy of this file from elsewhere
child= told=
trap 'told=1; [ -z "$child" ] || { trap "" TERM; kill -TERM "$child"; }' TERM
.venv/bin/python experiments.py run "$@" &
child=$!
[ -z "$told" ] || kill -TERM "$child"  # told before there was a command to tell
while
  wait "$child"
  code=$?
  kill -0 "$child" 2>/dev/null  # the signal has ended `wait`, not yet the command
do :; done
# 143: it was told before it could listen, so there was nothing to save
if { [ "$code" = 75 ] || [ "$told$code" = 1143 ]; } && [ -n "${SLURM_JOB_ID:-}" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

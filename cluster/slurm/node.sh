#!/usr/bin/env bash
# Ray on one node of a Slurm allocation, until it is told to end: train.sbatch runs this on every node alike. The first
# task's node is the head; the others join it, and try again until it listens.
set -euo pipefail
: "${RAY_HEAD_IP:?}" "${RAY_HEAD_PORT:?}" "${RAY_AUTH_TOKEN_PATH:?train.sbatch makes the token}"
export RAY_AUTH_MODE=token
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=60 # SIGTERM drains this node first: its workers save and leave

address="$RAY_HEAD_IP:$RAY_HEAD_PORT"
resources=(--num-cpus="${SLURM_CPUS_ON_NODE:?}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats)
if [[ ${SLURM_PROCID:?} == 0 ]]; then
  exec ray start --head --block --node-ip-address="$RAY_HEAD_IP" --port="$RAY_HEAD_PORT" \
    --dashboard-host=127.0.0.1 --dashboard-port=0 "${resources[@]}"
fi
until ray health-check --address "$address" >/dev/null 2>&1; do sleep 2; done
exec ray start --block --address="$address" "${resources[@]}"

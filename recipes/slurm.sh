#!/bin/bash
# One process per GPU on several machines, under SLURM. Adapt the lines below, then:
#   sbatch recipes/slurm.sh RECIPE.yaml [section.key=value ...]
# The environment must be active in the shell that submits, and `training.output_dir` on a disk that all machines share.
#SBATCH --job-name=distill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_JOB_NUM_NODES))

# Two minutes before the time limit: the processes write a checkpoint and end, and the job is queued again.
again() {
  requeue=1
  kill -USR1 "$step" # srun passes it on
}
requeue=0
trap again USR1

# srun sets SLURM_PROCID and SLURM_LOCALID in each process; PyTorch reads RANK and LOCAL_RANK.
srun --kill-on-bad-exit=1 bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec hf-distill "$@"' distill "$@" &
step=$!
wait "$step"
status=$?
while kill -0 "$step" 2>/dev/null; do # a signal interrupts `wait`
  wait "$step"
  status=$?
done
if [ "$requeue" = 1 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

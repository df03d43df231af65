#!/bin/bash
# Trains on several machines under Slurm, a process for each GPU.
#
#     sbatch examples/slurm.sh imagenet --data.source /shared/shards/imagenet --output /shared/runs/imagenet
#
# What follows the script goes to `ditwright train`. The same command goes on with a run, and does nothing where a run
# is done; so ask for as many turns of it as the run may need. They take place one after the other:
#
#     for turn in 1 2 3 4; do sbatch --dependency=singleton examples/slurm.sh ...; done
#
# The output folder must be on a file system that all machines see and that renames a folder whole (Lustre, NFS, GPFS).
# `ditwright info DiT-XL/2 --parallel.data 4 --parallel.shard 8` says how much memory each GPU needs.

#SBATCH --job-name=ditwright
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1       # one torchrun on each machine, which starts the others
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64        # 8 for each GPU
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180         # 3 minutes before the end: processes save and leave
#SBATCH --requeue                 # a machine failed: again, from what was saved
#SBATCH --open-mode=append        # the log goes on too
#SBATCH --output=%x-%j.log
# Yours may need: --partition=PARTITION, --account=ACCOUNT

set -euo pipefail

# The environment that ditwright is installed in; the same on all machines.
source "${VENV:-.venv}/bin/activate"

# Where the processes find each other: any port that is free on the first machine.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# At SIGTERM torchrun would give its processes 30 seconds to save.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150

# A process that dies takes the others with it; torchrun starts them all again, up to 3 times, and the run goes on from
# its last checkpoint. Where a machine is lost, the torchruns that are left give up, and --requeue starts anew.
# --kill-on-bad-exit: where one torchrun gives up, the others do not wait for it.
# --cpus-per-task: srun does not take it from above, and would give one.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" torchrun \
    --nnodes "$SLURM_NNODES" \
    --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv-backend c10d \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-endpoint "$head:29400" \
    --max-restarts 3 \
    -m ditwright train "$@"

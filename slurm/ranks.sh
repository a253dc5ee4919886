# What the sbatch scripts beside this file have in common, as functions: where `ldm` is, where the ranks meet, one srun
# task a rank with a log of its own, and back into the queue.
#
# A script may set arrays before: ldm=(COMMAND ...), what runs `ldm`; srun_options=(...), more options of srun;
# preflight=(...), arguments of `ldm preflight` beside the run's own.
srun_options+=()
preflight+=()

# The number that Slurm's commands know this job by. Of an array it is the task's: the number alone would be all of them.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

# .venv in the folder that the job was submitted from, or LDM_VENV.
find_ldm() {
    if [ -n "${ldm+set}" ]; then return; fi
    local venv=${LDM_VENV:-$PWD/.venv}
    if [ ! -x "$venv/bin/ldm" ]; then
        echo "error: $venv/bin/ldm isn't there; submit from the root of the clone, or set LDM_VENV" >&2
        exit 2
    fi
    ldm=("$venv/bin/ldm")
}

# How many tasks there are, where they meet, and where they write. RANK, WORLD_SIZE and LOCAL_RANK come from srun.
place_ranks() {
    # One task a GPU; on nodes without any, one task a node. --ntasks-per-node overrides it.
    tasks_per_node=${SLURM_NTASKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
    cpus_per_task=$((SLURM_CPUS_ON_NODE / tasks_per_node))
    # The port follows from the job's number, so that jobs sharing a node meet at different ones; it lies below the
    # range that kernels hand out by themselves.
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
    export MASTER_ADDR MASTER_PORT
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus_per_task}
    # Beside the job's log, which this script writes to: ldm-12.log has the folder ldm-12-ranks.
    local log
    log=$(readlink "/proc/$$/fd/1")
    if [ ! -f "$log" ]; then log=$PWD/ldm-$SLURM_JOB_ID; fi
    export LDM_JOB_FOLDER=${log%.log}-ranks
    mkdir -p "$LDM_JOB_FOLDER"
    echo "job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)): $SLURM_JOB_NUM_NODES nodes x" \
        "$tasks_per_node tasks, meeting at $MASTER_ADDR:$MASTER_PORT; logs of the ranks: $LDM_JOB_FOLDER"
}

# What a task runs: the command, with all that it says in the job's log and in its own, rank-<number>.log. The shell
# outlives its signals, and so does tee, so that the command's last words and its status arrive.
task='trap : INT TERM USR1
"$@" > >(trap "" INT TERM USR1; exec tee -a "$LDM_JOB_FOLDER/rank-$SLURM_PROCID.log") 2>&1
status=$?
wait $!
exit $status'

# on_every_rank VERB [ARGUMENTS]: runs `ldm`. --wait ends the other ranks when one has died. --kill-on-bad-exit, which
# some sites switch on, would do so at once and so hide status 75 behind that of a killed rank.
on_every_rank() {
    srun --ntasks=$((SLURM_JOB_NUM_NODES * tasks_per_node)) --ntasks-per-node="$tasks_per_node" \
        --cpus-per-task="$cpus_per_task" ${SLURM_GPUS_ON_NODE:+--gpus-per-node="$SLURM_GPUS_ON_NODE"} \
        --kill-on-bad-exit=0 --wait=60 "${srun_options[@]}" \
        bash -c "$task" task "${ldm[@]}" "$@"
}

# check_nodes [ARGUMENTS OF THE RUN]: one task a node looks at it, and all look at the network between them. Returns when
# all is well. Bad nodes are excluded and the job goes back into the queue; where that can't help, the job ends.
# LDM_PREFLIGHT=off leaves it out.
check_nodes() {
    if [ "${LDM_PREFLIGHT:-on}" = off ]; then return; fi
    local verdict=$LDM_JOB_FOLDER/preflight.verdict
    rm -f "$verdict"
    srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" \
        ${SLURM_GPUS_ON_NODE:+--gpus-per-node="$SLURM_GPUS_ON_NODE"} --kill-on-bad-exit=0 --wait=60 \
        "${srun_options[@]}" "${ldm[@]}" preflight "folder=$LDM_JOB_FOLDER" "${preflight[@]}" "$@"
    local status=$?
    # Nodes that hang are killed, so the status of srun doesn't tell.
    if [ -f "$verdict" ]; then status=$(cat "$verdict"); fi
    if [ "$status" -eq 0 ]; then return; fi
    if [ "$status" -eq 75 ]; then
        requeue "$(paste -sd, "$LDM_JOB_FOLDER/excluded_nodes")"
    fi
    exit "$status"
}

# requeue [NODES]: back into the queue, for other nodes than these. Slurm takes a list of nodes for jobs that wait alone,
# so it is told after the job has been sent there, in the seconds that SIGTERM leaves to this script.
requeue() {
    trap '' TERM
    echo "job $job: back into the queue${1:+, without $1}"
    local before
    before=$(scontrol show job "$job" | grep -o 'ExcNodeList=[^ ]*' | cut -d= -f2 | grep -v null)
    scontrol requeue "$job" || return
    if [ -n "${1:-}" ]; then
        until scontrol update "JobId=$job" "ExcNodeList=${before:+$before,}$1"; do sleep 1; done
    fi
}

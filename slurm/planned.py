"""What `ldm plan` says of a job, in short."""

from __future__ import annotations

from slurm.command import Command, of_cluster
from slurm.profile import Profile
from training import compose
from training.errors import ConfigurationError


def summary(command: Command, profile: Profile, refuse: bool) -> list[str]:
    """Memory, time and cost in a few lines; none where the kind of GPU isn't known.

    refuse: whether to raise ConfigurationError for what doesn't fit into the GPU's memory, instead of saying so.
    """
    if profile.gpu is None or not profile.gpus_per_node:
        return []
    from training.planning.cluster import cluster_of
    from training.planning.plan import make_plan
    from training.planning.table import brief

    config = compose.composed("plan", [*command.overrides, *_of_cluster(command)])
    plan = make_plan(config, cluster_of(config))
    size = config.batch.micro_size
    as_set = [c for c in plan.choices if (c.stage, c.micro_batch) == (config.engine.zero_stage, size)]
    lines = list(brief(plan))
    if as_set and not plan.room.holds(as_set[0].parts):
        taken, there = plan.room.taken(as_set[0].parts) / 1e9, plan.room.memory_bytes / 1e9
        problem = f"a rank would take {taken:.0f} GB of the {there:.0f} GB of a {plan.cluster.gpu.name}"
        if refuse:
            fits = "no size fits" if plan.chosen is None else f"the largest that fits is {plan.chosen.micro_batch}"
            remedy = f"{problem}; {fits}. Take a higher engine=zero..., or check_memory=false; `ldm plan` tells more"
            raise ConfigurationError("batch.micro_size", size, remedy)
        lines.append(f"! {problem}, by the plan")
    return lines


def _of_cluster(command: Command) -> list[str]:
    """The submission's choice of a profile; that of `ldm plan` is another one by default."""
    own = of_cluster(command.own)
    return own if any(override.startswith("cluster=") for override in own) else ["cluster=generic", *own]

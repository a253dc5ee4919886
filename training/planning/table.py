"""A plan as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from evaluation.numbers import duration, number, percent, seconds, whole
from training.planning import communication
from training.planning.batches import Choice, shown
from training.planning.memory import Parts
from training.planning.plan import Plan, Scaled

PARTS = [field.name for field in fields(Parts)]


def lines(plan: Plan) -> Iterator[str]:
    """The whole plan, line by line."""
    yield from _model(plan)
    yield from _memory(plan)
    if plan.chosen is None:
        setting = plan.config.engine.zero_stage
        yield f"\nNothing fits with engine=zero{setting}: take a higher stage, more GPUs, or larger ones."
        return
    yield from _time(plan)
    yield from _scaling(plan)
    yield from _checkpoints(plan)
    yield from _data(plan)
    yield from _assumptions(plan)


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        "  " + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in (header, *rows)
    ]


def gigabytes(size: float) -> str:
    """Of 10^9 bytes, as data sheets count."""
    return f"{size / 1e9:.1f}" if size >= 0.05e9 else "0" if not size else f"{size / 1e9:.2f}"


def _model(plan: Plan) -> Iterator[str]:
    config, cluster, counted = plan.config, plan.cluster, plan.counted
    one, frozen = counted.training(1), counted.encoding(1)
    yield f"{config.run.name} on {cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu.name}"
    yield f"\nparameters trained  {whole(counted.elements)}"
    yield f"FLOPs per image     {_flops(one.forward_flops)} forward, {_flops(one.backward_flops)} backward" + (
        f", {_flops(frozen.forward_flops)} in frozen parts" if frozen else ""
    )
    yield f"batch               {whole(plan.global_batch)} over {whole(cluster.ranks)} ranks"
    if plan.global_batch != config.batch.global_size:
        yield (
            f"  ! batch.global_size={config.batch.global_size} isn't divisible by {cluster.ranks} ranks, and training "
            f"would refuse it: set it to {plan.global_batch}, which is planned here"
        )


def _flops(count: float) -> str:
    return f"{count / 1e12:.3g} T" if count >= 1e12 else f"{count / 1e9:.3g} G"


def _memory(plan: Plan) -> Iterator[str]:
    yield (
        f"\nMemory of a rank at its peak, GB of {gigabytes(plan.room.memory_bytes)}: tensors, and with fragmentation "
        "and what is reserved"
    )
    sizes = shown(sorted({choice.micro_batch for choice in plan.choices}))
    if plan.chosen is not None:
        sizes = sorted({*sizes, plan.chosen.micro_batch})
    yield from grid(
        ["ZeRO", "micro-batch", *PARTS, "tensors", "in all", "fits", "peak in"],
        [_memory_row(plan, choice) for choice in plan.choices if choice.micro_batch in sizes],
    )
    yield (
        "  micro-batch: images at a time x times a step; weights: that are computed with; optimizer: moments, and fp32 "
        "weights beside others; buckets: of communication; others: frozen models, and the one that monitors look at"
    )


def _memory_row(plan: Plan, choice: Choice) -> list[str]:
    mark = "*" if choice is plan.chosen else ""
    return [
        f"{choice.stage}{mark}",
        f"{choice.micro_batch} x {choice.accumulation}",
        *(gigabytes(getattr(choice.parts, name)) for name in PARTS),
        gigabytes(choice.parts.total),
        gigabytes(plan.room.taken(choice.parts)),
        "yes" if plan.room.holds(choice.parts) else "no",
        choice.moment,
    ]


def _time(plan: Plan) -> Iterator[str]:
    assert plan.chosen is not None and plan.step is not None
    config, step, ranks = plan.config, plan.step, plan.cluster.ranks
    rate = plan.global_batch / step.seconds
    saving = config.steps // config.checkpoint.every * plan.checkpointing.stall
    taken = config.steps * step.seconds + saving
    hours = taken / 3600 * ranks
    micro, accumulation = plan.chosen.micro_batch, plan.chosen.accumulation
    yield (
        f"\n* engine=zero{plan.chosen.stage} batch.micro_size={micro}, the largest that fits"
        + (f"; {accumulation} micro-batches a step" if accumulation > 1 else "")
    )
    yield (
        f"step                {1000 * step.seconds:.0f} ms: {1000 * step.compute:.0f} computing, "
        f"{1000 * step.exposed:.0f} waiting for others (communication takes {1000 * step.communication:.0f})"
    )
    yield (
        f"images/s            {number(rate)}; {number(rate / ranks)} a GPU, computing at "
        f"{percent(plan.assume.utilisation)} of its peak (MFU, assumed)"
    )
    yield f"{whole(config.steps)} steps".ljust(20) + f"{duration(taken)} ({taken / 86400:.1f} days)"
    yield f"GPU-hours           {whole(hours)}"
    yield (
        f"cost                ${whole(hours * plan.cluster.gpu.price_per_hour)} at "
        f"${plan.cluster.gpu.price_per_hour:.2f} a GPU-hour"
    )


def _scaling(plan: Plan) -> Iterator[str]:
    assert plan.chosen is not None
    yield "\nBytes a rank sends in a step, GB"
    for exchange in plan.traffic:
        yield (
            f"  {exchange.collective.ljust(15)}{exchange.sent(plan.cluster.ranks) / 1e9:6.2f}, can hide beside: "
            f"{exchange.beside}"
        )
    yield "\nSimulated on other numbers of GPUs of this kind; efficiency: beside one GPU that waits for nobody"
    strong = {scaled.ranks: scaled for scaled in plan.strong}
    header = ["GPUs", "step ms", "waiting ms", "images/s", "efficiency"]
    rows = [
        [str(scaled.ranks), *_scaled(scaled), *(_scaled(strong[scaled.ranks]) if scaled.ranks in strong else ["-"] * 4)]
        for scaled in plan.weak
    ]
    per_rank = plan.chosen.micro_batch * plan.chosen.accumulation
    yield (
        f"  first: {per_rank} images a GPU; then: {whole(plan.global_batch)} in all, where they divide, by the largest "
        "micro-batch that fits"
    )
    yield from grid([*header, *header[1:]], rows)


def _scaled(scaled: Scaled) -> list[str]:
    step = scaled.step
    return [
        f"{1000 * step.seconds:.0f}",
        f"{1000 * step.exposed:.0f}",
        number(scaled.images_per_second),
        percent(scaled.efficiency),
    ]


def _checkpoints(plan: Plan) -> Iterator[str]:
    assert plan.step is not None
    saved = plan.checkpointing
    failures = plan.assume.failure_gpu_hours * 3600 / plan.cluster.ranks
    best = saved.best_interval(failures)
    interval = plan.config.checkpoint.every * plan.step.seconds
    yield (
        f"\ncheckpoint          {gigabytes(saved.size)} GB, {gigabytes(saved.size / plan.cluster.ranks)} a rank; "
        f"training stands still for {_short(saved.stall)}, and it is written in {_short(saved.seconds)}; "
        f"{plan.config.checkpoint.keep} are kept"
    )
    yield (
        f"a failure           every {duration(failures)}; least is lost with a checkpoint every {duration(best)}, "
        f"checkpoint.every={_round(best / plan.step.seconds)}: {percent(saved.lost_share(best, failures))}"
    )
    yield (
        f"as set              checkpoint.every={plan.config.checkpoint.every}, {duration(interval)}: "
        f"{percent(saved.lost_share(interval, failures))} lost"
    )


def _short(time: float) -> str:
    """To two digits: 17 ms."""
    return seconds(float(f"{time:.2g}"))


def _round(steps: float) -> int:
    """To two digits: a setting that a person would write."""
    return max(1, int(float(f"{steps:.1e}")))


def _data(plan: Plan) -> Iterator[str]:
    reading, assume = plan.reading, plan.assume
    assert reading is not None
    read = plan.config.steps * plan.global_batch
    sent = read * reading.bytes_per_sample
    shard = gigabytes(reading.samples_per_shard * assume.sample_bytes)
    yield (
        f"\ndata                {whole(read)} samples read, {number(read / reading.samples)} times "
        f"{whole(reading.samples)} in {whole(reading.shards)} shards of {whole(reading.samples_per_shard)}, "
        f"{shard} GB each"
    )
    yield (
        f"from the store      {sent / 1e12:.1f} TB, {whole(reading.rate / 1e6)} MB/s, "
        f"{whole(reading.requests)} requests/s; ${whole(sent / 1e9 * assume.egress_dollars_per_gigabyte)} at "
        f"${assume.egress_dollars_per_gigabyte} a GB"
    )
    for doubt in reading.doubts(assume.sample_bytes, plan.cluster.nodes, assume.read_bytes_per_second):
        yield f"  ! {doubt}"


def _assumptions(plan: Plan) -> Iterator[str]:
    assume, gpu = plan.assume, plan.cluster.gpu
    yield "\nAssumed (assume.*, conf/gpu):"
    told = [
        f"counted FLOPs run at {percent(assume.utilisation)} of the peak, {gpu.bf16_flops_per_second / 1e12:.0f} "
        f"TFLOP/s in bf16 and fp16, {gpu.fp32_flops_per_second / 1e12:.0f} in fp32, for any micro-batch",
        f"of a GPU's memory {gigabytes(assume.reserved_bytes)} GB are reserved, and {percent(assume.fragmentation)} of "
        "what tensors take is lost between them",
        f"links bring {percent(communication.LINK_EFFICIENCY)} of {gpu.link_bytes_per_second / 1e9:.0f} GB/s within a "
        f"node and of {gpu.network_bytes_per_second / 1e9:.4g} GB/s a GPU between nodes; ring collectives, which begin "
        f"after {1e6 * communication.START_SECONDS:.0f} µs + {1e6 * communication.HOP_SECONDS:.0f} µs for each "
        "doubling of ranks",
        f"{percent(communication.HIDING_SHARE)} of a pass can hide communication, where "
        "engine.overlap_communication is on; the backward pass is two thirds; ranks are alike, and none is late",
        f"a sample is {assume.sample_bytes / 1e3:.0f} kB in its shard, and training never waits for data",
        f"GPUs fail every {whole(assume.failure_gpu_hours)} hours each; for a checkpoint each copies "
        f"{assume.copy_bytes_per_second / 1e9:.1f} GB/s to host memory, and a node writes "
        f"{assume.write_bytes_per_second / 1e9:.1f} GB/s behind training",
        "prices are assumptions; looking at the model (monitor.*) and starting take no time",
    ]
    if plan.config.engine.get("offload_optimizer") is not None:
        told.append("offloaded state takes no time: what its way from the GPU and back adds to a step isn't known")
    yield from (f"  - {text}" for text in told)


def brief(plan: Plan) -> Iterator[str]:
    """What a run takes, in two lines; one where nothing fits."""
    machines = f"{plan.cluster.nodes} x {plan.cluster.gpus_per_node} {plan.cluster.gpu.name}"
    if plan.chosen is None or plan.step is None:
        yield f"on {machines} nothing fits with engine=zero{plan.config.engine.zero_stage}"
        return
    taken = plan.config.steps * plan.step.seconds
    hours = taken / 3600 * plan.cluster.ranks
    yield (
        f"on {machines}: batch.micro_size={plan.chosen.micro_batch} is the largest that fits, a rank takes "
        f"{gigabytes(plan.room.taken(plan.chosen.parts))} of {gigabytes(plan.room.memory_bytes)} GB then"
    )
    yield (
        f"{whole(plan.config.steps)} steps of {1000 * plan.step.seconds:.0f} ms: {duration(taken)}, "
        f"{whole(hours)} GPU-hours, ${whole(hours * plan.cluster.gpu.price_per_hour)}; as `ldm plan` reckons"
    )

"""The schema: every metric that a run logs, to metrics.jsonl and to W&B alike. docs/metrics.md is made of it."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric, or those that differ in a <placeholder> of their name.

    where: what a run must have to log it. repeats: a run that is interrupted, or made again, has the same numbers; the
    others tell of the machine and the hour.
    """

    name: str
    unit: str
    meaning: str
    where: str = "every run"
    repeats: bool = True

    def covers(self, name: str) -> bool:
        """Whether it is a metric of that name."""
        pattern = re.sub(r"<[^>]+>", lambda mark: r"\d+" if mark[0] in _NUMBERS else ".+", re.escape(self.name))
        return re.fullmatch(pattern, name) is not None


_NUMBERS = ("<k>", "<rank>")
_DIFFUSION, _CLASSIFIER, _FIRST_STAGE = "diffusion", "a noisy classifier", "a first stage"
_SEVERAL = "several data sources with names"
_GPU, _CPU, _RANKS = "GPUs", "CPUs", "several ranks"


def _of_machine(name: str, unit: str, meaning: str, where: str = "every run") -> Metric:
    return Metric(name, unit, meaning, where, repeats=False)


METRICS = (
    Metric("step", "updates", "Updates made so far; W&B's own step is the same"),
    Metric("images_seen", "images", "Images trained on so far, over all ranks"),
    _of_machine("time", "s", "When the row was made, since 1970"),
    Metric("train/loss", "", "Mean loss over the step's images; of a first stage, |x - x̂|"),
    Metric(
        "train/loss_decile_<k>",
        "",
        "Mean unweighed loss of the images with timesteps in the k-th tenth, 0 the least noisy; no value for a tenth "
        "that no image fell into",
        f"{_DIFFUSION}; {_CLASSIFIER}",
    ),
    Metric("train/loss_source_<name>", "", "Mean unweighed loss of the images of a data source", _SEVERAL),
    Metric("train/learning_rate", "", "Of this update"),
    Metric("train/gradient_norm", "", "Of all gradients together, before clipping", "every run"),
    Metric(
        "train/update_ratio",
        "",
        "‖Δw‖ / ‖w‖ of this update, all weights together, every tracker.detail_every steps",
    ),
    Metric(
        "train/skipped_updates",
        "updates",
        "Left out so far, as their loss or gradient was a spike",
        "loss_spike.action",
    ),
    Metric(
        "train/roll_backs", "times", "Back to a checkpoint of before, so far, as there was a spike", "loss_spike.action"
    ),
    Metric("train/batches_left_out", "steps", "Whose samples weren't trained on, as of these", "loss_spike.action"),
    Metric("train/ema_decay", "", "Share that the averaged weights kept of themselves at this update"),
    Metric("train/accuracy", "share", "Images whose label was found the likeliest", _CLASSIFIER),
    Metric("train/accuracy_decile_<k>", "share", "The same by tenths of the timesteps", _CLASSIFIER),
    Metric("train/reconstruction", "", "Mean |x - x̂|, images in [-1, 1]", _FIRST_STAGE),
    Metric("train/reconstruction_loss", "", "With the perceptual distance and the learned variance", _FIRST_STAGE),
    Metric("train/log_variance", "", "The learned log variance of the reconstruction", _FIRST_STAGE),
    Metric("train/kl", "nats", "KL penalty of an image", "a first stage, KL"),
    Metric("train/codebook_loss", "", "Distance of latents and codebook entries", "a first stage, VQ"),
    Metric(
        "train/codebook_perplexity", "entries", "As many entries, used alike, would be as varied", "a first stage, VQ"
    ),
    Metric("train/codebook_usage", "share", "Entries that a micro-batch's latents are near to", "a first stage, VQ"),
    Metric("train/codes_revived", "entries", "Put where latents are, as none was near them", "task.revive_codes_every"),
    Metric("train/adversary", "", "The adversary's loss for the autoencoder", "a first stage, once it plays"),
    Metric("train/adversary_weight", "", "And what it is weighed by", "a first stage, once it plays"),
    Metric("train/discriminator_loss", "", "The discriminator's own", "a first stage, once it plays"),
    _of_machine("speed/images_per_second", "images/s", "The step's images over its seconds, all ranks"),
    _of_machine("speed/images_per_second_per_rank", "images/s", "The same by ranks, a GPU each"),
    _of_machine(
        "speed/step_seconds",
        "s",
        "From asking for the first batch until all ranks know the loss, on the main rank. Pictures, measurements and "
        "checkpoints come after it",
    ),
    _of_machine("speed/data_seconds", "s", "Of the step, waiting for batches; like all parts below, on the main rank"),
    _of_machine(
        "speed/forward_seconds",
        "s",
        "Of the step, until the loss: noise, frozen parts, forward pass; what the task's step took beside the other "
        "parts. On GPUs, by events in their stream, as are the next two",
    ),
    _of_machine(
        "speed/backward_seconds",
        "s",
        "Of the step, the backward pass. ZeRO reduces gradients within it, beside it with overlap_communication, so it "
        "contains that communication, and waiting for slower ranks",
    ),
    _of_machine(
        "speed/optimizer_seconds",
        "s",
        "Of the step, clipping, update, average of the weights, and ZeRO's gathering of the new weights",
    ),
    _of_machine(
        "speed/other_seconds", "s", "Of the step, the rest: metrics to the host, and their exchange between the ranks"
    ),
    _of_machine(
        "speed/communication_seconds",
        "s",
        "In collectives of the engine, and waiting in them for slower ranks. It is part of forward, backward and "
        "optimizer, not beside them. GPUs run collectives beside other work: there only a profiler tells",
        _CPU,
    ),
    _of_machine(
        "speed/mfu",
        "share",
        "FLOPs that the step needs (those of `ldm plan`) over those that all GPUs could do in its seconds by their "
        "data sheet",
        "tracker.gpu",
    ),
    _of_machine(
        "speed/slowest_rank",
        "rank",
        "That with the most seconds of its own: on CPUs its step without collectives; on GPUs data and forward pass, "
        "which come before the first collective but under ZeRO 3",
        _RANKS,
    ),
    _of_machine("speed/slowest_behind_seconds", "s", "These, beyond those of the median rank", _RANKS),
    _of_machine("data/wait_seconds", "s", "Of the step, the longest that a rank waited for batches"),
    _of_machine("data/wait_fraction", "share", "The same of the step's seconds"),
    _of_machine("data/bytes_per_second", "bytes/s", "That stores or disks sent for the step's images, caches apart"),
    _of_machine("data/retries", "requests", "For the step's images, made once more after a failure"),
    _of_machine(
        "data/queue_depth",
        "batches",
        "That workers had ready when one was asked for: the least of all ranks. 0 all the time: data is too slow",
    ),
    Metric("data/bad/<reason>", "samples", "Skipped and replaced so far, by reason", "a bad sample"),
    Metric("data/epoch", "epochs", "Passes over the data so far"),
    Metric("data/epoch/<name>", "epochs", "The same of a data source", _SEVERAL),
    Metric("data/samples/<name>", "samples", "Taken from a data source so far", _SEVERAL),
    Metric("data/size/<width>x<height>", "samples", "Taken of those cut to a size so far", "data.buckets"),
    _of_machine(
        "memory/peak_gib",
        "GiB",
        "The most of any rank since the start: of a GPU what tensors took, else the process's resident set",
    ),
    _of_machine("memory/peak_reserved_gib", "GiB", "The most that any rank's GPU allocator held", _GPU),
    _of_machine(
        "memory/rank<rank>_gib",
        "GiB",
        "memory/peak_gib of each rank; of more than 8 ranks, every tracker.detail_every steps",
    ),
    _of_machine("checkpoint/stall_seconds", "s", "That training stood still to save after this step", "a checkpoint"),
    _of_machine("checkpoint/last_complete_step", "updates", "Of the newest complete checkpoint", "a checkpoint"),
    _of_machine("checkpoint/bytes", "bytes", "Of the newest checkpoint of this start", "a checkpoint"),
    _of_machine("checkpoint/seconds", "s", "From its step until it was complete", "a checkpoint"),
    _of_machine("checkpoint/uploaded", "updates", "Of the newest checkpoint in the store", "checkpoint.upload"),
    _of_machine("checkpoint/upload_seconds", "s", "That it took to bring it there", "checkpoint.upload"),
    Metric("eval/psnr", "dB", "Of reconstructed held-out pictures", _FIRST_STAGE),
    Metric("eval/ssim", "", "Of reconstructed held-out pictures", _FIRST_STAGE),
    Metric("eval/<features>_frechet", "", "Fréchet distance by monitor.protocol", _DIFFUSION),
    Metric("eval/<features>_score", "", "Inception score by monitor.protocol", _DIFFUSION),
    Metric("eval/loss", "nats", "Cross-entropy on held-out pictures", _CLASSIFIER),
    Metric("eval/accuracy", "share", "On held-out pictures", _CLASSIFIER),
    Metric("eval/accuracy_decile_<k>", "share", "The same by tenths of the timesteps", _CLASSIFIER),
    _of_machine(
        "eval/seconds", "s", "That training stood still for pictures and measurements", "a look of the monitor"
    ),
    _of_machine(
        "run/goodput",
        "share",
        "Time in steps that count, of all since the run was submitted first, without stops",
    ),
    _of_machine("run/restarts", "starts", "Beyond the first"),
    _of_machine("run/lost_steps", "updates", "Made and lost again, as they came after a checkpoint"),
)


def metric(name: str) -> Metric | None:
    """The one that covers the name; None: a run must not log it."""
    return next((metric for metric in METRICS if metric.covers(name)), None)


def repeats(name: str) -> bool:
    """Whether an interrupted run has the same numbers under this name as an undisturbed one."""
    found = metric(name)
    return found is not None and found.repeats


def table() -> str:
    """All of them as a table of Markdown."""
    lines = ["| metric | unit | what it is | logged with |", "| --- | --- | --- | --- |"]
    lines += [f"| `{m.name}` | {m.unit} | {m.meaning} | {m.where} |" for m in METRICS]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")

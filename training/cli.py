"""`ldm VERB [overrides]`: one door to every command. Answers --help without importing anything heavy."""

from __future__ import annotations

import importlib
import sys

from training.closed_pipe import quiet_when_nobody_reads

VERBS = {
    "train": ("training.train", "train a model, or go on with an interrupted run"),
    "plan": ("training.plan", "tell what a run will need: memory, time, cost"),
    "submit": ("slurm.submit", "check a job, write its batch script, and hand it to Slurm"),
    "prepare": ("training.prepare", "write a data set as tar shards with an index"),
    "prepare index": ("training.prepare_index", "index the tar shards that others wrote"),
    "prepare latents": ("training.prepare_latents", "encode an experiment's images once, to train on their latents"),
    "evaluate": ("evaluation.evaluate", "measure a run by a protocol (FID, IS, ...)"),
    "efficiency": ("evaluation.efficiency", "put what runs cost in training and sampling beside how good they are"),
    "sample": ("evaluation.sample", "make pictures for prompts from a run"),
    "zero_shot": ("evaluation.zero_shot", "classify pictures with a text-to-image model, or with CLIP"),
    "user_study": ("evaluation.user_study", "write a page that asks people which pictures are better"),
    "export": ("evaluation.export", "write a run's model for diffusers, or under the published names"),
    "report": ("evaluation.report", "write a run's page of charts and pictures, or one of several runs"),
    "preflight": ("slurm.preflight", "check a job's nodes and the network between them, as train.sbatch does first"),
    "doctor": ("training.doctor", "check checkpoints, byte by byte, and list what they hold"),
    "doctor wandb": ("training.doctor_wandb", "see what W&B lacks of your runs, and make a workspace there"),
}


def usage() -> str:
    """The text of `ldm --help`."""
    verbs = "\n".join(f"  {verb:<15} {meaning}" for verb, (_, meaning) in VERBS.items())
    return (
        "usage: ldm VERB [key=value ...]\n\nTrains, samples and measures latent diffusion models.\n\n"
        f"{verbs}\n\n`ldm VERB --help` lists the settings; `ldm VERB ... --cfg job` prints them composed.\n"
        "Example: ldm train experiment=demo steps=100"
    )


def main() -> None:
    """Entry point of `ldm`."""
    with quiet_when_nobody_reads():
        _main()


def _main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return
    two_words = " ".join(arguments[:2])
    verb = two_words if two_words in VERBS else arguments[0]
    if verb not in VERBS:
        print(f"error: ldm has no verb '{verb}'; choose one of {', '.join(VERBS)}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = [f"ldm {verb}", *arguments[len(verb.split()) :]]
    importlib.import_module(VERBS[verb][0]).main()


if __name__ == "__main__":
    main()

"""Whether the stores that a job reads and writes can be reached from here."""

from __future__ import annotations

from slurm.submission import Submission


def check_stores(submission: Submission) -> None:
    """Asks for what the job will need, and changes nothing. Raises DataError with the setting and a remedy."""
    from data.stream import Storage
    from training.components import component
    from training.data_sources import urls_of, without_latents
    from training.dataset import check_places
    from training.upload_checks import check_upload_place

    config, verb = submission.config, submission.command.verb
    if verb == "train":
        check_places(config)
        check_upload_place(config)
    elif verb == "prepare latents":
        check_places(without_latents(config))
        of_data: Storage = component(config, "data.storage")
        of_data.check_writable_place(config.data.latents)
    elif verb != "evaluate":
        storage: Storage = component(config, "storage")
        if verb == "prepare index":
            storage.check(urls_of(config.url))
        storage.check_writable_place(config.get("output") or str(config.url))

"""Wrong settings of data, and shards that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.wrong_input.refusals import Refused, Wrong, check

DATA = {
    "too little of a picture": Wrong(("data.reducing_gap=0.5",), "data.reducing_gap=0.5", "at least 1, or null"),
    "a share above one": Wrong(("data.max_bad_share=2",), "data.max_bad_share=2", "from 0 to 1"),
    "scaled side": Wrong(("data.scaled_side=16",), "data.scaled_side=16", "at least data.image_size=32"),
    "no weight": Wrong(
        ("data.train={a:{url:/x,weight:0},b:{url:/y}}",), "data.train.a.weight=0", "must be a number above 0"
    ),
    "a tiny weight": Wrong(("data.train={a:{url:/x,weight:1e-9},b:{url:/y}}",), "data.train=", "the smallest is below"),
    "a source without a URL": Wrong(("data.train={a:{weight:1}}",), "data.train.a={", "a source is {url"),
    "misspelt setting of a source": Wrong(
        ("data.train={a:{url:/x,weigth:2}}",), "data.train.a.weigth=2", "a source has url, weight"
    ),
    "a source's name": Wrong(("data.train={a/b:{url:/x}}",), "data.train.a/b=", "letters, digits"),
    "no source": Wrong(("data.train={}",), "data.train={}", "at least one source"),
    "a source that is not there": Wrong(
        ("data.train={a:{url:/no/a},b:{url:/y}}",), "data.train.a.url=/no/a", "Check the name"
    ),
    "misspelt condition": Wrong(
        ("data.where={similarity:{atleast:3}}",), "data.where.similarity.atleast=3", "choose one of at_least, at_most"
    ),
    "condition of a source": Wrong(
        ("data.train={a:{url:/x,where:{width:{at_least:x}}}}",), "data.train.a.where.width.at_least=x", "a number"
    ),
    "buckets without a step": Wrong(
        ("data.buckets={largest_aspect:2}",), "data.buckets={'largest_aspect': 2}", "give step and largest_aspect"
    ),
    "a step of words": Wrong(("data.buckets={step:x,largest_aspect:2}",), "data.buckets.step=x", "a number"),
    "a step that doesn't divide": Wrong(
        ("data.buckets={step:12,largest_aspect:2}",), "data.buckets={", "must divide image_size=32"
    ),
    "squares alone": Wrong(("data.buckets={step:8,largest_aspect:1.2}",), "data.buckets={", "choose another step"),
    "a step that the model doesn't take": Wrong(
        ("data.buckets={step:4,largest_aspect:2}",), "data.buckets.step=4", "f=4 x the UNet's stride 2 = 8; choose 8"
    ),
    "buckets of latents": Wrong(
        ("data.buckets={step:8,largest_aspect:2}", "data.latents=/x"), "data.buckets={", "set one to null"
    ),
    "conditions without a field": Wrong(("data.where=3",), "data.where=3", "by field"),
    "unknown policy": Wrong(("data.bad_shards=skip",), "data.bad_shards=skip", "choose one of replace, error"),
    "no such folder": Wrong(("data.url=/no/shards",), "data.train=/no/shards/train", "Check the name"),
    "no folder to prepare data in": Wrong(
        ("data.url=/no/such/dir", "data.prepare={_target_: tests.conftest.Squares}"),
        "data.url=/no/such/dir: there is no folder /no/such",
        "make that folder",
    ),
    "no folder to prepare data in, as a URL": Wrong(
        ("data.url=file:///no/such/dir", "data.prepare={_target_: tests.conftest.Squares}"),
        "data.url=file:///no/such/dir: there is no folder /no/such",
        "or make that folder",
    ),
    "unknown protocol of a URL": Wrong(("data.url=s4://a/b",), "data.train=s4://a/b/train", "Check the URL's protocol"),
    "profile": Wrong(
        ("data.url=s3://a/b", "data.storage.profile=nobody", "data.storage.endpoint_url=http://127.0.0.1:9"),
        "data.train=s3://a/b/train",
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile",
    ),
}


@pytest.mark.parametrize("wrong", DATA.values(), ids=DATA.keys())
def test_wrong_setting(wrong: Wrong, base: list[str], refused: Refused) -> None:
    check(refused([*base, *wrong.overrides]), wrong.says, wrong.remedy)


def test_shards_that_are_not_there(base: list[str], refused: Refused, squares: Path) -> None:
    for key, url in (
        ("data.train", f"{squares}/train/9*.tar"),
        ("data.train", f"{squares}/trian"),
        ("data.train", f"{squares}/train/{{00007..00009}}.tar"),
        ("data.held_out", f"{squares}/held-out"),
    ):
        check(refused([*base, f'{key}="{url}"']), f"{key}={url}", "check the path")


def test_fewer_samples_than_a_step_takes(base: list[str], refused: Refused) -> None:
    message = refused([*base, "batch.global_size=64"])
    check(message, "batch.global_size=64", "take a smaller batch")
    assert " 56 " in message
    check(
        refused([*base, "run.ranks=64", "batch.micro_size=1", "batch.global_size=64"]), "batch.global_size=64", " 56 "
    )


def test_data_is_prepared_in_a_folder_that_exists_or_in_the_run(
    base: list[str], refused: Refused, tmp_path: Path
) -> None:
    for url in (f"{tmp_path}/shards", f"file://{tmp_path}/others", f"{tmp_path}/run/data/shards"):
        with pytest.raises(pytest.fail.Exception, match="ranks were started"):
            refused([*base, f"data.url={url}", "data.prepare={_target_: tests.conftest.Squares}"])
        assert (Path(url.removeprefix("file://")) / "train").is_dir()
    assert not Path("/no").exists()

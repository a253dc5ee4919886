"""What may be a key is masked wherever it stands, and nothing else is."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from tests.training.runs import composed
from training.compose import choices
from training.credentials import credential_in_override, credentials_in, masked, masked_text
from training.starts import one_line

SIGNED = "https://host:9/x?X-Amz-Credential=AKIA%2F1&part=1&X-Amz-Signature=hunter2"


def test_settings_are_masked_by_name_and_by_what_their_urls_hold() -> None:
    settings = {
        "data": {"url": "https://me:p@ss@host/x", "aws_secret_access_key": "abc", "key_id": "AK", "profile": "lab"},
        "list": [{"api_token": "t", "Password": 1234}, SIGNED, "https://host/x?part=2"],
        "tokenizer": {"length": 77, "_target_": "T", "token_std": 0.5},
        "max_tokens": 5,
        "wandb": {"api_key": "k", "token": None},
    }
    assert not list(credentials_in({"rate": float("nan"), "rates": [float("nan")], "none": {}}))
    assert masked(settings) == {
        "data": {"url": "https://***@host/x", "aws_secret_access_key": "***", "key_id": "***", "profile": "lab"},
        "list": [
            {"api_token": "***", "Password": "***"},
            "https://host:9/x?X-Amz-Credential=***&part=1&X-Amz-Signature=***",
            "https://host/x?part=2",
        ],
        "tokenizer": {"length": 77, "_target_": "T", "token_std": 0.5},
        "max_tokens": 5,
        "wandb": {"api_key": "***", "token": None},
    }
    assert masked(masked(settings)) == masked(settings)
    assert not list(credentials_in(masked(settings)))
    found = ["data.url", "data.aws_secret_access_key", "data.key_id", "list", "wandb.api_key"]
    assert [key for key, _ in credentials_in(settings)] == found


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_no_setting_of_an_experiment_is_taken_for_one(experiment: str) -> None:
    settings = OmegaConf.to_container(composed([f"experiment={experiment}"]), resolve=False)
    assert isinstance(settings, dict) and not list(credentials_in(settings))


def test_overrides_are_looked_at_as_they_are_typed() -> None:
    assert credential_in_override("+data.storage.secret_access_key=hunter2") == (
        "data.storage.secret_access_key",
        "***",
    )
    assert credential_in_override("data.url={http://me:hunter2@x") == ("data.url", "{http://***@x")
    assert credential_in_override("cluster.environment.API_TOKEN=null") is None
    assert credential_in_override("inputs.caption.tokenizer.length=77") is None


def test_messages_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "opensesame")
    for text, shown in (
        ("'opensesame' isn't it", "'***' isn't it"),
        ("data.storage.secret_access_key=hunter2: no", "data.storage.secret_access_key=***: no"),
        ("storage={a:1, 'session_token': 'x'} no", "storage={a:1, 'session_token': '***'} no"),
        (f"data.url={SIGNED}: no", "data.url=https://host:9/x?X-Amz-Credential=***&part=1&X-Amz-Signature=*** no"),
        ("(ExpiredToken): it has expired; set AWS_ACCESS_KEY_ID and ...", None),
        ("tokenizer.length=77: batch.micro_size=4, max_tokens=5", None),
    ):
        assert masked_text(text) == (text if shown is None else shown)
        assert masked_text(masked_text(text)) == masked_text(text)
    assert one_line(f"error: GET {SIGNED} failed") == (
        "GET https://host:9/x?X-Amz-Credential=***&part=1&X-Amz-Signature=*** failed"
    )

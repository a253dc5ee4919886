"""`ldm doctor wandb` tells what lies unsent, finds secrets, and makes one workspace and not two."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from training import doctor_wandb
from training.wandb_file import messages
from training.wandb_offline import offline_folders
from training.wandb_workspace import NAME, SCHEMA, Service, ServiceError, workspace, write_workspace

KEY = "k" * 40


class Views:
    """As much of the service as keeps projects and views; `wrong` is what it answers instead."""

    def __init__(self) -> None:
        self.projects: set[tuple[str, str]] = set()
        self.views: dict[str, dict[str, Any]] = {}
        self.keys: set[str] = set()
        self.wrong: tuple[int, dict[str, Any]] | None = None
        views = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *arguments: object) -> None:
                pass

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                views.keys.add(base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode())
                status, answer = views.wrong or (200, {"data": views.answer(request["query"], request["variables"])})
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "viewer" in query:
            return {"viewer": {"username": "ada", "entity": "ada"}}
        if "upsertModel" in query:
            self.projects.add((variables["entity"], variables["name"]))
            return {"upsertModel": {"model": {"id": "p"}}}
        if "upsertView" in query:
            id_ = variables.get("id") or f"v{len(self.views)}"
            self.views[id_] = variables
            return {"upsertView": {"view": {"id": id_, "name": variables["name"]}, "inserted": True}}
        if (variables["entity"], variables["name"]) not in self.projects:
            return {"project": None}
        found = [id_ for id_, view in self.views.items() if view["name"] == variables.get("view")]
        return {"project": {"id": "p", "allViews": {"edges": [{"node": {"id": id_, "name": ""}} for id_ in found]}}}


@pytest.fixture
def service() -> Iterator[Views]:
    views = Views()
    yield views
    views.close()


def test_a_workspace_is_made_once_and_then_updated(service: Views) -> None:
    asked = Service(service.address, KEY)
    for metrics in ([], ["custom/thing", "custom/other"]):
        address = write_workspace(asked, None, "ldm", metrics)
        assert address == f"{service.address}/ada/ldm?nw={NAME}"
    assert service.projects == {("ada", "ldm")}
    assert service.keys == {f"api:{KEY}"}
    (view,) = service.views.values()
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert [s["name"] for s in sections] == [
        "Learning", "Pictures", "Evaluation", "Speed", "Data", "Memory", "Checkpoints", "The run itself", "custom",
    ]  # fmt: skip
    assert write_workspace(asked, "team", "ldm", []) == f"{service.address}/team/ldm?nw={NAME}"


def test_every_metric_has_its_one_place() -> None:
    sections = workspace([*SCHEMA, "data/bad/truncated"])["section"]["panelBankConfig"]["sections"]
    panels = [panel for section in sections for panel in section["panels"]]
    assert len({panel["__id__"] for panel in panels}) == len(panels)
    assert sorted(m for panel in panels for m in panel["config"].get("metrics", [])) == sorted(SCHEMA)
    assert {panel["config"]["xAxis"] for panel in panels if "xAxis" in panel["config"]} == {"_step"}
    (deciles,) = [panel["config"] for panel in panels if panel["config"].get("chartTitle") == "Loss by timestep"]
    assert deciles["useMetricRegex"] and deciles["metricRegex"] == r"^train/loss_decile_(\d+)$"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ((401, {}), "doesn't accept WANDB_API_KEY"),
        ((500, {}), "try again later"),
        ((200, {"errors": [{"message": "no such team"}]}), "no such team"),
        ((200, {"data": {"viewer": None}}), "doesn't accept WANDB_API_KEY"),
    ],
)
def test_a_refusal_is_told_without_the_key(service: Views, wrong: tuple[int, dict[str, Any]], told: str) -> None:
    service.wrong = wrong
    with pytest.raises(ServiceError, match=told) as raised:
        write_workspace(Service(service.address, KEY), None, "ldm", [])
    assert KEY not in str(raised.value)


def test_an_unreachable_service_is_named() -> None:
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:9 can't be asked.*WANDB_BASE_URL"):
        write_workspace(Service("http://127.0.0.1:9", KEY), None, "ldm", [])


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as the real client leaves it offline, with a secret among its settings and one in its log."""
    import wandb

    folder = tmp_path_factory.mktemp("runs") / "leaky"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "custom/thing": 1.0}\n')
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
    config = {"data": {"api_secret": "hunter2", "url": "s3://bucket"}, "note": "opensesame99"}
    run = wandb.init(project="ldm", id="abc", dir=str(folder), config=config, mode="offline", settings=settings)
    for step in range(3):
        run.log({"train/loss": 1.0, "step": step})
    run.finish()
    return folder


def doctor(runs: Path, monkeypatch: pytest.MonkeyPatch, **environment: str) -> int | str | None:
    """Its exit status."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as left:
        doctor_wandb.run(OmegaConf.create({"runs": str(runs), "project": "ldm", "entity": None}))
    return left.value.code


def test_what_lies_unsent_and_what_leaks_is_told(
    offline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(offline.parent, monkeypatch, SOME_TOKEN="opensesame99") == 1
    said = capsys.readouterr().out
    (part,) = offline_folders(offline)
    assert f"{offline}: 1 of 1 offline parts are not at W&B yet" in said
    assert f"  wandb sync {part}\n" in said
    assert f"SECRET: {part}/run-abc.wandb: setting data.api_secret" in said
    assert f"SECRET: {part}/run-abc.wandb: the value of $SOME_TOKEN" in said
    assert "hunter2" not in said and "opensesame99" not in said
    assert "export WANDB_API_KEY=" in said and "ldm report" in said


def test_what_was_sent_is_not_sent_again(
    offline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (part,) = offline_folders(offline)
    mark = part / "run-abc.wandb.synced"
    mark.touch()
    doctor(offline, monkeypatch)
    mark.unlink()
    assert "all offline parts are marked as sent" in capsys.readouterr().out


def test_with_a_key_the_workspace_has_the_runs_own_metrics(
    service: Views, offline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor(offline, monkeypatch, WANDB_API_KEY=KEY, WANDB_BASE_URL=service.address)
    said = capsys.readouterr().out
    assert f"workspace: {service.address}/ada/ldm?nw={NAME}" in said and KEY not in said
    assert "custom/thing" in next(iter(service.views.values()))["spec"]


def test_nothing_to_check_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(tmp_path, monkeypatch) == 0
    assert "no run folders in it; give runs=FOLDER" in capsys.readouterr().out


def test_a_torn_file_is_read_as_far_as_it_goes(offline: Path) -> None:
    (part,) = offline_folders(offline)
    data = (part / "run-abc.wandb").read_bytes()
    whole = list(messages(data, at_start=True))
    assert list(messages(data[:-1], at_start=True)) == whole[:-1]
    damaged = bytearray(data)
    damaged[20] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        list(messages(bytes(damaged), at_start=True))
    with pytest.raises(ValueError, match="header"):
        list(messages(b"something else", at_start=True))

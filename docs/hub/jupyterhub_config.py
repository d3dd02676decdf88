"""JupyterHub for a class on one server: the system's users, one server a student, JupyterLab at the course. Its manual: docs/classroom.md.

    jupyterhub -f /opt/qlab/docs/hub/jupyterhub_config.py

What differs from server to server is read from the environment, so this file need not be edited:

    QLAB_COURSE    the git repository that students' folders follow (default: file:///srv/qlab/course.git)
    QLAB_SHARED    the images, unpacked once for all (python -m qlab.lab.shared; default: /srv/qlab/shared)
    QLAB_LIMIT     bytes that one process of a student's may allocate (default: 3 GiB)
    QLAB_ADMINS    names of the teachers, with commas: they may start and stop servers, and open a student's
"""

import os
import sys
from pathlib import Path

HERE, BIN = Path(__file__).resolve().parent, Path(sys.executable).parent
MINUTE = 60

c = get_config()  # noqa: F821  JupyterHub's

# The hub listens to this machine alone; what speaks TLS to the world stands before it.
c.JupyterHub.bind_url = "http://127.0.0.1:8000"
c.ConfigurableHTTPProxy.command = [str(BIN / "configurable-http-proxy")]  # the one written in Python
c.JupyterHub.cleanup_servers = False                                      # students go on working while the hub is started anew
c.Authenticator.allow_all = True                                          # whoever has an account on this server
c.Authenticator.blocked_users = {"root"}                                  # whose password is not to be tried from a web page
c.Authenticator.admin_users = set(filter(None, os.environ.get("QLAB_ADMINS", "").split(",")))

c.Spawner.cmd = ["/bin/sh", str(HERE / "start.sh")]  # pulls the course into ~/course, then starts the server there
c.Spawner.notebook_dir = "~/course"
c.Spawner.default_url = "/lab/tree/notebooks/00_welcome.ipynb"
c.Spawner.start_timeout = c.Spawner.http_timeout = 3 * MINUTE  # thirty at once, on few cores
c.JupyterHub.concurrent_spawn_limit = 10
c.Spawner.args = [
    "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",  # nothing is fetched from outside
    f"--MappingKernelManager.cull_idle_timeout={30 * MINUTE}",  # a kernel that no page has open, and that computes nothing
    f"--MappingKernelManager.cull_interval={MINUTE}",
    f"--ServerApp.shutdown_no_activity_timeout={120 * MINUTE}",  # then the server too; the next visit starts it again
]
c.Spawner.environment = {
    "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin",
    "QLAB_COURSE": os.environ.get("QLAB_COURSE", "file:///srv/qlab/course.git"),
    "QLAB_SHARED": os.environ.get("QLAB_SHARED", "/srv/qlab/shared"),
    "QLAB_LIMIT": os.environ.get("QLAB_LIMIT", str(3 * 2**30)),
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",  # the class fills the cores
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_ARENA_MAX": "1",                 # one heap for all threads of a process, so that what is free can be used again
    "MALLOC_TRIM_THRESHOLD_": str(2**20),    # free memory goes back to the machine, where a process alone would keep it
    "MALLOC_MMAP_THRESHOLD_": str(2**20),
}

"""JupyterLab as the live slides need it: what is left out so that the first slide is there soon, and the addresses that are told.

What is left out costs each start the time to read and to answer it, and is nothing that a class sees. It is named in configuration files
of the lecture's own, so `qlab lab` stays as its reader has it.
"""

import json
import os
from pathlib import Path

from qlab import saving

SERVER = ("jupyter_lsp", "jupyter_server_terminals", "jupyterlab_jupytext", "nbgitpuller", "nbgrader.server_extensions.assignment_list",
          "nbgrader.server_extensions.course_list", "nbgrader.server_extensions.formgrader",
          "nbgrader.server_extensions.validate_assignment", "notebook", "voila.server_extension")
PAGE = ("@jupyter/nbgrader", "@voila-dashboards/jupyterlab-preview", "@jupyterlab/extensionmanager-extension", "@jupyterlab/lsp-extension",
        "@jupyterlab/terminal-extension", "@jupyterlab/fileeditor-extension:language-server",
        *(f"@jupyterlab/notebook-extension:{name}" for name in ("language-server", "export", "update-raw-mimetype")))
WINDOWING = Path("@jupyterlab", "notebook-extension", "tracker.jupyterlab-settings")
_told: dict[str, str] = {}


def settings(own: Path, told: dict[str, str]) -> list[str]:
    """Writes the lecture's configuration into the folder own; returns further settings, as JupyterLab's command line has them.

    told: what is printed when the server answers, the path on the server of each name.
    """
    config = own / "config"
    files = {own / "settings" / WINDOWING: {"windowingMode": "none"},              # every slide is measured, seen or not
             config / "jupyter_server_config.d" / "lecture.json":
                 {"ServerApp": {"jpserver_extensions": {__name__: True, **dict.fromkeys(SERVER, False)}}},
             config / "labconfig" / "page_config.json": {"buildCheck": False, "disabledExtensions": dict.fromkeys(PAGE, True)}}
    for path in files:
        saving.make_folder(path.parent)
    saving.write({path: json.dumps(content).encode() for path, content in files.items()})
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join([str(config), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])])
    _told.clear()
    _told.update(told)
    return [f"--LabApp.user_settings_dir={own / 'settings'}", f"--LabApp.workspaces_dir={own / 'workspaces'}",
            f"--LabApp.extra_labextensions_path={Path(__file__).parent / 'labextension'}"]


def _jupyter_server_extension_points() -> list[dict]:
    return [{"module": __name__}]


def _load_jupyter_server_extension(app) -> None:
    app.io_loop.add_callback(_tell, app)  # the loop's first turn: the server answers


def _tell(app) -> None:
    token = app.identity_provider.token
    for name, path in _told.items():
        print(f"qlab: {name}: {app.connection_url}{path}{f'?token={token}' if token else ''}", flush=True)

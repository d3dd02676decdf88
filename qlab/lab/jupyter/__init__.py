"""The course in Jupyter: what this package adds to a Jupyter server and to its pages.

    saving.py       a saved notebook shows stills where its widgets were, and changes only where the reader changed it
    released.py     the course's own notebooks, as released, are trusted from the start
    labextension/   names for sliders, groups of answers and pictures, for a screen reader and the keyboard
    overrides.json  JupyterLab asks nobody about news

An installation enables it for every Jupyter server of its environment (pyproject.toml, data-files); `qlab lab` does by `enable`.
"""

import json
import logging
import os
from pathlib import Path

FOLDER = Path(__file__).parent


def enable() -> list[str]:
    """Enables this package in the Jupyter server that this process starts next, whether or not an installation did.

    Returns further command-line settings, for a server that listens to this machine only: what would warn of no danger is settled.

    >>> [setting.partition("=")[0] for setting in enable()][:2]
    ['--LabApp.extra_labextensions_path', '--LabApp.app_settings_dir']
    """
    from jupyter_client import KernelManager
    from traitlets import TraitError

    # One more folder to read from; the same on the command line would replace what a user has enabled and disabled.
    # It leaves voila out, which `qlab demo` starts as a program of its own: loaded here, it turns on warnings about other packages.
    paths = [str(FOLDER / "etc"), *filter(None, os.environ.get("JUPYTER_CONFIG_PATH", "").split(os.pathsep))]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(dict.fromkeys(paths))
    settings = [f"--LabApp.extra_labextensions_path={FOLDER / 'labextension'}", f"--LabApp.app_settings_dir={FOLDER}",
                # Pings keep a connection through a proxy open, and there is none here. The server gives their interval in milliseconds,
                # tornado reads seconds and warns; 0 is no pings in both.
                "--ServerApp.tornado_settings={'ws_ping_interval': 0}"]
    try:  # server and kernel talk encrypted, where their versions can
        if KernelManager(transport_encryption="auto").has_trait("transport_encryption"):
            settings.append("--KernelManager.transport_encryption=auto")
    except TraitError:
        pass
    return settings


SPEAKERS = ("asyncio", "tornado.application", "tornado.general")  # who logs what a callback raises: a loop, a handler, a kernel's stream


def _jupyter_server_extension_points() -> list[dict]:
    return [{"module": "qlab.lab.jupyter"}]


def _load_jupyter_server_extension(app) -> None:
    from qlab.lab.jupyter import released, saving

    app.contents_manager.register_pre_save_hook(saving.before_saving)
    for exporter, settings in json.loads((FOLDER / "etc" / "jupyter_nbconvert_config.json").read_text()).items():
        mine = app.config[exporter].get("preprocessors", [])  # for the menu Save and Export Notebook As, which asks the server's settings
        app.config[exporter].preprocessors = [*settings["preprocessors"], *mine]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # kernels inherit it; the qlab command does the same, and says why
    released.trust(app.contents_manager)
    for name in SPEAKERS:
        logging.getLogger(name).addFilter(_worth_telling)


def _worth_telling(record: logging.LogRecord) -> bool:
    """Not that a page was closed while its kernel or the server still spoke to it: a traceback about nothing a reader can mend."""
    return not (record.exc_info and type(record.exc_info[1]).__name__ in ("WebSocketClosedError", "StreamClosedError"))


def _jupyter_labextension_paths() -> list[dict]:
    return [{"src": "labextension/qlab", "dest": "qlab"}]

"""The page of `qlab demo`, by Voila: for this machine alone, and only for who has its address with the token in it."""

import signal
import threading
import webbrowser
from pathlib import Path

from traitlets.config import Config
from voila.app import Voila

from qlab import saving

WIDGETS = ["@voila-dashboards/widgets-manager8", "@jupyter-widgets/jupyterlab-manager"]  # other extensions expect all of JupyterLab
IDLE, LOOK = 120, 30  # seconds: a kernel whose page has gone is ended when it has done nothing for so long, looked for so often


class _Page(Voila):
    opener: Path

    def initialize(self, argv=None):
        super().initialize(argv)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # the terminal is closed; nohup: let it be
            signal.signal(signal.SIGHUP, self._handle_signal_stop)

    def launch_browser(self):
        """Voila's own opens the address without the token."""
        threading.Thread(target=webbrowser.open, args=(self.opener.as_uri(),), daemon=True).start()


def serve(page: Path, port: int, token: str, address: str, open_browser: bool) -> None:
    """The page of a notebook at this address, which ends in the token, until Ctrl-C or until the terminal is closed.

    The folder that page lies in is the caller's to remove: it also holds the page that leads a browser to the address, which on a command
    line other users of the machine could read.
    """
    _Page.opener = page.with_name("open.html")
    saving.write({_Page.opener: f'<!DOCTYPE html><meta http-equiv="refresh" content="0; url={address}">'.encode()})
    _Page.launch_instance([str(page)], config=settings(port, token, open_browser))


def settings(port: int, token: str, open_browser: bool) -> Config:
    """Voila's settings."""
    return Config({
        "Voila": {"ip": "127.0.0.1", "port": port, "port_retries": 0, "token": token, "open_browser": open_browser, "log_level": "ERROR",
                  # a page elsewhere whose name is made to lead here is refused; as in qlab lab: without a proxy no pings are needed
                  "tornado_settings": {"allow_remote_access": False, "ws_ping_interval": 0}},
        "VoilaConfiguration": {"template": "qlab", "show_tracebacks": True, "extension_allowlist": WIDGETS},
        "MappingKernelManager": {"cull_idle_timeout": IDLE, "cull_interval": LOOK},  # never one whose page is open, or that is at work
        "KernelManager": {"transport_encryption": "auto"},
    })

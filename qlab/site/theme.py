"""What the site adds to sphinx-book-theme: on the page of a notebook, buttons for the notebook itself and for its other languages."""

from qlab.site import editions

BINDER = "https://mybinder.org/v2"


def binder(repository: str | None, path: str) -> str | None:
    """Where Binder opens a notebook of a repository at GitHub or GitLab in JupyterLab; None for one that lies elsewhere or nowhere.

    >>> binder("https://github.com/owner/name", "notebooks/02_linear.ipynb")
    'https://mybinder.org/v2/gh/owner/name/HEAD?urlpath=lab/tree/notebooks/02_linear.ipynb'
    """
    for host, short, slash in (("https://github.com/", "gh", "/"), ("https://gitlab.com/", "gl", "%2F")):
        if repository and repository.startswith(host):
            return f"{BINDER}/{short}/{repository.removeprefix(host).replace('/', slash)}/HEAD?urlpath=lab/tree/{path}"
    return None


def _buttons(app, pagename, templatename, context, doctree) -> None:
    spoken = editions.language(pagename)
    if spoken != "en":
        context["language"] = context["lang_attr"] = spoken
    path = f"{pagename}.ipynb"
    if path not in app.config.qlab_notebooks:
        return
    found = [(editions.NAMES[code], editions.NAMES[code], "fas fa-language", context["pathto"](other))
             for code, other in app.config.qlab_switch.get(pagename, {}).items()]
    found.append(("", "Download this page as a notebook", "fas fa-download", context["pathto"](f"downloads/{path}", 1)))
    if url := binder(app.config.qlab_repository, editions.english(path)):
        found.append(("", "Run this page on Binder", "fas fa-rocket", url))
    context["header_buttons"][:0] = [{"type": "link", "text": text, "tooltip": words, "icon": icon, "url": url,
                                      "label": "-".join(words.lower().split())} for text, words, icon, url in found]


def setup(app) -> dict:
    """Sphinx calls this."""
    app.add_config_value("qlab_notebooks", [], "html")
    app.add_config_value("qlab_switch", {}, "html")
    app.add_config_value("qlab_repository", None, "html")
    app.connect("html-page-context", _buttons, priority=900)  # after the theme's own
    return {"parallel_read_safe": True, "parallel_write_safe": True}

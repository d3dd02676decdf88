"""What an error says, in one line: somebody else's inside a sentence of ours, or ours on the terminal."""

from qlab.translate import tr


def first_line(error: Exception) -> str:
    """What an error says, on one line and without the period at its end; an error without a word, by its class.

    >>> first_line(ValueError("no such layer.\\nWhile executing %x"))
    'no such layer'
    """
    said = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("While executing")]
    return said[0].rstrip(".:") if said else type(error).__name__


def not_installed(what: str, extra: str) -> str:
    """That something is missing, and the command that installs it, which every shell reads as it stands.

    >>> not_installed("onnxruntime", extra="deploy")
    "onnxruntime is not installed: .venv/bin/pip install -e '.[deploy]' -c constraints.txt brings it."
    """
    return tr("{what} is not installed: .venv/bin/pip install -e '.[{extra}]' -c constraints.txt brings it.", what=what, extra=extra)


def one_line(error: Exception) -> str:
    """What an error says, in one line.

    >>> one_line(PermissionError(13, "Permission denied", "record.json"))
    'record.json: Permission denied'
    """
    if isinstance(error, ImportError) and error.name:  # Python's own; ours say themselves what to install
        return tr("{error}: run make setup (or pip install -e .) to install what is missing.", error=error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())

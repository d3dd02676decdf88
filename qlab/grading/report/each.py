"""One student's record never ends an export for all: what cannot be written is left out of it, and named."""

from collections.abc import Callable

from qlab.grading.report.text import clean


class Incomplete(ValueError):
    """An export that was written without some students."""


def sound(made: list[dict], write: Callable[[dict], object]) -> tuple[list[dict], str]:
    """The results that write takes, each alone, and a sentence that names the others with the reason; "" if there are none.

    >>> ada, bob = ({"score": k, "submission": {"student": name, "source": f"{name}.ipynb"}} for k, name in ((1, "ada"), (0, "bob")))
    >>> good, told = sound([ada, bob], lambda result: 1 / result["score"])
    >>> good == [ada], told
    (True, 'left out is what cannot be written: bob (bob.ipynb): ZeroDivisionError: division by zero')
    """
    good, failed = [], []
    for result in made:
        try:
            write(result)
        except Exception as error:  # noqa: BLE001  whatever it is, the others are written
            who = result["submission"]
            failed.append(clean(f"{who['student']} ({who['source']}): {type(error).__name__}: {' '.join(str(error).split())[:200]}"))
        else:
            good.append(result)
    return good, f"left out is what cannot be written: {'; '.join(failed)}" if failed else ""

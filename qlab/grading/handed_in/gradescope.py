"""Gradescope's submission_metadata.yml, which "Download Submissions" puts beside the folders: who handed in each of them, and when.

    submission_7:
      :submitters:                          one, or each member of a group
      - :name: Ada Lovelace
        :sid: '4711'
        :email: ada@example.edu
      :created_at: 2026-11-21 10:00:00.117497000 Z

Ruby's YAML of symbols; the same fields, for one submission, are in Gradescope's documentation of submission_metadata.json
(gradescope-autograders.readthedocs.io). Only the file at the top of the export is read, never one that lies in a hand-in.
"""

import re
from datetime import UTC

from qlab.grading.handed_in.files import shown
from qlab.grading.handed_in.times import parse_time

YAML_EVENTS = 1_000_000  # of the file, about ten seconds: that of a class has some hundred a student


def people(content: bytes) -> dict[str, list[dict]]:
    """Folder name: its submitters, each {"name", "email", "sid", "time"}; nothing of a file that is not what Gradescope writes.

    >>> people(b"submission_7:\\n  :submitters:\\n  - :name: Ada\\n    :sid: 4711")
    {'submission_7': [{'name': 'Ada', 'email': '', 'sid': '4711', 'time': None}]}
    """
    import yaml

    loader, depth, left = getattr(yaml, "CBaseLoader", yaml.BaseLoader), 0, YAML_EVENTS  # every value is the text that stands there
    try:
        for event in yaml.parse(content, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            left -= 1
            if depth > 20 or left < 0 or isinstance(event, yaml.AliasEvent):
                return {}  # brackets in brackets end the C loader, aliases of aliases unfold to any size
        loaded = yaml.load(content, Loader=loader)
        entries = {str(name): entry for name, entry in loaded.items() if isinstance(entry, dict)}
    except Exception:  # noqa: BLE001  whatever else it is, it is not Gradescope's
        return {}
    return {name: [_member(member, entry.get(":created_at")) for member in _list(entry.get(":submitters"))]
            for name, entry in entries.items()}


def _list(value) -> list:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _member(member: dict, created) -> dict:
    told = {name: shown(_text(member.get(f":{name}"))[:200]).strip() for name in ("name", "email", "sid")}
    try:
        spaced = re.sub(r" (Z|[+-]\d\d:?\d\d)$", r"\1", _text(created).strip())
        return {**told, "time": parse_time(spaced, UTC).timestamp()}
    except ValueError as error:
        return {**told, "time": None} | ({"note": f"when it came is not known: {error}".rstrip(".")} if created else {})


def _text(value) -> str:
    return value if isinstance(value, str) and value not in ("~", "null") else ""

"""Which group of Moodle's worksheet a team's folder is of. The folder has the group's name without some signs, and a number that the
worksheet does not know: Moodle puts " " for "_", escapes a lone "&", and takes out tags, controls and & < > " ` | ' : \\ / (moodle/moodle,
mod/assign/classes/downloader.php, get_student_prefix; lib/classes/param.php, clean_param_value_file).

A group whose name is written exactly so comes first, as "C", "C++" and "C#" are three. What a way through another file system may have
changed beside, Unicode's form, case and signs, is looked over only where one folder and one group are left that fit.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection


def lookalike(name: str) -> str:
    """What names have in common that look alike: without case, Unicode's forms, and signs that are not seen.

    >>> lookalike("Jose\\u0301") == lookalike("JOS\\u00c9\\u200f")
    True
    """
    seen = "".join(sign for sign in unicodedata.normalize("NFKC", name) if unicodedata.category(sign) != "Cf")
    return " ".join(unicodedata.normalize("NFC", seen.casefold()).split())


def cleaned(name: str) -> str:
    """A name without any signs, if it has more than these.

    >>> cleaned("Group 1-1"), cleaned("C++"), cleaned("***")
    ('group11', 'c', '***')
    """
    name = lookalike(name)
    return "".join(sign for sign in name if sign.isalnum() or unicodedata.category(sign).startswith("M")) or name


def written(name: str) -> set[str]:
    """How Moodle may write a name in that of a folder.

    >>> sorted(written("A_B: R&D")), sorted(written("Team <1>"))
    (['A B RD', 'A B Ramp;D'], ['Team', 'Team 1'])
    """
    escaped = re.sub(r"&(?![a-zA-Z0-9#]{1,8};)", "&amp;", name)  # format_string, where the site escapes, and where it takes tags out
    return {re.sub(r"[\x00-\x1f\x7f&<>\"`|':\\/]", "", unicodedata.normalize("NFC", form).replace("_", " ")).strip()
            for form in (name, escaped, re.sub("<[^<>]*>", "", name), re.sub("<[^<>]*>", "", escaped))}


def groups_of(folders: Collection[tuple[str, str]], groups: Collection[str]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Of each folder (name, number) that fits groups, which: one, or several if it is in doubt. A group has one folder.

    >>> groups_of([("C", "1"), ("C++", "2"), ("Team-a", "3"), ("Ada", "4")], ["C", "C++", "C#", "Team A"])
    {('C', '1'): ('C',), ('C++', '2'): ('C++',), ('Team-a', '3'): ('Team A',)}
    >>> groups_of([("C", "1"), ("Team a", "2"), ("team A", "3")], ["C++", "C#", "Team A"])
    {('Team a', '2'): ('Team A', 'Team A'), ('team A', '3'): ('Team A', 'Team A'), ('C', '1'): ('C#', 'C++')}
    """
    found, left = {}, set(groups)
    ways = written, lambda name: {lookalike(form) for form in written(name)}, lambda name: {cleaned(form) for form in written(name)}
    for way in ways:
        named = defaultdict(set)
        for group in left:
            for form in way(group):
                named[form].add(group)
        fits = {folder: set().union(*(named.get(form, ()) for form in way(folder[0]))) for folder in folders if folder not in found}
        claims = [group for of in fits.values() for group in of]
        for folder, of in fits.items():
            if of:
                found[folder] = tuple(sorted(of)) if len(of) > 1 else tuple(of) * min(2, claims.count(*of))
        left -= set(claims)
    return found

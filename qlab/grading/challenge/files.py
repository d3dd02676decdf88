"""Which files of a hand-in count: those with the four names below, wherever they lie in it, in a folder or a zip.

    weights.safetensors       track "weights"
    predict.py, model.bin     track "speed"
    alias.txt                 one line: the name on the leaderboard; without it there is none

Nothing else is looked at. Of two files of one name the one in time counts, of these the newest.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

from qlab.grading.handed_in import owners, zips
from qlab.grading.handed_in.files import File, entries
from qlab.grading.handed_in.handin import HandIn, Submission, few, ident
from qlab.grading.handed_in.reading import DEPTH

LIMITS = {"weights.safetensors": zips.MIB, "predict.py": zips.MIB, "model.bin": zips.MIB, "alias.txt": 200}  # bytes


@dataclass(frozen=True)
class Files:
    """A hand-in to the challenge: as handed_in's, but that its files are read."""

    hand_in: HandIn

    def read(self) -> list[Submission]:
        """One submission; its cells are {"name", "data"}, in the order of LIMITS; whatever is wrong is its status and reason."""
        try:
            return [self._submission(*self._chosen())]
        except zips.OverBudget as error:
            return [self._made("unreadable", str(error))]
        except Exception as error:  # noqa: BLE001  whatever it is, the others go on
            return [self._made("not graded", f"the grader failed to read it: {zips.say(error)}")]

    def _chosen(self) -> tuple[dict[str, tuple], list[str], list[str], bool]:
        """The files that count, with their owners; notes; why others are not read; whether that lies in this machine."""
        budget, found, notes, refused, ours = self.hand_in.budget(), {}, [], [], False
        budget.spend(files=len(self.hand_in.files))
        for file, owner in self.hand_in.files:
            late = owners.late(owner, self.hand_in.deadline, self.hand_in.extended) is True
            for one, why, own in _within(file, budget, 0):
                name = one.parts[-1]
                if why:
                    refused.append(f"{name}: {why}")
                    ours |= own
                    continue
                try:
                    data = one.read(budget, LIMITS[name])
                except OSError as error:
                    refused.append(f"{name}: it cannot be read here: {error.strerror}")
                    ours = True
                    continue
                except ValueError as error:
                    refused.append(f"{name}: {error}")
                    continue
                if len(data) == LIMITS[name] and one.read(budget, LIMITS[name] + 1) != data:
                    refused.append(f"{name}: it has more than {zips.size_text(LIMITS[name])}")
                    continue
                rank = not late, owner.order, *(-1.0 if time is None else time for time in (owner.time, file.time, one.time)), one.parts
                if name in found:
                    notes.append(f"{name} is there more than once: the newest counts")
                if name not in found or rank > found[name][0]:
                    found[name] = rank, data, owner
        return {name: found[name][1:] for name in LIMITS if name in found}, list(dict.fromkeys(notes)), refused, ours

    def _submission(self, found: dict[str, tuple], notes: list[str], refused: list[str], ours: bool) -> Submission:
        if not found.keys() - {"alias.txt"}:
            why = f"; {'; '.join(refused[:5])}" if refused else ""
            return self._made("not graded" if ours else "unreadable", f"there is no {' and no '.join(list(LIMITS)[:2])} in it{why}")
        cells = tuple({"name": name, "data": data} for name, (data, _) in found.items())
        whole = hashlib.sha256(b"".join(b"%s %d\n%s" % (cell["name"].encode(), len(cell["data"]), cell["data"]) for cell in cells))
        late = [owners.late(owner, self.hand_in.deadline, self.hand_in.extended) for _, owner in found.values()]
        return self._made("", "", sha256=whole.hexdigest(), cells=cells, late=True if True in late else None if None in late else False,
                          notes=(*few([*notes, *refused]), *self.hand_in.notes))

    def _made(self, status: str, reason: str, **more) -> Submission:
        one, owner = self.hand_in, self.hand_in.owner
        entry = one.files[0][0].parts[one.depth - 1] if one.depth and owner.platform != "plain" else ""
        told = {"late": owners.late(owner, one.deadline, one.extended), "notes": one.notes} | more
        return Submission(ident(owner.name, one.source, 1000 * one.turn), owner.name, one.source, email=owner.email, number=owner.number,
                          platform=owner.platform, time=owner.time, entry=entry, deadline=one.deadline and one.deadline.isoformat(),
                          extended=one.extended, status=status, reason=reason, **told)


def _within(file: File, budget: zips.Budget, depth: int) -> Iterator[tuple[File, str, bool]]:
    """The files of one of LIMITS' names that a file is or holds: (file, why it is not read, whether that lies in this machine)."""
    wanted = file.parts[-1] in LIMITS
    if file.refused:
        if wanted or file.kind in ("archive", "packed"):
            yield file, file.refused, file.ours
        return
    if file.kind != "archive":
        if wanted:
            yield file, "", False
        return
    if depth == DEPTH:
        yield file, f"it is a zip inside of {DEPTH} others, and {DEPTH} are allowed", False
        return
    try:
        archive, table = zips.table(io.BytesIO(file.read(budget, budget.size + 1)), budget.files)
        budget.spend(files=len(table))
        inner = [one for entry in entries(archive, table, file.parts) for one in _within(entry, budget, depth + 1)]
    except (ValueError, zips.OverBudget) as error:
        yield file, str(error), False
    except OSError as error:
        yield file, f"it cannot be read here: {error.strerror}", True
    else:
        yield from inner

"""Waiting for a quiet machine: the counters against a machine made up by hand, and what is said, waited for, refused and recorded."""

import argparse
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import nbformat
import pytest

from qlab.lab import quiet, runs

HZ = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Machine:
    """Four cores, of which this program may use 1 and 3, on a clock that only sleep moves; others: cores that they keep busy, by core."""

    def __init__(self, monkeypatch, tmp_path):
        self.now, self.own, self.others, self.slept, self.stat = 1000.0, 5.0, {0: 1.0, 1: 0.0, 2: 1.0, 3: 0.0}, [], tmp_path / "stat"
        self.spent = dict.fromkeys(self.others, 100.0)
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)
        monkeypatch.setattr(quiet, "time", clock)
        monkeypatch.setattr(quiet, "STAT", self.stat)
        monkeypatch.setattr(quiet.os, "sched_getaffinity", lambda _: {1, 3}, raising=False)
        monkeypatch.setattr(quiet.os, "times", lambda: (self.own, 0.0, 0.0, 0.0, self.now))
        monkeypatch.setattr(quiet.os, "sysconf", lambda name: HZ, raising=False)
        self.sleep(0)
        self.slept.clear()

    def sleep(self, seconds, own=0.0):
        """own: cores that this program keeps busy meanwhile, on core 1."""
        self.slept.append(seconds)
        self.now += seconds
        self.own += own * seconds
        for core, busy in self.others.items():
            self.spent[core] += seconds * (busy + (own if core == 1 else 0))
        rows = [f"cpu{core} {int(HZ * s / 2)} 0 {int(HZ * s / 4)} 999999 888 0 0 {int(HZ * s / 4)} 777 0" for core, s in self.spent.items()]
        self.stat.write_text("\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *rows, "intr 1 2 3", "ctxt 5"]) + "\n")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    return Machine(monkeypatch, tmp_path)


def test_only_the_cores_that_this_program_may_use_count(machine):
    assert quiet.look() == 0 and machine.slept == [2]
    machine.others |= {1: 0.25, 3: 1.0}
    assert quiet.look() == pytest.approx(1.25, abs=0.02)


def test_a_container_that_numbers_its_cores_anew(machine, monkeypatch):
    monkeypatch.setattr(quiet.os, "sched_getaffinity", lambda _: {1, 17})
    assert quiet._linux() == pytest.approx((1 + 2 + 3 + 6 + 7 + 8) / HZ)                   # the line of all: idle and guests are left out


def test_a_quiet_machine_is_not_waited_for(machine, capsys):
    machine.others[3] = 1.0                                                                # exactly half
    watch = quiet.wait()
    assert (watch.waited_s, watch.limit, machine.slept) == (0, 1, [2]) and capsys.readouterr() == ("", "")
    machine.others[3] = 0.5
    machine.sleep(100, own=1.0)
    assert watch.load() == {"cores": 2, "limit": 1, "at_start": 1.0, "meanwhile": 0.5, "at_end": 0.5, "waited_s": 0, "anyway": False,
                            "by": "processor times", "quiet": True}                        # its own work is no load
    assert capsys.readouterr() == ("", "")


def test_a_busy_machine_is_waited_for_with_one_line(machine, monkeypatch, capsys):
    machine.others |= {1: 0.6, 3: 0.6}
    plain = machine.sleep

    def sleep(seconds):
        plain(seconds)
        if machine.now > 1050:
            machine.others |= {1: 0.0, 3: 0.0}
    monkeypatch.setattr(quiet.time, "sleep", sleep)
    watch = quiet.wait()
    assert 50 < watch.waited_s < 65 and watch.at_start < 0.5
    assert capsys.readouterr().err == "qlab: 1.2 of 2 cores are busy with other things: waiting for at most 1, up to 5 minutes.\n"


def test_it_is_refused_when_patience_ends(machine, capsys):
    machine.others |= {1: 0.6, 3: 0.6}
    with pytest.raises(SystemExit, match="1.2 of 2 cores are busy with other things, and times count only where at most 1 are: .* --busy"):
        quiet.wait(patience_s=60)
    assert 60 <= machine.now - 1000 < 75 and capsys.readouterr().err.count("\n") == 1


def test_anyway_goes_on_at_once_and_the_record_says_so(machine, capsys):
    machine.others |= {1: 0.6, 3: 0.6}
    watch = quiet.wait(anyway=True)
    assert machine.slept == [2] and "1.2 of 2 cores are busy with other things; the record will say so." in capsys.readouterr().err
    found = watch.load()
    assert (found["anyway"], found["quiet"], found["at_start"]) == (True, False, 1.2)


@pytest.mark.parametrize("busy_s, rest_s", [(98, 2), (2, 0)])
def test_a_machine_that_becomes_busy_is_not_called_quiet(machine, capsys, busy_s, rest_s):
    watch = quiet.wait()
    machine.others |= {1: 0.8, 3: 0.8}
    machine.sleep(busy_s, own=0.2)
    if rest_s:
        machine.others |= {1: 0.0, 3: 0.0}
        machine.sleep(rest_s)
    assert watch.load()["quiet"] is False
    assert "others kept 1.6 of 2 cores busy: these times are not to be believed" in capsys.readouterr().err


def test_counters_that_stand_still_leave_the_load_average(machine, monkeypatch):
    machine.stat.write_text("cpu  0 0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0\ncpu3 0 0 0 0\n")
    loads = iter([(0.5, 9, 9), (1.9, 9, 9)])
    monkeypatch.setattr(quiet.os, "getloadavg", lambda: next(loads), raising=False)
    found = quiet.wait().load()
    assert found == {"cores": 2, "limit": 1, "at_start": 0.5, "meanwhile": None, "at_end": 1.9, "waited_s": 0, "anyway": False,
                     "by": "load average", "quiet": True}                                  # what it is at the end the command did itself


def test_a_machine_of_which_nothing_tells(machine, monkeypatch, capsys):
    machine.stat.unlink()
    monkeypatch.delattr(quiet.os, "getloadavg", raising=False)
    found = quiet.wait().load()
    assert found["quiet"] is found["at_start"] is found["at_end"] is None and "nothing here tells" in capsys.readouterr().err


def test_windows_is_asked_for_its_system_times(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(quiet, "STAT", tmp_path / "nowhere")
    filetimes = iter([(10, 30, 40), (26, 54, 44)])  # idle, kernel and idle, user: seconds of all cores

    def get_system_times(*places):
        for place, seconds in zip(places, next(filetimes)):
            place._obj.value = int(seconds * 1e7)
        return 1
    windll = SimpleNamespace(kernel32=SimpleNamespace(GetSystemTimes=get_system_times))
    monkeypatch.setattr(quiet.ctypes, "windll", windll, raising=False)
    assert quiet.look(8) == pytest.approx((54 + 44 - 26 - (30 + 40 - 10)) / 8)


def test_the_option_is_one_word(capsys):
    parser = argparse.ArgumentParser()
    quiet.add_option(parser)
    assert parser.parse_args([]).busy is False and parser.parse_args([quiet.OPTION]).busy is True


def loads(part):
    """Every load in a record, wherever it is."""
    if isinstance(part, dict):
        found = [part["load"]] if isinstance(part.get("load"), dict) else []
        return found + [load for value in part.values() for load in loads(value)]
    return [load for value in part for load in loads(value)] if isinstance(part, list) else []


@pytest.mark.parametrize("path", sorted(runs.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_no_committed_record_holds_times_of_a_busy_machine(path):
    for load in loads(json.loads(path.read_text())):
        assert load["quiet"] is True and not load["anyway"] and load["limit"] == load["cores"] / 2
        assert all(load[when] <= load["limit"] for when in ("at_start", "meanwhile", "at_end") if load[when] is not None)


@pytest.mark.parametrize("arguments", [[], ["--sets", "02"], ["--busy"]])
def test_the_grader_s_benchmark_waits_before_it_grades(monkeypatch, tmp_path, arguments):
    bench = pytest.importorskip("qlab.grading.bench", exc_type=ImportError)

    def refuse(anyway):
        raise SystemExit(f"anyway is {anyway}")
    monkeypatch.setattr(bench, "environment", dict)
    monkeypatch.setattr(bench, "time_qlab", lambda *_: pytest.fail("it was graded"))
    monkeypatch.setattr(bench.quiet, "wait", refuse)
    with pytest.raises(SystemExit, match=f"anyway is {'--busy' in arguments}"):
        bench.main([*arguments, "--out", str(tmp_path / "grading.json")])
    assert not list(tmp_path.iterdir())


def test_a_page_that_measures_times_is_executed_on_a_quiet_machine(monkeypatch, tmp_path):
    from qlab import cli
    from qlab.lab import notebooks
    order, pages = [], []
    for name, source in (("00_a", "x = 1"), ("01_b", "t = measure.latency_ms(f)"), ("02_c", "y = latency_ms_of[1]")):
        pages.append(tmp_path / "notebooks" / f"{name}.ipynb")
        pages[-1].parent.mkdir(exist_ok=True)
        pages[-1].write_text(nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])))
    monkeypatch.setattr(cli, "course", lambda: tmp_path)
    monkeypatch.setattr(cli, "record_release", lambda root: order.append("released"))
    monkeypatch.setattr(notebooks, "_refreshed", lambda path: order.append(path.stem) or b"{}")
    monkeypatch.setattr(quiet, "wait", lambda anyway: order.append(anyway))
    assert cli.main(["notebooks", "--busy"]) == 0
    assert order == ["00_a", True, "01_b", "02_c", "released"]


@pytest.mark.skipif(not quiet.STAT.exists(), reason="there is no /proc/stat")
def test_another_program_is_seen_and_this_one_is_not():
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before, until = quiet._counters(), time.monotonic() + 1
        while time.monotonic() < until:
            pass
        seen = quiet._between(before, quiet._counters())
    finally:
        other.kill()
        other.wait()
    assert seen is None or 0.2 < seen < quiet._cores() + 0.1

"""Exercises and the grader.

    for authors     cases: the words case, public, hidden, wrong · student, measure, build: solutions/ to exercises/ and bundles/ · release
    for students    check: the public tests, in a plain notebook · show: expected and got, side by side
    untrusted       worker: runs a student's code · sandbox, slot, zygote, confine, cgroups: what keeps it in · attack: proves that it does
    trusted         values: typed JSON · drive, mark: one submission's marks · ingest, files, notebook, owners: what was handed in
    a class         grade, batch, results · report, feedback, classroom · cluster

A notebook imports its words from here; everything else is imported from its module.
"""

from qlab.grading.cases import case, hidden, public, wrong
from qlab.grading.check import check  # the function: it takes the place of its module as an attribute of this package

__all__ = ["case", "check", "hidden", "public", "wrong"]

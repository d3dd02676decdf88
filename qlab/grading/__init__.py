"""Exercises and the grader. The way of a submission through the rooms:

    author/      solutions/ become exercises/ and the grader's bundles/; in the student's notebook, check runs the public tests
    handed_in/   a folder or zip from a platform becomes submissions: whose each is, when it came, which one counts
    sandbox/     a submission's cells run where they can do nothing but answer the cases; no right answer is known there
    mark         compares the answers with the bundle's; batch, or cluster, does so for a class, and results keeps each mark in a file
    report/      results become tables for the platforms, a page for each student, a picture of the class

grade is the command that leads them through; gradescope/ does so for one submission, in Gradescope's container. values, compare and show:
what an answer is, when it is right, how it looks; hints: what students may read of hidden tests after the deadline. Of the rooms, sandbox
and handed_in import no other one, report the results and tables that a teacher wrote, author what marks; tests/test_frame.py holds each to
its list.

A notebook imports its words from here; everything else is imported from its module.
"""

from qlab.grading.author.cases import case, hidden, public, wrong
from qlab.grading.check import check  # the function: it takes the place of its module as an attribute of this package

__all__ = ["case", "check", "hidden", "public", "wrong"]

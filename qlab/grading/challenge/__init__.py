"""The challenge: a set whose hand-ins are files, measured on hidden images and compared with each other.

    bundle     what the grader needs: hidden images with their labels, and what each track allows
    files      which files of a hand-in count
    measure    a hand-in's score in each track, measured in the sandbox
    board      the leaderboard, with intervals, and ties where there are ties
"""

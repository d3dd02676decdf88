"""What was handed in: read without following a link or unpacking to disk, and nothing of it run.

    files       a folder, or the zip of a class, file by file; nothing is read yet
    layouts     which platform laid it out; with it owners: whose each file is, and when it came
    canvas      what its names tell, and what is in doubt; moodle: its worksheet; teams: whose folder is which group's
    ingest      the hand-ins of an assignment, one a student
    handin      a hand-in when its turn comes: the submission that counts, and those set aside
    reading     what lies in it, zips of zips too, within one budget; zips: how they are read; notebook: the code cells of one
    which       of several notebooks the one that counts
"""

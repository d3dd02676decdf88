"""What was handed in: read without following a link or unpacking to disk, and nothing of it run.

    files      a folder or a zip, file by file; what cannot be read safely is refused
    notebook   the code cells of a student's notebook
    owners     whose it is, by the platform's names
    ingest     all submissions of an assignment, and which one of a student counts
"""

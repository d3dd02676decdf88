"""Grading inside Gradescope's container, one submission at a time: the zip to upload, and what runs there.

    package     qlab gradescope 02 OUT.zip: the course, the bundle, setup.sh and run_autograder
    run         what run_autograder calls: /autograder/submission to /autograder/results/results.json
    container   the limits that hold where a container forbids namespaces
"""

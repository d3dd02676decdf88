"""For authors: from solutions/ to exercises/, bundles/ and the students' zip.

    cases     the words of a notebook: case, public, hidden, wrong
    student   a solution notebook, its rules, and the student's notebook made of it
    measure   the right answers of a set, and those of its wrong solutions, marked as a student's are
    build     qlab build: all sets, whole or not at all
    release   qlab release: a zip for students
"""

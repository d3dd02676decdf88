"""What comes out of a batch. It reads results alone.

    exports     tables for a spreadsheet, Canvas, Moodle and Gradescope
    feedback    a page for each student, without a word of a hidden test
    classroom   the class, for the teacher
"""

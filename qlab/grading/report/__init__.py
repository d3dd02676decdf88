"""What comes out of a batch: results, what a teacher's tables make of them, and every form in which they go out.

    by_hand     marks that a teacher sets or comments; late: what being late costs; final: the points that come of it
    exports     tables for a spreadsheet, Canvas and Gradescope; moodle: Moodle's grading worksheet
    feedback    a page for each student, without a word of a hidden test; given_back: as the zips that Canvas and Moodle take back
    classroom   the class, for the teacher
    text        makes what a student wrote harmless; words: what pages and tables say
    whole       an export takes the former one's place; each: no student's record ends it for all
    teacher     what holds hidden inputs: pages, one a student with an index; similar: answers that are alike; answers: the code in them
"""

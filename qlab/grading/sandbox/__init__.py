"""Where a student's code runs, and what keeps it in. Nothing here knows a right answer.

    drive     the grader's end: sends cells and cases, keeps the clock, believes nothing
    bwrap     the sandbox, by bubblewrap; a slot of it is one zygote (slot), bounded by the kernel (cgroups)
    zygote    imports torch once, and forks a worker for each submission
    confine   what a forked worker takes away from itself; calls, the system calls that it keeps
    worker    runs the student's cells and answers the cases: untrusted from the first cell on
    watch     bounds the memory of all that runs where no cgroup can
    attack    proves on this machine that the limits hold, by what hostile and leftovers try
"""

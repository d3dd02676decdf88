"""A notebook in front of a class: as slides, worked out from the notebook itself, and its live figure alone.

    blocks.py       the pieces of a Markdown text, and the room that each takes
    outputs.py      what a class sees of what a cell has printed and drawn
    slides.py       which pieces make a slide
    live.py         the slides as a copy of the notebook that JupyterLab shows, with its kernel
    lab.py          what of JupyterLab the copy does without, and the addresses that are told
    html.py         the slides as one folder of web pages, with the stored outputs
    labextension/   what turns the pages of the copy: keys, steps, scale, pointer
    page/           the same for the folder
    demo.py         a live figure alone; voila/ is its page
    beamer.py       what the kernel of that page runs
    served.py       the server of that page

Lengths of slides are pixels of a stage of WIDTH x HEIGHT on which prose has 14 pixels, JupyterLab's own size. A beamer of 1920 x 1080
enlarges it 16/7 times: prose has 32 pixels there, code and the names of sliders 29.7.
"""

WIDTH, HEIGHT = 840, 472.5          # of the stage
INNER, MARGIN = 792, 18             # the width that is used, and the empty stripes above and below

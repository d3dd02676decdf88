"""The course as a static website: its pages from the stored notebooks, its live figures as pictures drawn beforehand, its library from
the docstrings.

    needs     which statements of a page a cell needs
    states    which states of a live figure are drawn
    frames    those pictures, and the answers that a page computes, kept until something they come from changes
    asked     a question with its answer to unfold
    figures   a live figure without a kernel: sliders that swap pictures
    links     where a link of the course leads on the site
    pages     a notebook as a page
    editions  the pages in other languages
    entrance  the first page, and the parts of the course
    theme     buttons for the notebook and its languages
    library   the library's docstrings as pages
    build     all of it, by Sphinx
"""

"""Characters as pictures: the data that mmtune carries along so that a first run needs no download.

Reading order: `characters` (which characters, which fonts, what is drawn alike), `drawing` (clean print),
`looks` (the same print as a camera or a pen would show it).
"""

"""Polls: look somewhere now and then, and start a run for each item that is new there, once.

`rows` are the polls of a definition and which of them are due, `looks` is one look and what it starts; `addresses`,
`files` and `commands` are where there is something to see, and `items` what was seen.
"""

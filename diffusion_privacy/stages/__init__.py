"""The stages of a run, as functions of (settings, workdir). No absl here: import and call them.

Each stage finds what an earlier one left in the workdir, and does no work when its own result is there.
"""

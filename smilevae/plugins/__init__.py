"""The open points: networks, objectives, sources of images and measures, ours and those of others.

A plug-in is a class whose fields are its knobs. To define it is to register it: its name on the
command line is the class's name in snake case. docs/extend.md shows how to write one.
"""

from smilevae.plugins.kinds import (
    Batch,
    Measure,
    Network,
    Number,
    Objective,
    Plugin,
    Score,
    Section,
    Shape,
    fields,
    knob,
)
from smilevae.plugins.source import Example, Source

__all__ = [
    "Batch",
    "Example",
    "Measure",
    "Network",
    "Number",
    "Objective",
    "Plugin",
    "Score",
    "Section",
    "Shape",
    "Source",
    "fields",
    "knob",
]

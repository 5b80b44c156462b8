"""What the server of a worker's jobs imports once, before it forks them."""

import tensorboard  # noqa: F401

from smilevae import runs
from smilevae.evaluation import report  # noqa: F401
from smilevae.training import fit  # noqa: F401

runs.code()  # the hash of the program that has just been imported, kept for the jobs

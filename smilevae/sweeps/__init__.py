"""A sweep: its plan, a process for each job, and its progress. No torch, no Hydra."""

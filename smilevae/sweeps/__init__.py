"""A sweep: which jobs it has, which are left, a process for each, and how it stands. No torch, no Hydra."""

"""Evaluates a checkpoint: measures on held-out people, new faces, figures, the report."""

"""What a checkpoint is worth: measures on held-out people, new faces, figures, the report."""

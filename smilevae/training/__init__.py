"""One training, from settings to a complete run folder."""

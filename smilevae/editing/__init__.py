"""Edits of a face in latent space: directions, dials, the attribute classifier, the scorecard, face alignment."""

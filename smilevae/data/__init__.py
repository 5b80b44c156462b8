"""From image files to batches of faces. Importing this costs no torch: Hydra needs the sources."""

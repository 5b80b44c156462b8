"""Networks, the VAE, its objective and metrics, latent arithmetic, and the linear VAE. Importing this costs no torch."""

"""Networks, the VAE, its loss and metrics, latent arithmetic, and linear references. This file imports no torch."""

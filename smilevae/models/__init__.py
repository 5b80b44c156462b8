"""Networks, the VAE, its loss and metrics, linear references. No torch here."""

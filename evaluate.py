"""Measure and draw a trained VAE: python evaluate.py ckpt=RUN|FILE|SWEEP [option=value ...]; --help lists them."""

import sys

from smilevae import cli

if __name__ == "__main__":
    cli.main(["evaluate", *sys.argv[1:]])

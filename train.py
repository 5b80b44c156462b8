"""Train one VAE, or with -m a sweep of them: python train.py [-m] [knob=value ...]; see conf/train.yaml."""

import sys

from smilevae import cli

if __name__ == "__main__":
    cli.main(["train", *sys.argv[1:]])

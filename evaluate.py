"""Measure and draw a trained VAE: python evaluate.py ckpt=RUN|FILE; see conf/evaluate.yaml."""

import hydra
from omegaconf import DictConfig, OmegaConf

from smilevae import ConfigError, console


@hydra.main(version_base="1.3", config_path=str(console.CONF), config_name="evaluate")
def main(config: DictConfig) -> None:
    with console.one_sentence():
        if OmegaConf.is_missing(config, "ckpt") or not config.ckpt:
            raise ConfigError("ckpt is not set; add ckpt=RUN_FOLDER or ckpt=FILE")
        if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
            raise ConfigError(f"seed={config.seed} must be a whole number from 0 to {2**32 - 1}")
        console.quiet_lightning()
        from smilevae import evaluation

        root = None if config.root is None else str(config.root)
        print(evaluation.report(str(config.ckpt), root=root, seed=config.seed))


if __name__ == "__main__":
    console.run(main)

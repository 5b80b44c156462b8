"""Measure and draw a trained VAE: python evaluate.py ckpt=RUN|FILE; see conf/evaluate.yaml."""

import hydra
from omegaconf import DictConfig

from smilevae import ConfigError, console


@hydra.main(version_base="1.3", config_path=str(console.CONF), config_name="evaluate")
def main(config: DictConfig) -> None:
    if "ckpt" not in config or not isinstance(config.get("ckpt"), str):
        raise ConfigError("ckpt is not set; add ckpt=RUN_FOLDER or ckpt=FILE")
    console.quiet_lightning()
    from smilevae import checkpoints, evaluation

    metrics, out = evaluation.evaluate(checkpoints.find(config.ckpt), root=config.root, seed=config.seed)
    print(f"{evaluation.format_table(metrics)}\npictures: {out}")


if __name__ == "__main__":
    console.run(main)

"""Measure and draw a trained VAE: python evaluate.py ckpt=RUN|FILE|SWEEP; see conf/evaluate.yaml."""

import os
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from smilevae import CheckpointError, ConfigError, console, runs

SAMPLERS = ("prior", "mixture")  # sampling.SAMPLERS, without its torch


@hydra.main(version_base="1.3", config_path=str(console.CONF), config_name="evaluate")
def main(config: DictConfig) -> None:
    with console.one_sentence():
        if OmegaConf.is_missing(config, "ckpt") or not config.ckpt:
            raise ConfigError("ckpt is not set; add ckpt=RUN_FOLDER or ckpt=FILE")
        if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
            raise ConfigError(f"seed={config.seed} must be a whole number from 0 to {2**32 - 1}")
        if config.sampler not in SAMPLERS:
            raise ConfigError(f"sampler={config.sampler} is unknown; choose one of {', '.join(SAMPLERS)}")
        if not isinstance(config.temperature, (int, float)) or not 0 <= config.temperature <= 10:
            raise ConfigError(f"temperature={config.temperature} must be a number from 0 to 10")
        if not isinstance(config.refine, int) or not 0 <= config.refine <= 10_000:
            raise ConfigError(f"refine={config.refine} must be a whole number from 0 to 10000")
        if not isinstance(config.smile, bool):
            raise ConfigError(f"smile={config.smile} must be true or false")
        console.quiet_lightning()
        from smilevae import evaluation

        options = {name: config[name] for name in ("seed", "sampler", "temperature", "refine", "smile")}
        options |= {name: config[name] and str(config[name]) for name in ("root", "unlabelled", "attributes", "judge")}
        folder = Path(os.path.expanduser(str(config.ckpt)))
        if best := top_two(folder):
            print(evaluation.compare(best, runs.evaluation_folder(folder), **options))
        else:
            print(evaluation.report(str(config.ckpt), **options))


def top_two(folder: Path) -> dict[str, Path]:
    """The best two checkpoints of a sweep's folder by val/nelbo; {} for anything else."""
    if not (folder / "sweep.json").exists():
        return {}
    from multirun_analysis import collect, rank

    sweep = collect.collect([folder])
    top = rank.best(sweep.completed, rank.usable(sweep, "val/nelbo"))
    if top.empty:
        raise CheckpointError(f"{folder} has no completed run yet; pass one of its run folders")
    return {run["run"]: run["path"] / run["checkpoint"] for _, run in top.iterrows()}


if __name__ == "__main__":
    console.run(main)

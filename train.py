"""Train one VAE, or with -m a sweep of them: python train.py [-m] [knob=value ...]; see conf/train.yaml."""

import logging
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from smilevae import UserError, console, runs, sweeps

log = logging.getLogger("smilevae")


@hydra.main(version_base="1.3", config_path=str(console.CONF), config_name="train")
def main(config: DictConfig) -> None:
    job = HydraConfig.get()
    if job.mode != RunMode.RUN:
        sweeps.run_job(runs.settings_of(config, job.overrides.task), Path(job.runtime.output_dir))
        return
    with console.one_sentence():
        stop = runs.Stop()
        stop.install()
        run = runs.Run(job.runtime.output_dir)
        try:
            settings = runs.settings_of(config, job.overrides.task)
            run.begin(settings)
            with run.recording():
                from smilevae import training  # torch is imported only now

                console.quiet_lightning()
                best = training.fit(settings, run, stop)
        except (UserError, runs.Interrupted):
            run.close()
            run.discard_if_untrained()
            raise
        if run.leads:
            log.info(runs.what_next(run.dir, best))


if __name__ == "__main__":
    console.run(main)

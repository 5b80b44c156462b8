"""Train one VAE, or with -m a sweep of them: python train.py [-m] [knob=value ...]; see conf/train.yaml."""

import logging
import time
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from smilevae import ConfigError, UserError, console, runs

log = logging.getLogger("smilevae")


@hydra.main(version_base="1.3", config_path=str(console.CONF), config_name="train")
def main(config: DictConfig) -> None:
    job = HydraConfig.get()
    alone = job.mode == RunMode.RUN  # in a sweep a mistake costs its job only
    with console.one_sentence(alone):
        stop = runs.Stop()
        stop.install()
        run = runs.Run(job.runtime.output_dir)
        try:
            settings = runs.settings_of(config, job.overrides.task)
            run.begin(settings)
            with run.recording():
                best = fit(settings, run, stop)
        except (UserError, runs.Interrupted):
            run.close()
            if alone:
                run.discard_if_untrained()
            raise
        if not run.leads:
            return
        if settings["evaluate"]:
            from smilevae import evaluation

            log.info(evaluation.report(str(run.dir)))
        log.info(runs.what_next(run.dir, best))


def fit(settings: dict[str, Any], run: runs.Run, stop: runs.Stop) -> dict[str, Any]:
    """Build the parts (torch is imported only now), train, record the result; gives the best epoch's metrics."""
    start = time.perf_counter()
    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    from smilevae import callbacks, checkpoints, datasets
    from smilevae.datamodule import FaceDataModule
    from smilevae.module import VAEModule

    console.quiet_lightning()
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    faces = datasets.load_faces(**settings["data"], image_size=settings["image_size"])
    run.write_json("data_card.json", faces.card())
    log.info(datasets.format_card(faces.card()))
    data = FaceDataModule(faces, **{k: settings[k] for k in ("batch_size", "seed", "augment", "num_workers")})
    torch.manual_seed(datasets.hash64("weights", settings["seed"]))
    module = VAEModule(checkpoints.build_vae(settings), settings, faces.fingerprint)
    record = callbacks.Record(run, stop)
    try:
        trainer = pl.Trainer(
            max_epochs=settings["epochs"],
            logger=False,  # callbacks.TensorBoard writes under the run folder's own name
            callbacks=[record, callbacks.TensorBoard(record, faces, settings), callbacks.Progress(record)],
            plugins=[callbacks.PlainCheckpointIO()],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # EpochBatches shares batches out itself
            **settings["trainer"],
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {str(error).splitlines()[0]}") from None
    resume = checkpoints.resume_point(run.dir, settings) if settings["resume"] else None
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    seconds = {"wall_seconds": round(time.perf_counter() - start, 1), "threads": torch.get_num_threads()}
    run.complete(record.result(settings, faces.fingerprint) | seconds | runs.environment())
    return record.best()[0]


if __name__ == "__main__":
    console.run(main)

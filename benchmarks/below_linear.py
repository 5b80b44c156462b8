"""python benchmarks/below_linear.py RUN [RUN ...]: how far below the linear optimum is a run with warm_start=ppca?

The run's best checkpoint and the linear VAE inside it (fitted to the same training faces, those of data.unlabelled
included) on every held-out face, the mean of 8 draws of its loss; 95% interval of the paired difference over faces.
Also how many dimensions the forecast said would live, and how many do (variance of mu above 0.01).
"""

import sys

import torch
from scipy import stats
from torch import Tensor

from smilevae import runs
from smilevae.data import batches
from smilevae.data.dataset import load_faces, spectrum_of
from smilevae.models import latents, linear
from smilevae.models.losses import beta_vae_terms
from smilevae.models.metrics import active_units
from smilevae.models.vae import VAE, build_vae
from smilevae.runs import checkpoint

DRAWS = 8


def losses(vae: VAE, x: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Loss of every face (B,) and its mu (B, D)."""
    found, codes = [], []
    for number, batch in enumerate(x.split(64)):
        generator = torch.Generator().manual_seed(number)
        mu, logvar = vae.encode(batch)
        draws = [torch.randn(mu.shape, generator=generator) for _ in range(DRAWS)]
        draws = [latents.reparameterise(mu, logvar, noise) for noise in draws]
        found.append(
            sum(beta_vae_terms(vae.decode(z), batch, mu, logvar, beta).loss for z in draws) / DRAWS
        )
        codes.append(mu)
    return torch.cat(found), torch.cat(codes)


@torch.no_grad()
def compare(run: str) -> str:
    vae, settings, _, epoch = checkpoint.load(runs.find(run))
    alone = build_vae(settings).eval()  # its network adds nothing yet
    alone.linear = vae.linear
    faces = load_faces(settings.data, settings.image_size)
    x = batches.to_unit(torch.from_numpy(faces.images[faces.rows("val")]))
    beta = float(vae.beta)
    (theirs, _), (ours, mu) = (losses(model, x, beta) for model in (alone, vae))
    difference = (ours - theirs).double().numpy()
    low, high = stats.ttest_1samp(difference, 0).confidence_interval()
    expected = linear.linear_vae(
        spectrum_of(faces, settings.latent_dim), beta, settings.latent_dim
    )["active_units"]
    return (
        f"{run}: beta {beta:.4g}, {len(faces.rows('train'))} training faces, epoch"
        f" {epoch}: {ours.mean():.1f}, linear {theirs.mean():.1f}, paired"
        f" {difference.mean():+.2f} ({low:+.2f} to {high:+.2f}, n = {len(difference)} faces),"
        f" {difference.mean() / float(theirs.mean()):+.1%}; active {active_units(mu.var(0))}, forecast {expected}"
    )


if __name__ == "__main__":
    for run in sys.argv[1:]:
        print(compare(run), flush=True)

"""The second phase: the decoder alone learns, against a discriminator. The codes stay.

Shapes: B batch, S image side, N the images' own side, D latent dimensions, L logits of patches.
"""

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smilevae.config import Settings
from smilevae.data.augment import augment
from smilevae.data.batches import hash64
from smilevae.data.dataset import Faces
from smilevae.evaluation.realism import Space, kernel_distance
from smilevae.evaluation.samplers import Mixture
from smilevae.models import latents
from smilevae.models.losses import beta_vae_terms
from smilevae.models.vae import VAE
from smilevae.training.module import Labelled, VAEModule
from smilevae.training.steps import seed_generators

RATES = (2e-4, 4e-4)  # of the decoder and the discriminator
EMA = 0.995
PASSES = 4  # steps a batch
WARM_UP = 100  # steps of the discriminator alone
R1_EVERY, R1 = 8, 2.0
SHIFT = 8  # pixels


class Discriminator(nn.Sequential):
    """Faces (B, 3, N, N) in [0, 1] -> logits (B, L) of real patches.

    With a spectral norm it learns nothing.
    """

    def __init__(self, width: int = 32):
        layers: list[nn.Module] = []
        channels = [3, width, 2 * width, 4 * width]
        for a, b in pairwise(channels):
            layers += [nn.Conv2d(a, b, 4, 2, 1), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(channels[-1], channels[-1], 3, 1, 1), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(channels[-1], 1, 3, 1, 1), nn.Flatten())
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * 2 - 1).contiguous(memory_format=torch.channels_last))


def diff_augment(x: Tensor) -> Tensor:
    """Random light, colour, contrast, shift and cutout of (B, 3, N, N). Zhao et al. 2006.10738.

    Shifts are of whole pixels: others blur, and the discriminator must see what is sharp.
    """
    num, side = len(x), x.shape[-1]
    light, colour, contrast = torch.rand(3, num, 1, 1, 1, device=x.device)
    x = x + 0.4 * (light - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * 2 * colour + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * (contrast + 0.5) + mean
    down, across = torch.randint(0, 2 * SHIFT + 1, (2, num, 1), device=x.device)
    line = torch.arange(side, device=x.device)
    rows, columns = (down + line)[:, :, None], (across + line)[:, None]
    x = F.pad(x, (SHIFT,) * 4)[torch.arange(num, device=x.device)[:, None, None], :, rows, columns]
    middle = torch.randint(0, side, (2, num, 1), device=x.device)
    off_rows, off_columns = ((line - m).abs() < side // 4 for m in middle)
    return x.permute(0, 3, 1, 2) * ~(off_rows[:, :, None] & off_columns[:, None])[:, None]


def balance(images: Tensor, weight: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The norm of one gradient of images in a weight, divided by that of a second gradient.

    Esser et al. 2012.09841, eq. 7.
    """
    (one,) = torch.autograd.grad(images, weight, first, retain_graph=True)
    (other,) = torch.autograd.grad(images, weight, second, retain_graph=True)
    return one.norm() / (other.norm() + 1e-8)


class SharpModule(VAEModule):
    """Trains a decoder on SSE + an adversarial loss.

    A batch is half reconstructions and half new faces. The adversarial loss is weighted: its
    gradient in the decoder's last layer is `sharpen.weight` times that of the SSE (Esser et al.
    2012.09841, eq. 7). Both losses are logistic, with R1 (Mescheder et al. 1801.04406) on the
    mean logit. `val/distance` ranks the epochs: the mean kernel distance in `space` of
    reconstructions and of new faces to real faces of held-out people.
    """

    def __init__(self, vae: VAE, settings: Settings, faces: Faces, mixture: Mixture, space: Space):
        super().__init__(vae, settings, faces.fingerprint)
        self.automatic_optimization = False
        self.discriminator = Discriminator()
        self.native = faces.native_size  # side of the images' files
        self.mixture = mixture
        self.space = space
        self._validated: list[Tensor] = []  # a validation's faces and reconstructions
        for name, parameter in vae.named_parameters():
            parameter.requires_grad_(name.startswith("decoder."))
        convolutions = nn.Conv2d | nn.ConvTranspose2d
        layers = [layer for layer in vae.decoder.modules() if isinstance(layer, convolutions)]
        self._last_layer = layers[-1:]  # a list: the module must not hold the layer twice

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.vae.parameters() if p.requires_grad]
        adam = partial(torch.optim.Adam, betas=(0.5, 0.99), fused=True)
        self.optimizer = adam(trained, RATES[0])
        return [self.optimizer, adam(self.discriminator.parameters(), RATES[1])]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.vae.eval()  # BatchNorm keeps its statistics

    def training_step(self, batch: Labelled, batch_idx: int) -> None:  # type: ignore[override]
        batches = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        for part in range(PASSES):
            seed = hash64("sharp", self.settings.seed, self.current_epoch, batch_idx, part)
            seed_generators(seed, self.device)
            self._learn(batch[0], batches * PASSES + part, seed)
        self.check_finite()

    def _learn(self, x: Tensor, step: int, seed: int) -> None:
        """One step of the discriminator and, after WARM_UP, of the decoder."""
        vae = self.vae
        half = len(x) // 2
        of_decoder, of_discriminator = self.optimizers()

        # Half reconstructions, half new faces.
        uniform = torch.rand(len(x), 9).to(x.device) * 2 - 1
        x = augment(x, uniform, **self.settings.jitter.model_dump())
        with torch.no_grad():
            mu, logvar = vae.encode(x[:half])
            z = latents.reparameterise(mu, logvar)
            generator = torch.Generator().manual_seed(seed)
            new = self.mixture.draw(len(x) - half, generator).to(x.device)
        fake = vae.decode(torch.cat([z, new]))

        # The discriminator learns real from fake, with R1 now and then.
        real = diff_augment(self._small(x))
        shown = diff_augment(self._small(fake.detach()))
        real_logits, fake_logits = self.discriminator(torch.cat([real, shown])).chunk(2)
        loss = F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
        if step % R1_EVERY == 0:
            seen = self._small(x[:half]).detach().requires_grad_()
            logits = self.discriminator(seen).mean(1).sum()
            (slope,) = torch.autograd.grad(logits, seen, create_graph=True)
            loss = loss + R1 * slope.square().flatten(1).sum(1).mean()
        of_discriminator.zero_grad()
        self.manual_backward(loss)
        of_discriminator.step()

        # Log.
        with torch.no_grad():
            terms = beta_vae_terms(fake[:half], x[:half], mu, logvar, vae.beta)
            self.epoch.add("train", self._sums_of(terms, terms.recon))
            self.epoch.metrics["sharp/discriminator"] = loss.item()
            self.epoch.metrics["sharp/real_logit"] = real_logits.mean().item()
            self.epoch.metrics["sharp/fake_logit"] = fake_logits.mean().item()
        if step < WARM_UP:
            return

        # The decoder learns from the error and, weighted, from the discriminator.
        pixels = fake.detach().requires_grad_()
        logits = self.discriminator(diff_augment(self._small(pixels)))
        (of_adversarial,) = torch.autograd.grad(F.softplus(-logits).mean(), pixels)
        of_error = torch.zeros_like(fake)
        of_error[:half] = 2 / half * (fake.detach()[:half] - x[:half])
        of_decoder.zero_grad()
        ratio = balance(fake, self._last_layer[0].weight, of_error, of_adversarial)
        fake.backward(of_error + self.settings.sharpen.weight * ratio * of_adversarial)
        of_decoder.step()
        self._average(step - WARM_UP)

    def _small(self, x: Tensor) -> Tensor:
        """Images at the side of their files, where a larger one has no more to show."""
        return F.interpolate(x, (self.native,) * 2, mode="area") if x.shape[-1] > self.native else x

    def validation_step(self, batch: Labelled, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        real = self._small(batch[0]).cpu()
        rebuilt = self._small(self(batch[0])).cpu()
        self._validated.append(torch.stack([real, rebuilt]))

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        real, rebuilt = torch.cat(self._validated, 1)
        self._validated = []
        codes = self.mixture.draw(len(real), torch.Generator().manual_seed(0)).to(self.device)
        decode = self.epoch.eval_model.decode
        with torch.no_grad():
            new = torch.cat([self._small(decode(z)).cpu() for z in codes.split(64)])
        target = self.space(real)
        of_rebuilt = kernel_distance(target, self.space(rebuilt)).value
        of_new = kernel_distance(target, self.space(new)).value
        self.epoch.metrics["distance/reconstructions"] = of_rebuilt
        self.epoch.metrics["distance/samples"] = of_new
        self.epoch.metrics["val/distance"] = (of_rebuilt + of_new) / 2

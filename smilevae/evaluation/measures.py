"""Measures that come with smilevae."""

from typing import TYPE_CHECKING

from smilevae.plugins import Measure, Score

if TYPE_CHECKING:
    from smilevae.data.dataset import Faces
    from smilevae.models.vae import VAE


class Disentanglement(Measure):
    """Does one latent dimension follow one true factor? factors.py has the papers.

    The factors are the attributes of the faces that are known.
    """

    def scores(self, vae: "VAE", faces: "Faces") -> dict[str, Score]:
        from smilevae.evaluation import factors  # scikit-learn takes a second

        own, pca, random = factors.of_model(vae, faces).values()
        scores = {}
        for name, meaning in factors.NOTES.items():
            references = {"PCA": pca[name], "random codes": random[name]}
            scores[name] = Score(own[name], meaning, better="higher", references=references)
        return scores

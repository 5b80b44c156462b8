"""The direction in latent space along which a face smiles. Shapes: N examples, D latent dimensions."""

from torch import Tensor


def mean_difference(mu: Tensor, smile: Tensor) -> Tensor:
    """mean(mu of smiling) - mean(mu of non-smiling): (N, D), (N,) -> (D,). Larsen et al. 1512.09300, section 3.2.

    `mu` are codes of training faces in eval mode, not samples; labels other than 0 and 1 are left out.
    Raises ValueError where a class is missing.
    """
    if not ((smile == 1).any() and (smile == 0).any()):
        raise ValueError("a smile direction needs smiling and non-smiling faces")
    return mu[smile == 1].mean(0) - mu[smile == 0].mean(0)

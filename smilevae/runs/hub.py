"""Models by name: `drawn`, which comes with smilevae, and those of the Hugging Face Hub."""

from pathlib import Path
from typing import Any

from smilevae.errors import CheckpointError, ConfigError

PREFIX = "hf-hub:"
DRAWN = Path(__file__).parent.parent / "apps" / "drawn"
NEEDED = ["model.json", "model.safetensors", "evaluation/metrics.json"]
FILES = [*NEEDED, "README.md", "evaluation/*.safetensors"]


def is_name(ckpt: str) -> bool:
    """A name, not a path. A folder `drawn` of the user comes first."""
    return ckpt.startswith(PREFIX) or (ckpt == DRAWN.name and not Path(ckpt).exists())


def folder_of(name: str) -> Path:
    """The folder of the model with this name. Raises CheckpointError, ConfigError."""
    if name == DRAWN.name:
        return DRAWN
    hub = library()
    try:
        folder = Path(hub.snapshot_download(name.removeprefix(PREFIX), allow_patterns=FILES))
    except Exception as error:  # of the library or of its HTTP client
        raise CheckpointError(f"{name}: {_reason(error)}; check the name and the network") from None
    missing = [file for file in NEEDED if not (folder / file).exists()]
    if missing:
        raise CheckpointError(f"{name} has no {missing[0]}; choose a model that smilevae exported")
    return folder


def upload(folder: Path, name: str) -> str:
    """Put an exported folder into a repository OWNER/NAME, private if it is new; gives its name.

    Raises ConfigError.
    """
    hub = library()
    try:
        repository = hub.create_repo(name, private=True, exist_ok=True).repo_id
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="smilevae export")
    except Exception as error:
        remedy = "check the name, the network and HF_TOKEN"
        raise ConfigError(
            f"hub={name}: {_reason(error)}; {remedy}; no folder was written"
        ) from None
    return f"{PREFIX}{repository}"


def library() -> Any:
    try:
        import huggingface_hub
        from huggingface_hub import utils
    except ImportError:
        missing = "the Hub needs huggingface_hub, which is not installed"
        raise ConfigError(f"{missing}: pip install -e '.[hub]'") from None
    utils.disable_progress_bars()
    return huggingface_hub


def _reason(error: Exception) -> str:
    """Its first sentence."""
    return " ".join(str(error).split()).partition(". ")[0][:120] or type(error).__name__

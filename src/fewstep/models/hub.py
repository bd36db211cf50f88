"""Models by their name on the Hugging Face hub, "owner/name": what was downloaded before comes
first, and nothing is asked where HF_HUB_OFFLINE is set.
"""

import re
from pathlib import Path

from fewstep.models.families import recognised
from fewstep.models.library import library_class
from fewstep.text import in_one_line, place

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_name(text: str) -> bool:
    """Whether it can be a name on the hub: two words, of which the first is no folder here."""
    return NAME.fullmatch(text) is not None and not place(text).parent.exists()


def downloaded(name: str) -> Path:
    """The folder of the pipeline of that name. FileNotFoundError, in one line, where there is none
    to be had.
    """
    try:
        from huggingface_hub import constants, try_to_load_from_cache
        from huggingface_hub.errors import RepositoryNotFoundError
    except ImportError:
        needs = "models of the hub need: pip install 'fewstep[text]'"
        raise FileNotFoundError(needs) from None
    index = try_to_load_from_cache(name, "model_index.json")
    if isinstance(index, str) and _is_whole(Path(index).parent):
        return Path(index).parent
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(
            "none of that name was downloaded, and the hub is not asked: HF_HUB_OFFLINE is set"
        )
    try:
        folder = Path(_download(name))
    except RepositoryNotFoundError:
        raise FileNotFoundError("none that can be seen on the hub") from None
    except Exception as error:  # of any kind: of the network, the hub, the disk
        raise FileNotFoundError(f"the hub: {in_one_line(error, 200)}") from error
    if not _is_whole(folder):
        raise FileNotFoundError("what the hub has is no pipeline of a kind that is known")
    return folder


def _download(name: str) -> str:
    """What is read of a pipeline: weights as safetensors, and no checks of pictures."""
    parts = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    pipeline = library_class("diffusers.DiffusionPipeline")
    found: str = pipeline.download(name, use_safetensors=True, **parts)
    return found


def _is_whole(folder: Path) -> bool:
    """Whether the weights of its network are there, beside the index or in a folder."""
    if not recognised(folder):
        return False
    places = (folder, folder / "unet", folder / "transformer")
    return any(any(place.glob("*.safetensors")) for place in places)

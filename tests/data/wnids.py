"""A small made folder in the form of ImageNet's."""

import numpy as np
from PIL import Image

WNIDS = {  # the ends of the groups, one inside each, and neighbours that belong to none
    "dog": ("n02085620", "n02099712", "n02113978"),
    "cat": ("n02123045", "n02124075"),
    "frog": ("n01641577", "n01644373", "n01644900"),
    "turtle": ("n01664065", "n01669191"),
    "bird": ("n01795545", "n01860187"),
    "monkey": ("n02480495", "n02494079"),
    "fish": ("n02514041", "n02655020"),
    "crab": ("n01978287", "n01981276"),
    "insect": ("n02165105", "n02268443"),
    "": (
        "n02114367",
        "n02119022",
        "n02125311",
        "n01632777",
        "n01675722",
        "n01871265",
        "n02268853",
        "n02504013",
    ),
}


def write_wnids(folder, each=2, side=(40, 52)):
    """`each` pictures per folder; every picture has its own grey value. Returns {grey value:
    group}.
    """
    greys = {}
    for group, wnids in WNIDS.items():
        for wnid in wnids:
            (folder / wnid).mkdir(parents=True)
            for i in range(each):
                greys[len(greys)] = group
                picture = np.full((*side, 3), len(greys) - 1, dtype=np.uint8)
                Image.fromarray(picture).save(folder / wnid / f"{wnid}_{i}.JPEG", "PNG")
    return greys

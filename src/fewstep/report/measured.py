"""Teacher and student of a run, measured at several numbers of network evaluations: what the figure
of its page shows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fewstep.diffusion.samplers import Sampler
from fewstep.metrics.evaluation import Evaluation
from fewstep.metrics.features import Features
from fewstep.metrics.measure import Measure
from fewstep.metrics.reading import check_pictures
from fewstep.metrics.results import Result, Role
from fewstep.models.bundle import DiffusionModel
from fewstep.training.progress import sampling_shown
from fewstep.training.start import held_out

ROLES: Mapping[str, Role] = {"teacher": "teacher", "student": "student"}

Columns = Mapping[str, tuple[DiffusionModel, Sequence[Sampler]]]
"""Models with their samplers, by the name that they have on the page."""


def measured(
    run: Any, columns: Columns, num: int, say: Callable[[str], None] = print
) -> list[Result]:
    """Of `num` images with each sampler, and of images that training never saw, against all that
    the run could be trained on. ValueError where its data hold no images.
    """
    source = run.data.whole
    everything = source.read()
    data = source.choose(everything)
    check_pictures(data)
    say(f"measuring with {num:,} images for each number of evaluations")
    evaluation = Evaluation.against(
        data,
        None if source.judge is None else Features.parse(source.judge),
        also=[Measure.parse(one) for one in source.measures],
        num=num,
        split=source.split,
    )
    results = []
    with sampling_shown():
        for name, (model, samplers) in columns.items():
            for sampler in samplers:
                role, own = ROLES.get(name, ""), sampler == model.sampler
                results.append(evaluation.of_model(name, model, sampler, role=role, headline=own))
        rest = held_out(source, everything)
        unseen = None if rest is None else evaluation.of_rows("data", rest)
    return results if unseen is None else [*results, unseen]

"""`Evaluation`: models at a number of network evaluations, and images, measured and timed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.choice import kind_of
from fewstep.data.captions import one_of_each
from fewstep.data.dataset import Dataset
from fewstep.data.labels import check_labels
from fewstep.diffusion.samplers import Ode, Sampler
from fewstep.diffusion.solvers import Dpmpp2m, Euler, Heun, Solver
from fewstep.errors import NotFiniteError
from fewstep.finite import check_images
from fewstep.metrics.default_features import features_for
from fewstep.metrics.features import Features
from fewstep.metrics.kernel_distance import LEAST, KernelDistance
from fewstep.metrics.measure import ImageSet, Measure, measures_by_default
from fewstep.metrics.protocol import Protocol, is_few, rounded
from fewstep.metrics.reading import columns_of, read_as
from fewstep.metrics.results import Result, Role, best_of
from fewstep.models.bundle import DiffusionModel
from fewstep.models.request import Request
from fewstep.options import shown


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What samples are measured by, and how many of them.

    chosen: whether somebody chose the measures; then one that cannot be taken is an error. solvers:
    those of which `best_solver` takes the best. beside: an earlier result that new ones are shown
    with; what cannot be compared with it is an error before the work. captions: of the reference,
    one for each image; models that read captions are asked for them.
    """

    reference: ImageSet
    protocol: Protocol
    measures: tuple[Measure, ...]
    chosen: bool
    num: int
    seed: int
    solvers: tuple[Solver, ...]
    beside: Result | None = None
    captions: Sequence[str] = ()

    @staticmethod
    def against(
        dataset: Dataset,
        features: Features | None = None,
        measures: Sequence[Measure] | None = None,
        *,
        also: Sequence[Measure] = (),
        num: int = 2000,
        seed: int = 0,
        split: str = "",
        solvers: Sequence[Solver] = (Euler(), Heun(), Dpmpp2m()),
        beside: Result | None = None,
    ) -> Evaluation:
        """With these data as the reference, in the channels that the features are for. measures:
        None for all that the data can serve, with those of `also`.

        Raises ValueError or FileNotFoundError where the features cannot be had, or a measure was
        named twice.
        """
        taken = tuple(measures_by_default(also) if measures is None else measures)
        kinds = [kind_of(type(measure)) for measure in taken]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise ValueError(f"the measure {kind} is given twice")
        extractor, shape = None, dataset.shape
        if any({"features", "classes"} & set(measure.needs) for measure in taken):
            judge = features or features_for(dataset.shape)
            shape = (judge.channels() or shape[0], *shape[1:])
            extractor = judge.load(shape)
        reference = ImageSet(columns_of(taken, dataset, shape[0]), extractor, dataset.classes)
        protocol = Protocol(
            features=None if extractor is None else extractor.name,
            dimensions=None if extractor is None else extractor.dimensions,
            reference=dataset.fingerprint(),
            reference_images=len(dataset),
            resolution=shape,
            num=num,
            measures={},
            split=split,
        )
        return Evaluation(
            reference,
            protocol,
            taken,
            measures is not None,
            num,
            seed,
            tuple(solvers),
            beside,
            one_of_each(dataset, num, seed),
        )

    def of_data(self, name: str, dataset: Dataset, labels: Tensor | None) -> Result:
        """Of the images of a dataset, read in the channels of the reference."""
        channels, *sides = self.protocol.resolution
        if list(dataset.shape[1:]) != sides:
            raise ValueError(
                f"{name} holds images of shape {dataset.shape}, the reference has "
                f"{self.protocol.resolution}: measure images of its size"
            )
        return self.of_images(name, read_as(dataset, channels, name), labels)

    def of_images(
        self, name: str, images: Tensor, labels: Tensor | None, role: Role = ""
    ) -> Result:
        """Of images in [0, 1]."""
        columns = {"image": images} if labels is None else {"image": images, "label": labels}
        values, protocol = self.measured(columns)
        return Result(name, values, protocol, role=role)

    def of_model(
        self,
        name: str,
        model: DiffusionModel,
        sampler: Sampler,
        *,
        evaluations: int | None = None,
        guidance: float | None = None,
        teacher: DiffusionModel | None = None,
        role: Role = "",
        headline: bool = False,
    ) -> Result:
        """Of samples of a model. evaluations: the number allowed, where the sampler may need fewer.
        guidance: in g-form; the model's own if None. teacher: for measures that compare with it.
        """
        asked = self._captions_for(model)
        request = Request(asked, num=self.num, sampler=sampler, guidance=guidance, seed=self.seed)
        answer = model.answer(request)
        stamp = None if teacher is None else _stamp(teacher)
        companion = [] if teacher is None else ["teacher"]
        self.protocol_of(["image", *answer.asked, *companion], self.num, stamp)  # before the work
        columns = {**answer.asked, "image": answer.images()}
        if teacher is not None:
            same = Request(answer.asked, num=self.num, seed=self.seed)
            try:
                columns["teacher"] = rounded(teacher.answer(same).images())
            except NotFiniteError as error:
                raise NotFiniteError(f"the teacher's samples: {error}") from None
        values, protocol = self.measured(columns, stamp)
        made = dataclasses.replace(
            protocol,
            seed=self.seed,
            guidance=answer.guidance,
            sampler=sampler.dump(),
            ema=model.card.get("ema"),
        )
        return Result(
            name,
            values,
            made,
            solver=kind_of(type(sampler.solver if isinstance(sampler, Ode) else sampler)),
            steps=sampler.steps,
            evaluations=evaluations or answer.evaluations,
            images_per_second=round(self.num / answer.seconds, 1),
            role=role,
            headline=headline,
        )

    def _captions_for(self, model: DiffusionModel) -> dict[str, list[str]]:
        """What a model that reads captions is asked for, one for each image; else nothing."""
        if not self.captions or "caption" not in model.conditioner.spec.reads:
            return {}
        return {"caption": list(self.captions)}

    def best_solver(
        self,
        name: str,
        model: DiffusionModel,
        evaluations: int,
        *,
        guidance: float | None = None,
        teacher: DiffusionModel | None = None,
        role: Role = "",
        headline: bool = False,
    ) -> Result:
        """The best, by the first measure, of the solvers with as many steps as this number of
        evaluations allows.
        """
        found = []
        for sampler in self._within(model, evaluations, guidance):
            result = self.of_model(
                name,
                model,
                sampler,
                evaluations=evaluations,
                guidance=guidance,
                teacher=teacher,
                role=role,
                headline=headline,
            )
            found.append(result)
        best = best_of(found)
        tried = tuple(str(result.solver) for result in found)
        return dataclasses.replace(best, protocol=dataclasses.replace(best.protocol, tried=tried))

    def _within(self, model: DiffusionModel, evaluations: int, guidance: float | None) -> list[Ode]:
        """Each solver with the most steps that cost no more."""
        samplers: list[Ode] = []
        for solver in self.solvers:
            fitting = []
            for steps in range(1, evaluations + 1):
                sampler = Ode(steps, solver=solver)
                if model.evaluations(sampler, guidance) <= evaluations:
                    fitting.append(sampler)
            # One step is the same for all solvers: it ends at the data.
            if fitting and (fitting[-1].steps > 1 or not samplers):
                samplers.append(fitting[-1])
        if not samplers:
            raise ValueError(f"no solver takes a guided step with {evaluations} network evaluation")
        return samplers

    def of_rows(self, name: str, dataset: Dataset) -> Result | None:
        """Of images that training never saw, as many as of samples at most, with all that stands
        beside them: what a perfect model would have. None where they cannot serve what was chosen,
        or are one.
        """
        if len(dataset) < 2:
            return None
        channels, *_ = self.protocol.resolution
        index = torch.linspace(0, len(dataset) - 1, min(len(dataset), self.num)).round().long()
        chosen = dataset.select(index)
        columns: dict[str, Any] = {"image": read_as(chosen, channels, name)}
        beside = [one for one in ("label", "caption") if one in chosen.columns]
        columns |= chosen.rows(torch.arange(len(chosen)), beside) if beside else {}
        if any(one.missing(columns, self.reference) for one in self.measures if self.chosen):
            return None
        values, protocol = dataclasses.replace(self, beside=None).measured(columns)
        return Result(name, values, protocol, role="data")

    def served(
        self, columns: Collection[str], num: int | None = None
    ) -> tuple[list[Measure], dict[str, str]]:
        """The measures that so many samples with these columns can serve, and why others are left
        out.

        Raises ValueError where a chosen one is among these, or none can be taken.
        """
        taken, left_out = [], {}
        for measure in self._wanted(self.num if num is None else num):
            reason = measure.missing(columns, self.reference)
            if reason is None:
                taken.append(measure)
            else:
                left_out[kind_of(type(measure))] = reason
        if left_out and (self.chosen or not taken):
            reasons = [f"{kind} cannot be measured: {why}" for kind, why in left_out.items()]
            raise ValueError("; ".join(reasons))
        return taken, left_out

    def _wanted(self, num: int) -> list[Measure]:
        """The measures; where nobody chose, of few images a distance without bias, too."""
        found = list(self.measures)
        kinds = [kind_of(type(measure)) for measure in found]
        fewest = min(num, self.protocol.reference_images)
        few = is_few(fewest, self.protocol.dimensions) and fewest >= LEAST
        if few and not self.chosen and "frechet" in kinds and "kernel_distance" not in kinds:
            found.insert(kinds.index("frechet") + 1, KernelDistance())
        return found

    def protocol_of(
        self, columns: Collection[str], num: int, teacher: str | None = None
    ) -> Protocol:
        """The protocol of so many samples with these columns, without how they are made.

        Raises ValueError as `served`, or where they cannot be compared with `beside`.
        """
        taken, left_out = self.served(columns, num)
        extractor = self.reference.extractor
        label = "" if extractor is None else extractor.label
        scales = {kind_of(type(measure)): measure.scale(label) for measure in taken}
        found = dataclasses.replace(
            self.protocol, num=num, measures=scales, left_out=left_out, teacher=teacher
        )
        if self.beside is not None and (reasons := self.beside.protocol.differs(found)):
            raise ValueError(
                f"the earlier result of {self.beside.model} was measured under another protocol "
                f"and cannot be compared: {'; '.join(reasons)}"
            )
        return found

    def measured(
        self, columns: Mapping[str, Any], teacher: str | None = None
    ) -> tuple[dict[str, float], Protocol]:
        """The values of samples with these columns (`ImageSet`), and their protocol, which tells
        why there is none of a measure that these sets leave undefined. ValueError where the first
        measure is.
        """
        self._check(columns)
        protocol = self.protocol_of(columns, len(columns["image"]), teacher)
        as_filed = {**columns, "image": rounded(columns["image"])}
        samples = ImageSet(as_filed, self.reference.extractor, self.reference.classes)
        values: dict[str, float] = {}
        undefined, intervals = {}, {}
        for measure in self.served(columns, len(samples))[0]:
            kind = kind_of(type(measure))
            try:
                values[kind], half = measure.value(samples, self.reference)
                if half is not None:
                    intervals[kind] = half
            except NotFiniteError:
                raise
            except ValueError as error:
                if not values:
                    raise ValueError(f"{kind}: {error}{self._too_few()}") from None
                undefined[kind] = str(error)
        return values, dataclasses.replace(protocol, undefined=undefined, intervals=intervals)

    def _too_few(self) -> str:
        """What is said of a reference of one image, or none."""
        if (count := self.protocol.reference_images) > 1:
            return ""
        after = f" after split={self.protocol.split}" if self.protocol.split else ""
        return f"; the reference holds {count}{after}"

    def _check(self, columns: Mapping[str, Any]) -> None:
        shape = tuple(columns["image"].shape[1:])
        if shape != self.protocol.resolution:
            raise ValueError(
                f"the images have the shape {shape}, the reference has {self.protocol.resolution}"
            )
        for name, column in columns.items():
            if name in ("image", "teacher"):
                check_images(column)
            if len(column) != len(columns["image"]):
                raise ValueError(f"{len(column)} {name}s for {len(columns['image'])} images")
        if "label" in columns and self.reference.classes:
            check_labels(columns["label"], self.reference.classes, "labels")


def _stamp(model: DiffusionModel) -> str:
    """A hash of a model's weights, and how it samples by itself."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.denoiser.network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return f"{digest.hexdigest()[:16]}, {shown(model.sampler)}"

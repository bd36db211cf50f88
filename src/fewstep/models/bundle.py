"""`DiffusionModel`: a denoiser with all that is needed to use it."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.choice import kind_of
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.guidance import Guidance
from fewstep.diffusion.parameterization import Boundary
from fewstep.diffusion.samplers import Ode, Sampler
from fewstep.models.adapters import Addition
from fewstep.models.codec import CodecModule
from fewstep.models.conditioner import ConditionerModule
from fewstep.models.request import Answer, Request
from fewstep.models.size import parameters_in
from fewstep.models.space import Space
from fewstep.text import counted

FEW = 8  # steps of a few-step model, at most


@dataclass(eq=False, repr=False)
class DiffusionModel:
    """A pixel EDM network and Stable Diffusion behind one type.

    shape: of a sample in model space, (channels, height, width). card: plain facts (method, data,
    metrics), saved. variants: other weights of the same network by name (EMA decays), saved beside.
    additions: of weights that are a base and something added to it, that alone, by the same names,
    "" for the model's own; saved beside.
    examples: what to ask for where nobody says, by column: a few captions of the data; the classes
    that were trained, where the data had no images of some.
    clip: in sampling each x0 is cut at ± this, as some pipelines of pixels do; None: it is not.
    """

    denoiser: Denoiser
    codec: CodecModule
    conditioner: ConditionerModule
    shape: tuple[int, ...]
    sampler: Sampler
    guidance: Guidance = field(default_factory=Guidance)
    card: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    additions: dict[str, Addition] = field(default_factory=dict)
    examples: dict[str, list[Any]] = field(default_factory=dict)
    clip: float | None = None

    def __repr__(self) -> str:
        """One line: what it is and how it samples."""
        spec: Any = self.denoiser.network.spec
        count = parameters_in(self.denoiser.network)
        images = "×".join(map(str, self.image_shape))
        classes = f", {self.classes} classes" if self.classes else ""
        how = f"{kind_of(type(self.sampler))} of {counted(self.sampler.steps, 'step')}"
        return (
            f"DiffusionModel({kind_of(type(spec))} of {count:,} parameters, images {images}"
            f"{classes}, sampled by {how})"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.denoiser.parameters()).device

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of its images, (channels, height, width)."""
        return self.codec.spec.image_shape(self.shape)

    @property
    def distilled(self) -> str:
        """By what it is seen to be a few-step model already; '' for others."""
        if told := self.card.get("distilled"):
            return str(told)
        if isinstance(self.denoiser.parameterization, Boundary):
            return "it is a consistency model"
        if not isinstance(self.sampler, Ode):
            return f"its sampler is {kind_of(type(self.sampler))}"
        method = self.card.get("method", {}).get("kind", "diffusion")
        few = method != "diffusion" and self.sampler.steps <= FEW
        return f"it was made by {method} for {counted(self.sampler.steps, 'step')}" if few else ""

    @property
    def classes(self) -> int:
        """The number of classes that it knows; 0 where it is not conditioned on labels."""
        return Space(self.shape, self.conditioner.columns).classes

    def unfit(self, data: Space) -> str | None:
        """Why rows of this data cannot train it or measure it; None where they can."""
        if data.encoded and tuple(data.shape) != tuple(self.shape):
            return f"its samples have the shape {self.shape}, the latents {data.shape}"
        if data.shape and not data.encoded and tuple(data.shape) != self.image_shape:
            channels, high, wide = self.image_shape
            way = f"; data.size={high} cuts squares of its size" if high == wide else ""
            if data.shape[0] != channels:
                way = f"; data.channels={'grey' if channels == 1 else 'rgb'} has as many"
            return f"it makes samples of shape {self.image_shape}, the data has {data.shape}{way}"
        return self.conditioner.spec.unfit(data)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> DiffusionModel:
        """Moves the weights; dtype (bfloat16, float16) is that of the network's arithmetic, by
        autocast.
        """
        for module in (self.denoiser, self.codec, self.conditioner):
            module.to(device)
        self.denoiser.autocast = None if dtype in (None, torch.float32) else dtype
        return self

    def with_student(
        self,
        denoiser: Denoiser,
        sampler: Sampler,
        guidance: Guidance,
        card: dict[str, Any],
        variants: dict[str, Mapping[str, Tensor]],
    ) -> DiffusionModel:
        """The same model around a denoiser that was trained from it."""
        if guidance.kind == "doubled" and not self.conditioner.null:
            guidance = Guidance()  # there is no "no label" to guide away from
        return dataclasses.replace(
            self,
            denoiser=denoiser,
            sampler=sampler,
            guidance=guidance,
            card=card,
            variants=variants,
            additions={},
            clip=None,
        )

    def asked_of(self, first: int, num: int) -> dict[str, Any]:
        """What images first … first + num - 1 show where nobody says: the examples in turn, else
        what the conditioner knows (balanced classes).
        """
        if not self.examples:
            return self.conditioner.examples(first, num)
        found: dict[str, Any] = {}
        for name, column in self.examples.items():
            found[name] = [column[i % len(column)] for i in range(first, first + num)]
        if "label" in found:
            found["label"] = torch.tensor(found["label"])
        return found

    def evaluations(self, sampler: Sampler, guidance: float | None = None) -> int:
        """Network evaluations for one image with this sampler and guidance."""
        scale = self.guidance.default if guidance is None else guidance
        doubles = self.guidance.kind == "doubled" and scale != 1
        return sampler.cost(self.denoiser.process) * (2 if doubles else 1)

    def answer(self, request: Request) -> Answer:
        """What this model will do for a request. ValueError where it cannot serve it."""
        return Answer(self, request)

    def generate(
        self,
        labels: Sequence[int | None] | Tensor | int | None = None,
        prompts: Sequence[str] | str | None = None,
        *,
        negative: str | None = None,
        num: int | None = None,
        steps: int | None = None,
        times: Sequence[float] | None = None,
        sampler: Sampler | str | None = None,
        guidance: float | None = None,
        seed: int = 0,
        batch: int | None = None,
        fading: tuple[float, float] | None = None,
    ) -> Tensor:
        """Images, float32 in [0, 1], (num, channels, height, width), on the CPU.

        labels, prompts: one per image, or one for all; an entry None is an image without a label.
        None given: balanced classes, or captions of the data. negative: what guidance leads away
        from. steps: solver steps, default the sampler's own; times: what to evaluate at, in their
        place. guidance: in g-form (1: none). fading: (full, none), the whole of it at times up to
        `full` and none from `none` on.
        Image i depends on (seed, i) alone, up to the rounding of the arithmetic. Raises ValueError
        for what the model cannot serve.
        """
        asked: dict[str, Any] = {}
        if labels is not None:
            asked["label"] = [labels] if isinstance(labels, int) else labels
        if prompts is not None:
            asked["caption"] = [prompts] if isinstance(prompts, str) else list(prompts)
        away = {} if negative is None else {"caption": [negative]}
        request = Request(
            asked,
            away,
            _whole("num", num),
            _whole("steps", steps),
            times,
            sampler,
            guidance,
            _whole("seed", seed) or 0,
            _whole("batch", batch),
            fading,
        )
        return self.answer(request).images()

    def save(self, folder: Path) -> None:
        """Writes model.json and the weights; the folder appears whole or not at all."""
        from fewstep.models.folder import save_folder  # which imports this module to load again

        save_folder(self, folder)

    @classmethod
    def load(cls, folder: Path) -> DiffusionModel:
        """The model saved in that folder. FileNotFoundError or ValueError where there is none."""
        from fewstep.models.folder import load_folder

        return load_folder(folder)


def _whole(name: str, value: Any) -> int | None:
    """ValueError for what is no whole number of Python's or numpy's."""
    if value is None:
        return None
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: expected a whole number, got {value!r}") from None

"""The training loop: draw, step, average, validate, save; resumable to the step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcspex_cli import paths
from mcspex_cli.checkpoint import load_checkpoint, save_checkpoint
from mcspex_cli.errors import ConfigError
from mcspex_cli.evaluation.metrics import si_sdr
from mcspex_cli.extraction.engine import choose_device
from mcspex_cli.model.systems import System, build, sized
from mcspex_cli.training.losses import Losses, multi_scale_loss
from mcspex_cli.training.mixtures import Batch, Corpus, MixtureSampler
from mcspex_cli.training.recipes import Rendering, read_recipes, render
from mcspex_cli.training.settings import OptimiserSettings, TrainSettings

STATE = "state.pt"


@dataclass(frozen=True)
class Progress:
    """What a run reports now and then; numbers are means since the last report."""

    step: int
    share: float
    """Of the run, 0 to 1."""
    loss: float
    si_sdr_db: float
    accuracy: float
    learning_rate: float
    audio_s_per_s: float
    elapsed_s: float
    validation_db: float | None = None
    """Mean SI-SDRi on the recipe, where this report follows a validation."""


class Trainer:
    """One run of training, from a TOML's settings to a checkpoint folder.

    Step n of a run draws its mixtures from a generator seeded by (seed, n), so that a run
    that was stopped and resumed sees what an uninterrupted one would have.

    Raises:
        ConfigError: the data cannot be used, or `out` holds another run.
        EngineError: there is no such device.
    """

    def __init__(self, settings: TrainSettings, *, resume: bool = False) -> None:
        self.settings = settings
        self.out = settings.resolve(settings.run.out)
        self.device = choose_device(settings.run.device)
        self.step, self.elapsed_s, self.best_db = 0, 0.0, -math.inf
        self.stopping = False
        """Set it, from a signal handler say, to have `run` save and end after the step in hand."""
        state = self._state(resume)
        self.sampler = self._read_corpus()
        self.renderings = self._read_validation()
        torch.manual_seed(settings.run.seed)
        self.system = self._build().to(self.device)
        self.average = deepcopy(self.system).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.system.parameters(),
            lr=settings.optimiser.learning_rate,
            weight_decay=settings.optimiser.weight_decay,
            fused=True,
        )
        if state:
            self._restore(state)
        if settings.run.compile:
            self.system.extractor.compile()

    @property
    def finished(self) -> bool:
        """Whether the schedule is at its end."""
        return self._share() >= 1

    def run(self) -> Iterator[Progress]:
        """Train to the end of the schedule, yielding reports; saves as it goes."""
        run = self.settings.run
        pending: list[Losses] = []
        reported_s = self.elapsed_s
        while not self.finished and not self.stopping:
            began = time.monotonic()
            pending.append(self._step())
            self.elapsed_s += time.monotonic() - began
            self.step += 1
            validate = self.step % run.validate_every_steps == 0 or self.finished
            if validate or self.step % run.log_every_steps == 0:
                score = self._validate_and_save() if validate else None
                yield self._report(pending, self.elapsed_s - reported_s, score)
                pending, reported_s = [], self.elapsed_s
        self._save_state()

    def _step(self) -> Losses:
        """Draw one batch and descend."""
        settings, run = self.settings.optimiser, self.settings.run
        rng = np.random.default_rng((run.seed, self.step))
        batch = self.sampler.draw(settings.batch, rng)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(settings, self.step, self._share())
        losses = self._losses(batch)
        self.optimiser.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.system.parameters(), settings.clip_norm)
        self.optimiser.step()
        self._update_average()
        return replace(losses, total=losses.total.detach())

    def _losses(self, batch: Batch) -> Losses:
        """Forward in the run's precision, the loss in float32."""
        dtype = getattr(torch, self.settings.run.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            estimates, logits = self.system(batch.mixture, batch.reference)
        return multi_scale_loss(estimates, logits, batch.target, batch.speaker)

    def _update_average(self) -> None:
        """Move the averaged weights (and running statistics) towards the present ones."""
        keep = min(self.settings.optimiser.average, (1 + self.step) / (10 + self.step))
        present, average = self.system.state_dict(), self.average.state_dict()
        names = [name for name, tensor in average.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([average[n] for n in names], [present[n] for n in names], 1 - keep)

    def _share(self) -> float:
        """How much of the run is done: by steps, or by time if that is further."""
        settings = self.settings.optimiser
        by_time = self.elapsed_s / (60 * settings.minutes) if settings.minutes else 0.0
        return max(self.step / settings.steps, by_time)

    def _report(self, pending: list[Losses], spent_s: float, score: float | None) -> Progress:
        """Mean of the pending steps."""
        settings = self.settings
        seconds = len(pending) * settings.optimiser.batch * settings.mixtures.segment_s
        return Progress(
            step=self.step,
            share=min(1.0, self._share()),
            loss=_mean([p.total for p in pending]),
            si_sdr_db=_mean([p.si_sdr_db for p in pending]),
            accuracy=_mean([p.accuracy for p in pending]),
            learning_rate=self.optimiser.param_groups[0]["lr"],
            audio_s_per_s=seconds / spent_s,
            elapsed_s=self.elapsed_s,
            validation_db=score,
        )

    def _validate_and_save(self) -> float | None:
        """Score the averaged weights, keep them as `last`, and as `best` if they are."""
        score = validate(self.average, self.renderings, self.device) if self.renderings else None
        corpus, settings = self.sampler.corpus, self.settings
        provenance = {
            "steps": self.step,
            "minutes": round(self.elapsed_s / 60, 1),
            "validation_si_sdr_i_db": score,
            "speech_h": round(corpus.seconds / 3600, 2),
            "mixtures": asdict(settings.mixtures),
            "optimiser": asdict(settings.optimiser),
        }
        save_checkpoint(self.out / "last", self.average, provenance)
        if score is not None and score > self.best_db:
            self.best_db = score
            save_checkpoint(self.out / "best", self.average, provenance)
        self._save_state()
        return score

    def _save_state(self) -> None:
        """Write all that `resume` needs, whole or not at all."""
        state = {
            "system": self.system.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "best_db": self.best_db,
        }
        with paths.whole(self.out / STATE) as partial:
            torch.save(state, partial)

    def _state(self, resume: bool) -> dict[str, Any] | None:
        """The saved state to go on from, or None to begin."""
        path = self.out / STATE
        if resume and not path.is_file():
            raise ConfigError(f"{path}: nothing to resume. Leave out --resume to begin.")
        if path.is_file() and not resume:
            raise ConfigError(f"{self.out}: holds a run. Go on with --resume, or change out.")
        paths.make_folders(self.out)
        if not resume:
            return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        """Put a saved state back."""
        try:
            self.system.load_state_dict(state["system"])
            self.average.load_state_dict(state["average"])
        except RuntimeError as error:
            raise ConfigError(f"{self.out / STATE}: of another network or corpus.") from error
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self.best_db = state["best_db"]

    def _read_corpus(self) -> MixtureSampler:
        """Decode the training data to the device."""
        settings = self.settings
        folders = [settings.resolve(folder) for folder in settings.data.train]
        corpus = Corpus.read(folders, settings.model.sample_rate_hz)
        corpus.samples = corpus.samples.to(self.device)
        return MixtureSampler(corpus, settings.mixtures)

    def _read_validation(self) -> list[Rendering]:
        """Render the validation mixtures, spread evenly over the recipe."""
        data = self.settings.data
        if not data.validation:
            return []
        recipes = read_recipes(self.settings.resolve(data.validation))
        count = min(len(recipes), data.validation_mixtures)
        chosen = np.linspace(0, len(recipes) - 1, count).round().astype(int)
        return [render(recipes[k], self.settings.model.sample_rate_hz) for k in chosen]

    def _build(self) -> System:
        """A new network, or a checkpoint's with a classifier for this corpus."""
        model, speakers = self.settings.model, len(self.sampler.corpus.speakers)
        if not model.start_from:
            return build(sized(model.system, model.size, model.sample_rate_hz, speakers))
        folder = self.settings.resolve(model.start_from)
        start = load_checkpoint(folder if folder.is_dir() else model.start_from)
        if start.config.sample_rate_hz != model.sample_rate_hz:
            raise ConfigError(
                f"{model.start_from}: works at {start.config.sample_rate_hz} Hz. "
                "Set [model] sample_rate_hz to that."
            )
        if start.config.speakers != speakers:
            start.config = replace(start.config, speakers=speakers)
            start.classifier = torch.nn.Linear(start.config.embedding, speakers)
        return start.requires_grad_(True).train()


def _mean(values: list[Tensor]) -> float:
    """Mean of scalars."""
    return float(torch.stack(values).mean())


def learning_rate(settings: OptimiserSettings, step: int, share: float) -> float:
    """Linear warm-up, plateau, linear decay to zero over the last `decay_share` of the run."""
    rising = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    falling = min(1.0, (1 - share) / settings.decay_share) if settings.decay_share else 1.0
    return settings.learning_rate * rising * falling


@torch.inference_mode()
def validate(system: System, renderings: list[Rendering], device: torch.device) -> float:
    """Mean SI-SDRi in dB of `system` over rendered recipes, each one alone and whole."""
    gains = []
    for item in renderings:
        embedding = system.embed(torch.from_numpy(item.reference).to(device)[None])
        estimate = system.extract(torch.from_numpy(item.mixture).to(device)[None], embedding)
        after = si_sdr(estimate[0].cpu().numpy(), item.target)
        gains.append(after - si_sdr(item.mixture, item.target))
    return float(np.mean(gains))

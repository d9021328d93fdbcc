"""The training loop: draw, step, average, validate, save; resumable to the step."""

from __future__ import annotations

import csv
import gc
import io
import logging
import math
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any
from zipfile import ZipFile

import torch
from filelock import FileLock, Timeout
from torch import distributed, nn

from mcspex_cli import files
from mcspex_cli.checkpoint.checkpoint import (
    CheckpointInfo,
    find_checkpoint,
    read_config,
    save_checkpoint,
)
from mcspex_cli.checkpoint.hub import CONFIG
from mcspex_cli.errors import (
    CheckpointError,
    ConfigError,
    EngineError,
    error_line,
    install_extra,
    is_lack_of_memory,
)
from mcspex_cli.evaluation.metrics import si_sdr
from mcspex_cli.extraction.runtime import choose_device
from mcspex_cli.model.accelerated import accelerate
from mcspex_cli.training.data import Corpus
from mcspex_cli.training.growth import build_system, fit_classifier, match_level
from mcspex_cli.training.mixtures import Batch, MixtureSampler, draw_batches
from mcspex_cli.training.optimisation import Losses, Optimiser, multi_scale_loss, rate_factor
from mcspex_cli.training.settings import TrainSettings
from mcspex_cli.training.simulate import read_validation

_logger = logging.getLogger("mcspex")

_NEW_SAMPLE_RATE_HZ = 8000
"""The rate of a new network whose settings name none."""


class Trainer:
    """One run of training, from a TOML's settings to a checkpoint folder.

    Step n of a run draws its mixtures from generators seeded by (seed, n), so that a run
    that was stopped and resumed sees what an uninterrupted one would have. Started by
    torchrun, each process takes `batch` rows of a step's batch and all go in step.

    Raises:
        ConfigError: the data cannot be used, or `out` holds another run.
        EngineError: there is no such device.
    """

    def __init__(self, settings: TrainSettings, *, resume: bool = False) -> None:
        self.settings, self.out = settings, settings.run.out
        self.step, self.elapsed_s, self.best_db = 0, 0.0, -math.inf
        self.decay_from_s = 0.0
        """The `elapsed_s` from which `decay_minutes` count: that of the first start or resume with
        this setting."""
        self.stopping = Event()
        """Set it, as from a signal handler, and `run` saves and ends after the current step."""
        self.team = Team.join(settings.run.device)
        self.device = self.team.device
        self._take_folder(resume=resume)
        state = self._read_state() if resume else None
        self.log: ProgressLog | None = None
        if self.team.leads:
            step = state["step"] if state else 0
            self.log = ProgressLog(self.out, step, tensorboard=settings.run.tensorboard)
        start = settings.model.start_from
        self.start = find_checkpoint(start) if start else None
        self.origin = {"model": self.start.label, "sha256": self.start.sha256} if self.start else {}
        """What the run started from, even if other weights are there when it is resumed."""
        own_rate = self.start.config.sample_rate_hz if self.start else _NEW_SAMPLE_RATE_HZ
        rate = settings.model.sample_rate_hz or own_rate
        corpus = Corpus.read(settings.data.train, rate, mixed=settings.data.mixing == "given")
        # Mixtures are drawn where the corpus lies.
        corpus.samples = corpus.samples.to("cpu" if settings.run.workers else self.device)
        self.sampler = MixtureSampler(corpus, settings.mixtures)
        part = slice(self.team.rank, None, self.team.size)
        self.validation_mixtures = read_validation(settings.data, rate, part)
        self.input_scores_db = [si_sdr(one.mixture, one.target) for one in self.validation_mixtures]
        """The SI-SDR of this process's mixtures themselves; NaN without a target."""
        self.validation_input_db = self._validation_mean(self.input_scores_db)
        """The mean of these over the team, by which a resumed run knows the mixtures again."""
        torch.manual_seed(settings.run.seed)
        self.system = build_system(settings, self.start, rate, len(corpus.speakers)).to(self.device)
        if self.start and not state and not _has_classifier_of(self.start, corpus):
            if self.team.leads:
                _logger.info("computing a classifier of the new speakers")
            fit_classifier(self.system, self.sampler, settings.run.seed)
        if self.system.config.true_level and not state:
            match_level(self.system, self.sampler.draw(settings.run.seed, 0, range(32)))
        self.averaged = deepcopy(self.system).eval().requires_grad_(False)
        """The system with a moving average of its weights, which is validated and saved."""
        if settings.run.compile:  # uncompiled, its passes are slower than torch's own modules
            accelerate(self.system, compiled=True)
        self.network: nn.Module = self.system
        """What the steps go through: the system or, in a team, the same in a wrapper that takes the
        mean of the gradients over all processes."""
        if self.team.size > 1:
            places = [self.device] if self.device.type == "cuda" else None
            self.network = nn.parallel.DistributedDataParallel(self.system, device_ids=places)
        self.optimiser = Optimiser(self.system, settings.optimiser)
        if state:
            self._restore(state)
        self.saved_s = self.validated_s = self.elapsed_s

    @property
    def finished(self) -> bool:
        """Whether the schedule is at its end."""
        return self._done_share() >= 1

    @property
    def left_s(self) -> float:
        """Seconds to the end of the schedule at the pace so far; infinite before the first step."""
        share = self._done_share()
        spent_s = self.elapsed_s - self.decay_from_s
        return max(0.0, spent_s / share - spent_s) if share else math.inf

    def _done_share(self) -> float:
        """How much of the schedule is done: by the clock if it has minutes, else by steps.

        With `decay_minutes` the schedule is the decay alone, whatever came before it.
        """
        settings = self.settings.optimiser
        if minutes := settings.decay_minutes or settings.minutes:
            return (self.elapsed_s - self.decay_from_s) / (60 * minutes)
        return self.step / settings.steps

    def run(self) -> Iterator[Progress]:
        """Train to the end of the schedule, yielding the progress; saves as it goes.

        In a team, every process yields the same and the leader writes.

        Raises:
            ConfigError: the loss is no longer finite.
            EngineError: the device is out of memory, or another process of the team has ended.
            OutputError: a file cannot be written.
        """
        run = self.settings.run
        pending: list[Losses] = []
        began_s, since_s = time.monotonic() - self.elapsed_s, self.elapsed_s
        first = self.team.rank * self.settings.optimiser.batch
        rows = range(first, first + self.settings.optimiser.batch)
        on_gpu = self.device.type == "cuda"
        batches = draw_batches(
            self.sampler, run.seed, self.step, rows, run.workers, for_cuda=on_gpu
        )
        ending = self.finished
        if ending and any(self.team.highest([self.team.leads and not self._is_saved()])):
            self._validate_and_save()  # stopped before, and resumed with a nearer end
        while not ending:
            pending.append(self._step(batches))
            self._update_average()
            self.step += 1
            ending = self._sync_clock_and_ask_to_end(time.monotonic() - began_s)
            is_due = self._is_validation_due()
            if is_due or self.step % run.log_every_steps == 0:
                means = self._means(pending)  # which waits for a GPU, so before the clock is read
                now_s = time.monotonic()
                progress = self._progress(means, len(pending), now_s - began_s - since_s)
                if is_due:
                    progress = replace(progress, validation_db=self._validate_and_save())
                if self.log:
                    self.log.add(progress)
                yield progress
                pending, since_s = [], now_s - began_s
                began_s += time.monotonic() - now_s  # only steps count
                # During validation, or by the caller, `stopping` may have been set.
                ending = self._sync_clock_and_ask_to_end(self.elapsed_s)
            if self.elapsed_s - self.saved_s >= 60 * run.save_every_minutes:
                self._save_state()
        if self.saved_s < self.elapsed_s:
            self._save_state()
        self.network = self.system  # the wrapper has to be gone before the team is left
        self.team.leave()

    def _is_validation_due(self) -> bool:
        run = self.settings.run
        if self.finished:
            return True
        if run.validate_every_minutes:
            return self.elapsed_s - self.validated_s >= 60 * run.validate_every_minutes
        return self.step % run.validate_every_steps == 0

    def _step(self, batches: Iterator[Batch]) -> Losses:
        """Descend by one batch: forward in the run's precision, the loss in float32."""
        settings = self.settings.optimiser
        dtype = getattr(torch, self.settings.run.precision)
        try:
            batch = next(batches).to(self.device)
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                signals = batch.mixture, batch.reference, batch.reference_lengths
                estimates, logits = self.network(*signals)
            true_level = self.system.config.true_level
            losses = multi_scale_loss(estimates, logits, batch, true_level=true_level)
            self.system.zero_grad()
            losses.loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.system.parameters(), settings.clip_norm)
            self.optimiser.step(rate_factor(settings, self.step, self._done_share()))
        except RuntimeError as error:
            self.team.raise_if_lost(error)
            if is_lack_of_memory(error):
                advice = "Lower [optimiser] batch or [mixtures] segment_s."
                raise EngineError(f"out of memory on {self.device}. {advice}") from error
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise EngineError(
                    f"[run] compile: torch cannot compile the network ({error_line(error)}). "
                    "Install a C++ compiler such as g++ (for a GPU also Triton), or set compile = "
                    "false."
                ) from error
            raise
        return replace(losses, loss=losses.loss.detach())

    def _update_average(self) -> None:
        """Move the averaged weights, and running statistics, towards the present ones."""
        settings = self.settings.optimiser
        keep = min(settings.average, (1 + self.step) / (10 + self.step))
        present, average = self.system.state_dict(), self.averaged.state_dict()
        names = [name for name, tensor in average.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([average[n] for n in names], [present[n] for n in names], 1 - keep)

    def _sync_clock_and_ask_to_end(self, elapsed_s: float) -> bool:
        """Set `elapsed_s` to the latest in the team, and say whether to end: all at once or none.

        The end is that of the schedule, or has come when `stopping` is set in any process.
        """
        self.elapsed_s, stopping = self.team.highest([elapsed_s, self.stopping.is_set()])
        return self.finished or bool(stopping)

    def _means(self, pending: list[Losses]) -> dict[str, float]:
        """The means of the pending steps' losses, over them and the team.

        Raises:
            ConfigError: the loss is no longer finite.
        """
        names = [field.name for field in fields(Losses)]
        here = [torch.stack([getattr(p, name) for p in pending]).mean() for name in names]
        means = dict(zip(names, self.team.mean(torch.stack(here).tolist()), strict=True))
        if not math.isfinite(means["loss"]) or not self._is_finite():
            is_saved = (self.out / "state.pt").is_file()
            advice = "continue from the last save with --resume" if is_saved else "begin again"
            raise ConfigError(
                f"the loss is no longer finite at step {self.step}. Lower [optimiser] "
                f"learning_rate or muon_rate, and {advice}."
            )
        return means

    def _progress(self, means: dict[str, float], steps: int, took_s: float) -> Progress:
        """The progress by the last steps, which took so long."""
        settings = self.settings
        mixtures = steps * settings.optimiser.batch * self.team.size
        audio_s = mixtures * settings.mixtures.segment_s
        return Progress(
            step=self.step,
            share=min(1.0, self._done_share()),
            **means,
            learning_rate=self.optimiser.adam.param_groups[0]["lr"],
            audio_s_per_s=audio_s / took_s,
            elapsed_s=self.elapsed_s,
        )

    def _is_saved(self) -> bool:
        """Whether `last` has the model of this step; it may have been calibrated since."""
        try:
            return find_checkpoint(self.out / "last").provenance.get("steps") == self.step
        except CheckpointError:
            return False

    def _validate_and_save(self) -> float | None:
        """Score the averaged weights, keep them as `last`, and as `best` if they are."""
        self.validated_s = self.elapsed_s
        if not (self.out / "state.pt").exists():
            self._save_state()  # first: on a full disk, a model alone could not be resumed
        score = self._validate()
        if score is not None and score > self.best_db:
            self.best_db = score
            self._save("best", score)
        self._save("last", score)
        self._save_state()
        return score

    @torch.inference_mode()
    def _validate(self) -> float | None:
        """The averaged weights' mean SI-SDRi in dB, each process taking a part of the mixtures.

        Each mixture is extracted from alone and whole; those without the target do not count.
        """
        if not self.settings.data.validation:
            return None
        gains: list[float] = []
        for item, before_db in zip(self.validation_mixtures, self.input_scores_db, strict=True):
            mixture, reference = (
                torch.from_numpy(signal).to(self.device)[None]
                for signal in (item.mixture, item.reference)
            )
            estimate = self.averaged.extract(mixture, self.averaged.embed(reference))[0]
            gains.append(si_sdr(estimate.cpu().numpy(), item.target) - before_db)
        return self._validation_mean(gains)

    def _validation_mean(self, values: Iterable[float]) -> float | None:
        """The mean over the team of what this process has measured; None without any value.

        NaN, the score of a mixture without the target, does not count.
        """
        numbers = [value for value in values if not math.isnan(value)]
        total, count = self.team.mean([sum(numbers), len(numbers)])
        return total / count if count else None

    def _save(self, name: str, score: float | None) -> None:
        """Write the averaged weights to a folder of the run, with how they came about."""
        if not self.team.leads:
            return
        settings = self.settings
        has_score = score is not None and math.isfinite(score)
        provenance = {
            "steps": self.step,
            "minutes": round(self.elapsed_s / 60, 1),
            "validation_si_sdr_i_db": score if has_score else None,
            "speech_h": round(self.sampler.corpus.seconds / 3600, 2),
            "speakers_sha256": self.sampler.corpus.speakers_sha256,
            "mixtures": settings.mixtures.to_dict(),
            "optimiser": asdict(settings.optimiser),
        }
        if self.origin:
            provenance["started_from"] = self.origin
        self._keep_calibrated(self.out / name)
        save_checkpoint(self.out / name, self.averaged, provenance)

    def _keep_calibrated(self, folder: Path) -> None:
        """Copy a model that is to be replaced, if it was calibrated, which takes half an hour."""
        try:
            config = read_config(folder)
        except CheckpointError:  # there is none yet
            return
        if config.calibration is not None:
            kept = folder.with_name(f"{folder.name}-{config.provenance.get('steps')}")
            with files.whole_folder(kept) as unfinished:
                shutil.copytree(folder, unfinished, dirs_exist_ok=True)
            _logger.warning(
                f"{folder}: the model that was calibrated is now {kept}. The new one has other "
                "weights: calibrate it too, when the training is done."
            )

    def _save_state(self) -> None:
        """Write all that `--resume` needs, whole or not at all; never weights that are not finite.

        A run cannot go on from those, but from what was saved before.
        """
        self.saved_s = self.elapsed_s
        if not self.team.leads or not self._is_finite():
            return
        state = {
            "system": self.system.state_dict(),
            "average": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "best_db": self.best_db,
            "true_level": self.system.config.true_level,
            "started_from": self.origin,
            "validation_input_db": self.validation_input_db,
            "speakers_sha256": self.sampler.corpus.speakers_sha256,
        }
        if self.settings.optimiser.decay_minutes:
            state["decay_from_s"] = self.decay_from_s
        data = io.BytesIO()  # torch would report a full disk as an error of its own
        torch.save(state, data)
        with files.whole(self.out / "state.pt") as partial:
            partial.write_bytes(data.getbuffer())

    def _is_finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in self.system.parameters())

    def _take_folder(self, *, resume: bool) -> None:
        """Keep other processes out of the run's folder; a new run must find no other there."""
        if not resume:
            files.make_folders(self.out)
        if self.team.leads and self.out.is_dir():
            # For as long as this object lives; several in one process share it.
            self._lock = FileLock(self.out / "run.lock", is_singleton=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise ConfigError(
                    f"{self.out}: another process is training this run. End it first, or set "
                    "[run] out to another folder."
                ) from error
            except (NotImplementedError, OSError):  # for example on a disk without locks
                pass
        if resume:
            return
        if (self.out / "state.pt").is_file():
            raise ConfigError(
                f"{self.out}: has a run. Continue it with --resume, or choose another [run] out."
            )
        for model in (self.out / "best", self.out / "last"):
            if (model / CONFIG).is_file():
                raise ConfigError(
                    f"{model}: is a trained model, which a new run would replace. Move it, or set "
                    "[run] out to another folder."
                )

    def _read_state(self) -> dict[str, Any]:
        path = self.out / "state.pt"
        if not path.is_file():
            raise ConfigError(f"{path}: nothing to resume. Leave out --resume to begin.")
        data = files.read_bytes(path, ConfigError)
        try:
            if name := ZipFile(io.BytesIO(data)).testzip():  # torch compares no checksums
                raise ValueError(name)
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            return {**state, "step": int(state["step"])}
        except Exception as error:  # whatever the bytes of a damaged file lead to
            raise ConfigError(f"{path}: is damaged. Start again with another [run] out.") from error

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.system.load_state_dict(state["system"])
            self.averaged.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.elapsed_s = state["step"], state["elapsed_s"]
            self.best_db = state["best_db"]
            self.origin = state.get("started_from", self.origin)
            self._compare_data(state)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self.out / 'state.pt'}: belongs to another network, corpus or optimiser. Undo "
                "that change. Or begin another run with its weights: set [model] start_from to "
                f"{self.out / 'last'}, and [run] out to another folder."
            ) from error
        if self.system.config.true_level and not state.get("true_level", True):
            batch = self.sampler.draw(self.settings.run.seed, 0, range(32))
            for system in (self.system, self.averaged):
                match_level(system, batch)
        if self.settings.optimiser.decay_minutes:
            self.decay_from_s = state.get("decay_from_s", self.elapsed_s)

    def _compare_data(self, state: dict[str, Any]) -> None:
        """Warn if a resumed run had other speakers, or other validation mixtures."""
        before, now = state.get("validation_input_db"), self.validation_input_db
        if before is not None and now is not None and not math.isclose(before, now, abs_tol=1e-6):
            self.best_db = -math.inf
            if self.team.leads:
                _logger.warning(
                    f"{self.out}: the validation mixtures have changed, so that earlier scores are "
                    "not compared with new ones. The next model that is validated replaces best/."
                )
        same_speakers = state["speakers_sha256"] == self.sampler.corpus.speakers_sha256
        if self.team.leads and not same_speakers:
            _logger.warning(
                f"{self.out}: was trained with other speakers, or in another order, so it learns "
                "anew who is who. To avoid that, name the folders of [data] train as before."
            )


def _has_classifier_of(start: CheckpointInfo, corpus: Corpus) -> bool:
    """Whether a checkpoint's classifier knows these speakers; older ones only say how many."""
    sha256 = start.provenance.get("speakers_sha256", corpus.speakers_sha256)
    return start.config.speakers == len(corpus.speakers) and sha256 == corpus.speakers_sha256


@dataclass(frozen=True)
class Progress:
    """How far a run is, and means over the steps since the last `Progress`."""

    step: int
    share: float
    """Of the schedule, 0 to 1; with `decay_minutes`, of the decay."""
    loss: float
    si_sdr_db: float
    si_sdr_i_db: float
    accuracy: float
    """Share of references whose speaker was named."""
    learning_rate: float
    audio_s_per_s: float
    """Seconds of mixtures trained on, per second."""
    elapsed_s: float
    validation_db: float | None = None
    """Mean SI-SDRi on the validation mixtures, if the network was validated at this step."""


class ProgressLog:
    """Appends rows to `progress.csv` and, if asked to, for TensorBoard.

    Rows of steps after `step`, from which the run goes on, are dropped, and so is one that a
    crash cut short.

    Raises:
        ConfigError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool) -> None:
        self.path = folder / "progress.csv"
        self.writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                advice = install_extra("tensorboard")
                raise ConfigError(
                    f"[run] tensorboard needs the package of that name. {advice}"
                ) from error
            purge_step = step + 1 if step else None
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)
            # An error ends the writer's thread, and `flush` raises it again.
            threading.excepthook = lambda end: (
                None if issubclass(end.exc_type, OSError) else threading.__excepthook__(end)
            )
        names = [field.name for field in fields(Progress)]
        text = self.path.read_text(errors="replace") if step and self.path.is_file() else ""
        # A crash of the machine may leave NULs in the file.
        rows = csv.reader(text.replace("\0", "").splitlines())
        whole = (row for row in rows if len(row) == len(names) and row[0].isdecimal())
        kept = [row for row in whole if int(row[0]) <= step]
        with files.whole(self.path) as partial, partial.open("w", newline="") as file:
            csv.writer(file).writerows([names, *kept])

    def add(self, progress: Progress) -> None:
        """Write one row."""
        row = asdict(progress)
        try:
            with self.path.open("a", newline="") as file:
                csv.writer(file).writerow("" if v is None else v for v in row.values())
            if self.writer:
                for name, value in row.items():
                    if value is not None:
                        self.writer.add_scalar(name, value, progress.step)
                self.writer.flush()
        except OSError as error:
            raise files.output_error(Path(error.filename or self.path.parent), error) from error


@dataclass(frozen=True)
class Team:
    """This process's place among those that train together."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str) -> Team:
        """Join the other processes, if torchrun started this one.

        "auto" and "cuda" then mean a GPU for each.

        Raises:
            EngineError: there is no such device, or one GPU is named for all.
        """
        if not (distributed.is_available() and distributed.is_torchelastic_launched()):
            return cls(0, 1, choose_device(device))
        if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
            device = f"cuda:{distributed.get_node_local_rank()}"
        elif device.startswith("cuda:"):
            raise EngineError(f'device {device!r} is one GPU for all processes. Use "cuda".')
        chosen = choose_device(device)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        if not distributed.is_initialized():
            # Clocks and counts are agreed on the CPU, so that no GPU waits for them; an hour,
            # because the first meeting waits for the slowest to decode its corpus.
            backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
            distributed.init_process_group(backend, timeout=timedelta(hours=1))
        return cls(distributed.get_rank(), distributed.get_world_size(), chosen)

    def leave(self) -> None:
        """Leave the other processes; no network that is shared with them may be in use any more.

        One that is still in use when the interpreter ends may abort it, since threads are left.
        """
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
            gc.collect()

    def raise_if_lost(self, error: RuntimeError) -> None:
        """Raise an EngineError if an error says that another process can no longer be reached."""
        if self.size > 1 and re.search("gloo|nccl", str(error), re.IGNORECASE):
            raise EngineError(
                "another process of this run has ended, or cannot be reached. Find out why, then "
                "continue with --resume."
            ) from error

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def highest(self, values: Sequence[float]) -> list[float]:
        """Each value's maximum over the team, so that all decide alike."""
        return self._reduce(values, "MAX")

    def mean(self, values: Sequence[float]) -> list[float]:
        """Each value's mean over the team."""
        return [total / self.size for total in self._reduce(values, "SUM")]

    def _reduce(self, values: Sequence[float], operation: str) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            try:
                distributed.all_reduce(tensor, getattr(distributed.ReduceOp, operation))
            except RuntimeError as error:
                self.raise_if_lost(error)
                raise
        return tensor.tolist()

"""The loop: it learns, it resumes to the step, it saves what extract loads."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from mcspex_cli.checkpoint.checkpoint import (
    DEFAULT_MODEL,
    bundled,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    write_calibration,
)
from mcspex_cli.errors import ConfigError, EngineError, OutputError
from mcspex_cli.model.config import sized
from mcspex_cli.model.systems import System, build
from mcspex_cli.training.optimisation import si_sdr_db
from mcspex_cli.training.settings import TrainSettings
from mcspex_cli.training.simulate import read_recipes, render, write_renderings
from mcspex_cli.training.trainer import Trainer
from tests.conftest import RATE_HZ, buzz

TOML = """
[model]
system = "{system}"
size = "tiny"
[data]
train = ["speech"]
validation = "held-out/recipe.csv"
[mixtures]
segment_s = 0.5
reference_s = [0.5, 0.8]
[optimiser]
steps = 6
batch = 2
warmup_steps = 2
[run]
out = "{out}"
device = "cpu"
log_every_steps = 2
validate_every_steps = 3
"""


def settings(corpus: Path, out: str, system: str = "mcspex") -> TrainSettings:
    held_out = shutil.copytree(corpus, corpus.parent / "held-out", dirs_exist_ok=True)
    (held_out / "recipe.csv").write_text(
        "id,target,interferer,reference,snr_db\none,ann/a.flac,bob/b.flac,ann/b.flac,0\n"
    )
    path = corpus.parent / "train.toml"
    path.write_text(TOML.format(system=system, out=out))
    return TrainSettings.read(path)


@pytest.mark.parametrize("system", ["mcspex", "spexplus"])
def test_a_run_reports_and_leaves_a_loadable_checkpoint(corpus: Path, system: str) -> None:
    trainer = Trainer(settings(corpus, "out", system))
    reports = []
    for report in trainer.run():
        assert trainer.left_s == pytest.approx(report.elapsed_s * (6 / report.step - 1))
        reports.append(report)
    assert [r.step for r in reports] == [2, 3, 4, 6]
    assert [r.validation_db is not None for r in reports] == [False, True, False, True]
    assert reports[-1].share == 1
    info = find_checkpoint(corpus.parent / "out" / "last")
    assert info.provenance["steps"] == 6
    assert info.provenance["validation_si_sdr_i_db"] == reports[-1].validation_db
    assert load_checkpoint(info).config.speakers == 3
    best = find_checkpoint(corpus.parent / "out" / "best").provenance["validation_si_sdr_i_db"]
    assert best == max(r.validation_db for r in reports if r.validation_db is not None)


def test_a_stopped_and_resumed_run_is_an_uninterrupted_one(corpus: Path) -> None:
    whole = Trainer(settings(corpus, "whole"))
    expected = list(whole.run())
    part = settings(corpus, "part")
    reports = iter(Trainer(part).run())
    assert [next(reports).step for _ in range(3)] == [2, 3, 4]  # killed after its save at step 3
    resumed = Trainer(part, resume=True)
    assert resumed.step == 3
    rest = list(resumed.run())
    assert rest[-1].validation_db == expected[-1].validation_db
    for key, tensor in whole.system.state_dict().items():
        assert torch.equal(resumed.system.state_dict()[key], tensor), key


def test_a_run_whose_mixtures_are_drawn_by_processes_is_the_same(corpus: Path) -> None:
    alone = settings(corpus, "alone")
    helped = settings(corpus, "helped")
    helped = replace(helped, run=replace(helped.run, workers=2))
    losses = [[r.loss for r in Trainer(each).run()] for each in (alone, helped)]
    assert losses[0] == losses[1]


def test_a_run_told_to_stop_saves_the_step_in_hand(corpus: Path) -> None:
    whole = Trainer(settings(corpus, "whole"))
    list(whole.run())
    part = settings(corpus, "part")
    stopped = Trainer(part)
    for progress in stopped.run():
        if progress.step == 4:
            stopped.stopping.set()
    assert stopped.step == 4
    resumed = Trainer(part, resume=True)
    assert resumed.step == 4
    list(resumed.run())
    for key, tensor in whole.system.state_dict().items():
        assert torch.equal(resumed.system.state_dict()[key], tensor), key


def test_a_run_that_is_resumed_with_a_nearer_end_leaves_its_model(corpus: Path) -> None:
    chosen = settings(corpus, "out")
    trainer = Trainer(chosen)
    for progress in trainer.run():
        if progress.step == 2:
            trainer.stopping.set()
    assert not (chosen.run.out / "last").exists()
    nearer = replace(chosen, optimiser=replace(chosen.optimiser, steps=1))
    assert list(Trainer(nearer, resume=True).run()) == []
    for name in ("last", "best"):
        assert find_checkpoint(chosen.run.out / name).provenance["steps"] == 2
    write_calibration(find_checkpoint(chosen.run.out / "last"), {"centre": []})
    assert list(Trainer(nearer, resume=True).run()) == []
    assert find_checkpoint(chosen.run.out / "last").calibration == {"centre": []}


def test_a_calibrated_model_is_kept_when_its_run_goes_on(
    corpus: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("mcspex"), "propagate", True)
    chosen = settings(corpus, "out")
    list(Trainer(chosen).run())
    last, kept = chosen.run.out / "last", chosen.run.out / "last-6"
    write_calibration(find_checkpoint(last), {"centre": []})
    before = find_checkpoint(last)
    longer = replace(chosen, optimiser=replace(chosen.optimiser, steps=8))
    list(Trainer(longer, resume=True).run())
    assert (find_checkpoint(last).provenance["steps"], find_checkpoint(last).calibration) == (
        8,
        None,
    )
    assert find_checkpoint(kept).calibration == before.calibration
    assert load_checkpoint(kept) and find_checkpoint(kept).sha256 == before.sha256
    (message,) = set(caplog.messages)
    assert f"out/last: the model that was calibrated is now {kept}. The new one has" in message


def test_a_run_that_cannot_go_on_or_begin_says_why(corpus: Path) -> None:
    chosen = settings(corpus, "out")
    with pytest.raises(ConfigError, match=r"nothing to resume"):
        Trainer(chosen, resume=True)
    assert not chosen.run.out.exists()
    list(Trainer(chosen).run())
    with pytest.raises(ConfigError, match=r"has a run. Continue it with --resume"):
        Trainer(chosen)
    with pytest.raises(ConfigError, match=r"state.pt: belongs to another network, corpus or"):
        Trainer(settings(corpus, "out", "spexplus"), resume=True)
    state = corpus.parent / "out" / "state.pt"
    whole = state.read_bytes()
    half = len(whole) // 2
    flipped = whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :]
    for data in (flipped, whole[:half], whole[:1000], b"", b"hello", b"\x80\x04."):
        state.write_bytes(data)
        with pytest.raises(ConfigError, match=r"state.pt: is damaged. Start again with another"):
            Trainer(chosen, resume=True)


@pytest.mark.parametrize("kept", ["best", "last"])
def test_a_new_run_replaces_no_model(corpus: Path, kept: str) -> None:
    chosen = settings(corpus, "out")
    shutil.copytree(bundled()[DEFAULT_MODEL], chosen.run.out / kept)
    message = rf"out/{kept}: is a trained model, which a new run would replace. Move it, or set"
    with pytest.raises(ConfigError, match=message):
        Trainer(chosen)
    assert load_checkpoint(chosen.run.out / kept).config.sample_rate_hz == 16_000


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_state_that_cannot_be_written_leaves_no_model(corpus: Path) -> None:
    """Which a second attempt would refuse to replace."""
    import resource

    chosen = settings(corpus, "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"state.pt: cannot be written: it is larger than"):
            list(Trainer(chosen).run())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (chosen.run.out / "best").exists()
    assert [report.step for report in Trainer(chosen).run()] == [2, 3, 4, 6]


def test_a_run_is_trained_by_one_process_at_a_time(corpus: Path) -> None:
    chosen = settings(corpus, "out")
    (corpus.parent / "out").mkdir()
    with (
        FileLock(corpus.parent / "out" / "run.lock"),
        pytest.raises(ConfigError, match=r"out: another process is training this run. End it"),
    ):
        Trainer(chosen)
    assert [report.step for report in Trainer(chosen).run()] == [2, 3, 4, 6]


def test_other_speakers_in_a_resumed_run_are_warned_of(
    corpus: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("mcspex"), "propagate", True)
    chosen = settings(corpus, "out")
    list(Trainer(chosen).run())
    Trainer(chosen, resume=True)
    assert caplog.messages == []
    (corpus / "cyn").rename(corpus / "dan")
    Trainer(chosen, resume=True)
    (message,) = set(caplog.messages)  # twice where pytest also has a handler at this logger
    assert "out: was trained with other speakers, or in another order" in message


def test_scores_of_other_validation_mixtures_are_not_compared(
    corpus: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("mcspex"), "propagate", True)
    chosen = settings(corpus, "out")
    trainer = Trainer(chosen)
    list(trainer.run())
    assert Trainer(chosen, resume=True).best_db == trainer.best_db > -math.inf
    assert caplog.messages == []
    recipe = corpus.parent / "held-out" / "recipe.csv"
    recipe.write_text(recipe.read_text().replace(",0\n", ",5\n"))
    assert Trainer(chosen, resume=True).best_db == -math.inf
    (message,) = set(caplog.messages)
    assert "out: the validation mixtures have changed" in message


def test_a_checkpoint_can_be_gone_on_from_with_another_corpus(
    corpus: Path, tiny_folder: Path
) -> None:
    chosen = settings(corpus, "out")
    shutil.copytree(tiny_folder, corpus.parent / "start")
    start_from = str(corpus.parent / "start")
    chosen = replace(chosen, model=replace(chosen.model, size=None, start_from=start_from))
    trainer = Trainer(chosen)
    start = load_checkpoint(tiny_folder)
    assert torch.equal(trainer.system.encoder.banks[0].weight, start.encoder.banks[0].weight)
    assert trainer.system.config.speakers == 3
    assert list(trainer.run())[-1].step == 6
    origin = find_checkpoint(start_from)
    origins = find_checkpoint(corpus.parent / "out" / "last").provenance["started_from"]
    assert origins == {"model": "start", "sha256": origin.sha256}
    save_checkpoint(corpus.parent / "start", build(origin.config), {})  # as another run may
    assert Trainer(chosen, resume=True).origin == origins


def test_a_checkpoint_of_another_system_is_refused(corpus: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "plus", build(sized("spexplus", "tiny", RATE_HZ, 4)), {})
    save_checkpoint(tmp_path / "mc", build(sized("mcspex", "tiny", RATE_HZ, 4)), {})
    chosen = settings(corpus, "out")

    def begin(name: str, **keys: str | None) -> Trainer:
        keys = {"system": None, "size": None, "start_from": str(tmp_path / name), **keys}
        return Trainer(replace(chosen, model=replace(chosen.model, **keys)))

    message = (
        r'^\[model\] system = "mcspex" cannot be: plus, which start_from names, has "spexplus"'
    )
    with pytest.raises(ConfigError, match=message):
        begin("plus", system="mcspex")
    with pytest.raises(
        ConfigError, match=r'"cascade" cannot be: .* has "mixing"\. Leave scale_int'
    ):
        begin("mc", scale_intermg="cascade")
    assert begin("plus", scale_fuser="attention").system.config.system == "spexplus"


def test_the_classifier_is_kept_for_the_same_speakers_and_computed_for_others(
    corpus: Path,
) -> None:
    chosen = settings(corpus, "first")
    list(Trainer(chosen).run())
    model = replace(chosen.model, size=None, start_from=str(corpus.parent / "first" / "last"))
    before = load_checkpoint(corpus.parent / "first" / "last").classifier.weight
    chosen = replace(chosen, model=model, data=replace(chosen.data, validation=None))

    def begin(out: str) -> torch.Tensor:
        run = replace(chosen.run, out=corpus.parent / out)
        return Trainer(replace(chosen, run=run)).system.classifier.weight

    assert torch.equal(begin("same"), before)
    (corpus / "cyn").rename(corpus / "dan")
    assert not torch.equal(begin("other"), before)


def test_a_checkpoint_can_be_resampled_and_grown(corpus: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "high", build(sized("mcspex", "tiny", 16000, 4)), {})
    chosen = settings(corpus, "out")
    as_it_is = replace(chosen.model, size=None, start_from=str(tmp_path / "high"))
    grown = replace(as_it_is, sample_rate_hz=8000, width=1.5, stacks=3)
    for model, rate, filters, stacks in ((as_it_is, 16000, 16, 2), (grown, 8000, 24, 3)):
        out = corpus.parent / str(rate)
        trainer = Trainer(replace(chosen, model=model, run=replace(chosen.run, out=out)))
        assert trainer.sampler.corpus.sample_rate_hz == rate
        assert list(trainer.run())[-1].step == 6
        config = find_checkpoint(out / "last").config
        assert (config.sample_rate_hz, config.filters, config.stacks) == (
            rate, filters, stacks
        )  # fmt: skip


def test_validation_on_what_simulate_made(corpus: Path) -> None:
    chosen = settings(corpus, "out")
    rendered = (
        render(recipe, RATE_HZ)
        for recipe in read_recipes(corpus.parent / "held-out" / "recipe.csv")
    )
    assert list(write_renderings(rendered, corpus.parent / "made", RATE_HZ)) == ["one"]
    simulated = replace(chosen, data=replace(chosen.data, validation=corpus.parent / "made"))
    by_recipe, by_folder = (
        Trainer(replace(s, run=replace(s.run, out=out)))
        for s, out in ((chosen, corpus.parent / "one"), (simulated, corpus.parent / "two"))
    )
    for item, same in zip(
        by_recipe.validation_mixtures, by_folder.validation_mixtures, strict=True
    ):
        np.testing.assert_allclose(item.mixture, same.mixture, atol=1e-4)
        np.testing.assert_allclose(item.reference, same.reference, atol=1e-4)
    (corpus.parent / "made" / "s1" / "one.wav").unlink()
    with pytest.raises(ConfigError, match=r"s1/one.wav: is missing. Simulate the folder again"):
        Trainer(replace(simulated, run=replace(simulated.run, out=corpus.parent / "three")))


def test_a_folder_that_is_no_validation_set_is_named(corpus: Path) -> None:
    chosen = settings(corpus, "out")
    with pytest.raises(ConfigError, match=r"speech: has no mix_clean, s1 and s2. Name a LibriMix"):
        Trainer(replace(chosen, data=replace(chosen.data, validation=corpus)))


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(corpus: Path) -> None:
    trainer = Trainer(settings(corpus, "out"))
    reports = trainer.run()
    assert [next(reports).step for _ in range(2)] == [2, 3]
    with torch.no_grad():
        trainer.system.encoder.banks[0].weight.fill_(torch.nan)
    message = r"no longer finite at step 4. Lower .* and continue from the last save with --resume"
    with pytest.raises(ConfigError, match=message):
        next(reports)
    assert Trainer(settings(corpus, "out"), resume=True).step == 3
    trainer = Trainer(settings(corpus, "unsaved"))
    with torch.no_grad():
        trainer.system.encoder.banks[0].weight.fill_(torch.nan)
    with pytest.raises(ConfigError, match=r"at step 2. Lower .* and begin again"):
        next(trainer.run())


def test_weights_that_break_in_the_last_step_replace_no_model(corpus: Path) -> None:
    """The loss is that of the weights before."""
    chosen = settings(corpus, "out")
    trainer = Trainer(replace(chosen, run=replace(chosen.run, log_every_steps=1)))
    reports = trainer.run()
    assert [next(reports).step for _ in range(5)] == [1, 2, 3, 4, 5]
    trainer.system.encoder.banks[0].weight.register_hook(lambda slope: slope * math.inf)
    with pytest.raises(ConfigError, match="no longer finite at step 6"):
        next(reports)
    assert find_checkpoint(chosen.run.out / "last").provenance["steps"] == 3


def test_what_is_not_finite_is_not_saved_by_the_clock_or_an_interrupt(corpus: Path) -> None:
    chosen = settings(corpus, "out")
    often = replace(chosen.run, save_every_minutes=1e-9, log_every_steps=100)
    trainer = Trainer(replace(chosen, run=often))
    reports = trainer.run()
    assert next(reports).step == 3
    trainer.stopping.set()
    with torch.no_grad():
        trainer.system.encoder.banks[0].weight.fill_(torch.nan)
    assert list(reports) == []
    assert Trainer(chosen, resume=True).step == 3


FULL = r"out of memory on cpu. Lower \[optimiser\] batch"


def no_compiler() -> RuntimeError:
    from torch._inductor.exc import InductorError, InvalidCxxCompiler  # which takes long to import

    return InductorError(InvalidCxxCompiler(), None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: torch.OutOfMemoryError("CUDA out of memory."), FULL),
        (lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), FULL),
        (
            no_compiler,
            r"compile the network \(InvalidCxxCompiler: No.*\). Install a C\+\+ compiler such as g",
        ),
    ],
)
def test_too_large_a_batch_and_a_compiler_that_is_not_there_are_one_line(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], RuntimeError], message: str
) -> None:
    trainer = Trainer(settings(corpus, "out"))

    def full(*_: object) -> None:
        raise error()

    monkeypatch.setattr(trainer.sampler, "draw", full)
    with pytest.raises(EngineError, match=message):
        next(trainer.run())


def test_a_full_disk_is_one_line_and_keeps_what_was_saved(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(settings(corpus, "out"))
    reports = trainer.run()
    assert [next(reports).step for _ in range(2)] == [2, 3]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match=r"cannot be written: the disk is full"):
            list(reports)
    assert Trainer(settings(corpus, "out"), resume=True).step == 3
    assert not list((corpus.parent / "out").glob(".*"))


def levels_db(trainer: Trainer, system: System) -> list[float]:
    """How much louder than the targets the estimates of each scale are."""
    batch = trainer.sampler.draw(1, 5, range(64))
    with torch.no_grad():
        estimates, _ = system(batch.mixture, batch.reference)
    power = batch.target[batch.present].square().mean()
    powers = [estimate[batch.present].square().mean() for estimate in estimates]
    return [float(10 * torch.log10(each / power)) for each in powers]


def test_a_run_that_learns_levels_from_a_resume_on_begins_as_loud_as_targets(corpus: Path) -> None:
    chosen = settings(corpus, "out")
    list(Trainer(chosen).run())
    chosen = replace(chosen, mixtures=replace(chosen.mixtures, absent=0.2))
    trainer = Trainer(chosen, resume=True)
    for system in (trainer.system, trainer.averaged):
        assert all(abs(level_db) < 3 for level_db in levels_db(trainer, system))
    with torch.no_grad():
        trainer.system.decoder.banks[0].weight.mul_(100)
    trainer._save_state()
    again = Trainer(chosen, resume=True)  # which knows the level, and keeps what it has
    assert levels_db(again, again.system) == pytest.approx(levels_db(trainer, trainer.system))


def test_where_the_level_counts_estimates_begin_as_loud_as_targets(
    corpus: Path, tiny_folder: Path
) -> None:
    chosen = settings(corpus, "out")
    chosen = replace(
        chosen,
        model=replace(chosen.model, size=None, start_from=str(tiny_folder)),
        mixtures=replace(chosen.mixtures, absent=0.2),
    )
    trainer = Trainer(chosen)
    assert trainer.system.config.true_level
    assert all(abs(level_db) < 3 for level_db in levels_db(trainer, trainer.system))
    list(trainer.run())
    assert find_checkpoint(corpus.parent / "out" / "last").config.true_level is True


def test_minutes_end_a_run(corpus: Path) -> None:
    chosen = settings(corpus, "out")
    chosen = replace(chosen, optimiser=replace(chosen.optimiser, steps=1, minutes=0.01))
    reports = list(Trainer(chosen).run())
    assert reports[-1].share == 1
    assert reports[-1].validation_db is not None
    assert reports[-1].step > 1


def test_a_copy_of_a_run_decays_to_zero_within_its_minutes(corpus: Path) -> None:
    endless = settings(corpus, "out")
    list(Trainer(endless).run())
    falling = replace(endless.optimiser, steps=10**6, decay_minutes=0.02, warmup_steps=0)
    trainer = Trainer(replace(endless, optimiser=falling), resume=True)
    assert (trainer.step, trainer.left_s) == (6, math.inf)
    reports = []
    for report in trainer.run():
        assert trainer.left_s == pytest.approx(1.2 * (1 - report.share))
        reports.append(report)
    assert reports[-1].share == 1 and reports[-1].step > 7
    assert reports[-1].learning_rate < 0.5 * falling.learning_rate
    assert reports[-1].validation_db is not None


def test_the_clock_may_say_when_to_validate_and_save(corpus: Path) -> None:
    chosen = settings(corpus, "out")
    often = replace(chosen.run, validate_every_minutes=1e-9, save_every_minutes=0.01)
    reports = list(Trainer(replace(chosen, run=often)).run())
    assert [r.step for r in reports if r.validation_db is not None] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("system", ["mcspex", "spexplus"])
def test_a_tiny_system_overfits_one_mixture(system: str) -> None:
    torch.manual_seed(0)
    net = build(sized(system, "tiny", RATE_HZ, 4)).train()
    target, other = (torch.from_numpy(buzz(p, 1, p))[None] for p in (110, 190))
    reference = torch.from_numpy(buzz(110, 1, 5))[None]
    optimiser = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(120):
        estimates, _ = net(target + other, reference)
        loss = -si_sdr_db(estimates, target).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if -loss.item() > 12:
            break
    assert -loss.item() > 12

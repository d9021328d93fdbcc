"""Extract the example's voice through the Python API and say how well it came out."""

from pathlib import Path

from mcspex_cli import Engine, load_checkpoint, read_audio, si_sdr, write_audio

folder = Path(__file__).parent
engine = Engine(load_checkpoint())
rate_hz = engine.sample_rate_hz

voice = engine.embed([read_audio(folder / "reference.flac", rate_hz)])
mixture = read_audio(folder / "mixture.flac", rate_hz)
estimate = engine.extract(mixture, voice)

# The network's level is arbitrary: bring it to the mixture's by least squares.
estimate *= (estimate @ mixture) / (estimate @ estimate)
write_audio(folder / "estimate.wav", estimate, rate_hz)

truth = read_audio(folder / "truth.flac", rate_hz)
before, after = si_sdr(mixture, truth), si_sdr(estimate, truth)
print(f"SI-SDR: {before:.2f} dB before, {after:.2f} dB after")

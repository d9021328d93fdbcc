"""Extract the example's voice through the Python API and say how well it came out."""

from pathlib import Path

from mcspex_cli import Extractor, read_audio, si_sdr, write_audio

folder = Path(__file__).parent
extractor = Extractor.load()
rate_hz = extractor.sample_rate_hz

voice = extractor.enroll(folder / "reference.flac")
mixture = read_audio(folder / "mixture.flac", rate_hz)
result = extractor.extract(mixture, voice)
assert result.estimate is not None
write_audio(folder / "estimate.wav", result.estimate, rate_hz)

truth = read_audio(folder / "truth.flac", rate_hz)
before, after = si_sdr(mixture, truth), si_sdr(result.estimate, truth)
print(f"SI-SDR: {before:.2f} dB before, {after:.2f} dB after (presence {result.presence:.2f})")

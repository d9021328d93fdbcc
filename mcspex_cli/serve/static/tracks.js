// Waveforms with a player. Of all tracks on the page one plays at a time, and all are at the same time.
import WaveSurfer from "./wavesurfer.js";

const tracks = [];
let last = null;
const FINEST = 400; // pixels for a second
const HEIGHT = 84;

export const element = (tag, values = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), values);
  node.append(...children);
  return node;
};

export const clock = (seconds, digits = 0) => {
  const rounded = Math.max(0, Number(seconds.toFixed(digits)));
  const [hours, minutes] = [Math.floor(rounded / 3600), Math.floor(rounded / 60) % 60];
  const rest = (rounded % 60).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
};

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export const lastTrack = () => last;

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const track of tracks) {
    track.surfer.setOptions(track.colours());
    track.onView(...track.view());
  }
});

export class Track {
  // `name` is mixture, voice or others; `onView` is told from when to when is seen after a zoom or scroll, and
  // `onProblem` why nothing can be played.
  constructor(place, { name, label, plugins = [], withZoom = false, onView = () => {}, onProblem }) {
    this.name = name;
    this.seconds = 0;
    this.pixels = 0;
    this.group = [this];
    this.onView = onView;
    this.play = element("button", { type: "button", className: "play", ariaLabel: `Play: ${label}` });
    this.time = element("span", { className: "time" });
    this.wave = element("div", { className: "wave", tabIndex: 0, role: "slider", ariaLabel: `Position in: ${label}`, ariaValueMin: "0" });
    this.bar = element("div", { className: "bar" }, element("span", { className: "label", textContent: label }), this.time);
    if (withZoom) this.bar.append(this.zoomButtons());
    this.media = element("audio", { preload: "none" });
    this.root = element("div", { className: `track track-${name}` }, this.bar, this.play, this.wave, this.media);
    place.replaceChildren(this.root);
    this.surfer = WaveSurfer.create({
      container: this.wave,
      height: HEIGHT,
      ...this.colours(),
      cursorColor: "var(--ink)",
      cursorWidth: 2,
      normalize: true,
      autoCenter: false,
      cspNonce: document.body.dataset.nonce,
      media: this.media,
      plugins,
    });
    this.play.addEventListener("click", () => this.toggle());
    this.wave.addEventListener("focus", () => { last = this; });
    this.wave.addEventListener("keydown", (event) => this.onKey(event));
    this.surfer.on("play", () => this.onPlay());
    this.surfer.on("pause", () => { this.play.ariaPressed = "false"; this.share(); });
    this.surfer.on("error", () => {
      this.play.ariaPressed = "false";
      onProblem(`${label}: cannot be played. Check the network, then press play again.`);
    });
    this.surfer.on("finish", () => { this.play.ariaPressed = "false"; });
    this.surfer.on("interaction", () => this.share());
    this.surfer.on("timeupdate", () => this.showTime());
    this.surfer.on("scroll", (from, to) => this.onScroll(from, to));
    tracks.push(this);
    last ??= this;
  }

  // Without a url there is nothing to play yet. `loudest` is the peak that fills the height.
  async load(url, peaks, seconds, loudest) {
    this.seconds = seconds;
    this.play.disabled = !url;
    this.wave.ariaValueMax = seconds.toFixed(1);
    this.surfer.setOptions({ maxPeak: loudest || 1 });
    await this.surfer.load(url, [peaks], seconds);
    this.showTime();
  }

  colours() { return { waveColor: colour(`--${this.name}`), progressColor: colour(`--${this.name}`) }; }

  get at() { return this.surfer.getCurrentTime(); }

  seek(seconds) {
    this.surfer.setTime(Math.min(Math.max(0, seconds), this.seconds));
    this.share();
  }

  toggle() {
    const playing = tracks.find((other) => other !== this && other.surfer.isPlaying());
    const at = playing?.at ?? this.at;
    if (this.media.error) this.media.load(); // the network may be back
    if (this.at !== at) this.surfer.setTime(at);
    this.surfer.playPause().catch(() => {}); // which is an "error" above, or a pause
  }

  share() {
    last = this;
    for (const other of tracks) if (other !== this && other.seconds && !other.surfer.isPlaying()) other.surfer.setTime(this.at);
  }

  onPlay() {
    for (const other of tracks) if (other !== this) other.surfer.pause();
    last = this;
    this.play.ariaPressed = "true";
  }

  showTime() {
    const text = `${clock(this.at)} of ${clock(this.seconds)}`;
    if (this.time.textContent === text) return;
    this.time.textContent = text;
    this.wave.ariaValueNow = this.at.toFixed(1);
    this.wave.ariaValueText = text;
  }

  onKey(event) {
    const step = { ArrowLeft: -2, ArrowRight: 2, PageDown: -30, PageUp: 30, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.seek(this.at + step);
  }

  zoomButtons() {
    const button = (text, label, factor) => {
      const node = element("button", { type: "button", textContent: text, ariaLabel: label });
      node.addEventListener("click", () => this.zoom(factor));
      return node;
    };
    return element("span", { className: "zoom" }, "Zoom", button("−", "Zoom out", 0.5), button("+", "Zoom in", 2));
  }

  zoom(factor) {
    const fit = this.wave.clientWidth / this.seconds;
    const closer = Math.min(Math.max(this.pixels, fit) * factor, Math.max(FINEST, fit));
    const pixels = closer <= fit * 1.01 ? 0 : closer;
    for (const track of this.group) {
      track.pixels = pixels;
      track.surfer.zoom(pixels);
      const seen = track.wave.clientWidth / Math.max(pixels, fit);
      track.surfer.setScrollTime(Math.max(0, this.at - seen / 2));
    }
    this.onView(...this.view());
  }

  view() {
    if (!this.pixels) return [0, this.seconds];
    const from = this.surfer.getScroll() / this.pixels;
    return [from, Math.min(this.seconds, from + this.wave.clientWidth / this.pixels)];
  }

  onScroll() {
    const left = this.surfer.getScroll();
    for (const other of this.group) if (Math.abs(other.surfer.getScroll() - left) > 1) other.surfer.setScroll(left);
    if (this === this.group[0] && this.wave.clientWidth) this.onView(...this.view()); // a hidden one is not seen
  }

  destroy() {
    tracks.splice(tracks.indexOf(this), 1);
    if (last === this) last = tracks[0] ?? null;
    this.surfer.destroy();
  }
}

// What the page does: a recording, whose voice, extract, the result. All state is the server's; this shows it.
import Regions from "./regions.js";
import { Track, clock, colour, element, lastTrack } from "./tracks.js";

const $ = (id) => document.getElementById(id);
const MARK = "color-mix(in srgb, var(--voice) 25%, transparent)";
const QUICK = 400, SLOW = 10000; // milliseconds between two questions to the server

let base = "";
let state = { recording: null, references: {}, extraction: null, devices: [] };
let mixture = null, regions = null; // the recording's track, and the marks on it
let peaks = new Float32Array(0), drawing = 0; // `drawing` counts the recordings that were drawn
let undrawn = false; // whether the network failed while the recording was drawn
let chips = ""; // what the buttons of marks and references show
let decoded = false, uploading = 0, saved = false;
let resultId = null; // the extraction whose result is on the page
let results = [];
let timer = 0, failures = 0;

// The server

const tell = (message) => {
  if (message === $("problem").textContent) return; // it would be read out again, and the page would jump
  $("problem").textContent = message;
  $("problem").hidden = !message;
  if (message) $("problem").scrollIntoView({ block: "nearest" });
};

const outOfReach = () => {
  throw new Error("The program behind this page cannot be reached. Check the network. If mcspex serve has ended, start it again, then load this page again.");
};

const request = async (path, options) => {
  const answer = await fetch(path, options).catch(outOfReach);
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  throw new Error(error ?? `The server refused this (${answer.status}). Load the page again.`);
};

const opened = request("sessions", { method: "POST" }).then((answer) => answer.json()).then(({ id }) => { base = `sessions/${id}/`; });

const ask = async (method, path, body) => {
  await opened;
  const answer = await request(base + path, { method, body: body && JSON.stringify(body) });
  return answer.json().catch(outOfReach);
};

const attempt = async (work) => {
  try {
    tell("");
    await work();
  } catch (error) {
    tell(error.message);
  }
};

const send = async (path, file) => {
  const name = `name=${encodeURIComponent(file.name)}`;
  await ask("GET", `space?${name}&size=${file.size}`); // a browser sends all of it before it reads a refusal
  return new Promise((resolve, reject) => {
    const upload = new XMLHttpRequest();
    upload.open("PUT", `${base}${path}?${name}`);
    upload.responseType = "json";
    upload.upload.onprogress = ({ loaded, total }) => {
      $("upload").querySelector("progress").value = loaded / total;
      $("upload-text").textContent = `Sending ${file.name}: ${Math.round((100 * loaded) / total)} %`;
    };
    const end = (settle, value) => {
      uploading -= 1;
      $("upload").hidden = !uploading;
      settle(value);
    };
    const fail = () => end(reject, new Error(upload.response?.error ?? `${file.name}: could not be sent. It may be a folder, or have been changed meanwhile; or the network failed, or mcspex serve has ended.`));
    upload.onload = () => (upload.status === 200 ? end(resolve, upload.response) : fail());
    upload.onerror = fail;
    uploading += 1;
    $("upload").hidden = false;
    $("upload-text").textContent = `Sending ${file.name}`;
    upload.send(file);
  });
};

const watch = async () => {
  clearTimeout(timer);
  try {
    show(await ask("GET", ""));
    if (failures > 1) tell(""); // it is in reach again
    failures = 0;
  } catch (error) {
    failures += 1;
    if (failures > 1) tell(error.message);
  }
  const busy = ["waiting", "working"].includes(state.extraction?.state) || (state.recording && !state.recording.decoded);
  timer = setTimeout(watch, busy ? QUICK : SLOW);
  if (!failures && undrawn) attempt(drawRecording);
};

// The recording

const useRecording = (answer, keepMarks = false) => {
  if (!keepMarks) marks().forEach((mark) => mark.remove());
  decoded = false;
  show(answer);
  showChannels();
  return drawRecording();
};

const drawRecording = async () => {
  const own = ++drawing;
  undrawn = false;
  try {
    await draw(own);
  } catch (error) {
    undrawn = own === drawing;
    throw error;
  }
};

const draw = async (own) => {
  const { seconds, peak_s: step } = state.recording;
  let current = new Float32Array(Math.max(1, Math.ceil(seconds / step)));
  if (!mixture) {
    regions = Regions.create();
    mixture = new Track($("mixture"), { name: "mixture", label: "Recording", plugins: [regions], withZoom: true, onProblem: tell });
    regions.enableDragSelection({ color: MARK, minLength: 0.3 });
    for (const event of ["region-created", "region-updated", "region-removed"]) regions.on(event, showChips);
  }
  const reader = (await request(`${base}peaks/mixture`)).body.getReader();
  const read = () => reader.read().catch(outOfReach);
  let rest = new Uint8Array(0), filled = 0, drawn = 0;
  for (let piece = await read(); !piece.done; piece = await read()) {
    const bytes = new Uint8Array(rest.length + piece.value.length);
    bytes.set(rest);
    bytes.set(piece.value, rest.length);
    const whole = bytes.length - (bytes.length % 4);
    const values = new Float32Array(bytes.buffer.slice(0, whole));
    if (filled + values.length > current.length) { // a header may announce less than there is
      const longer = new Float32Array(filled + values.length);
      longer.set(current);
      current = longer;
    }
    current.set(values, filled);
    filled += values.length;
    rest = bytes.slice(whole);
    if (own === drawing && Date.now() - drawn > 1000) {
      drawn = Date.now();
      peaks = current;
      await mixture.load("", peaks, Math.max(seconds, filled * step), loudest());
    }
  }
  if (own !== drawing) return;
  peaks = current.slice(0, Math.max(1, filled)); // or more
  await watch();
  if (state.recording.error) {
    tell(state.recording.error);
    return;
  }
  await mixture.load(`${base}sounds/mixture?${Date.now()}`, peaks, state.recording.seconds, loudest());
  decoded = true;
  showButtons();
};

const loudest = () => peaks.reduce((most, peak) => Math.max(most, peak), 0.01);

const showChannels = () => {
  const { channels, channel, tracks, track } = state.recording;
  const sides = channels === 2 ? ["0 (left)", "1 (right)"] : Array.from({ length: channels }, (_, i) => `${i}`);
  const options = [["mix", "all, mixed"], ...(channels > 1 ? sides.map((side, i) => [`${i}`, side]) : [])];
  $("channel").replaceChildren(...options.map(([value, text]) => new Option(text, value, false, value === channel)));
  $("channel").disabled = channels < 2;
  $("track").replaceChildren(...tracks.map((text, i) => new Option(text, `${i + 1}`, false, i + 1 === track)));
  $("track-label").hidden = tracks.length < 2;
};

const choosePart = () => attempt(async () => {
  const query = new URLSearchParams({ channel: $("channel").value, track: $("track").value });
  try {
    if (mayLoseResult()) await useRecording(await ask("POST", `recording/part?${query}`), true);
  } finally {
    showChannels();
  }
});

// Whose voice

const marks = () => regions?.getRegions() ?? [];
const spans = () => marks().map(({ start, end }) => [start, end]).sort((a, b) => a[0] - b[0]);

const chip = (name, onRemove, onPlay) => {
  const remove = element("button", { type: "button", textContent: "✕", ariaLabel: `Remove ${name}` });
  remove.addEventListener("click", onRemove);
  const play = onPlay && element("button", { type: "button", textContent: `▶ ${name}`, ariaLabel: `Play ${name}` });
  play?.addEventListener("click", onPlay);
  return element("li", {}, play ?? name, remove);
};

const showChips = () => {
  // Only if they change: a button that is made anew has no focus, and misses a click in the middle.
  const shown = JSON.stringify([marks().map(({ id, start, end }) => [id, start, end]), state.references]);
  if (shown !== chips) drawChips();
  chips = shown;
  showButtons();
};

const drawChips = () => {
  const ofMarks = [...marks()].sort((a, b) => a.start - b.start).map((mark) =>
    chip(`${clock(mark.start, 1)} – ${clock(mark.end, 1)}`, () => mark.remove(), () => mark.play(true)));
  const ofFiles = Object.entries(state.references).map(([key, name]) =>
    chip(name, () => attempt(async () => show(await ask("DELETE", `references/${key}`)))));
  $("chips").replaceChildren(...ofMarks, ...ofFiles);
};

const seconds = (text) => {
  const parts = text.trim().replace(",", ".").split(":");
  const valid = parts.length <= 3 && parts.every((part) => /^\d+(\.\d+)?$/.test(part));
  return valid ? parts.reduce((sum, part) => 60 * sum + Number(part), 0) : NaN;
};

const mark = (start, end) => {
  if (!(start >= 0 && end - start >= 0.3 && end <= mixture.seconds + 0.5)) {
    tell(`From ${$("from").value || "?"} to ${$("to").value || "?"} is no part of the recording of 0.3 s or more. Write times like 0:12 or 1:02:03.5.`);
    return;
  }
  tell("");
  regions.addRegion({ start, end, color: MARK, minLength: 0.3 });
  $("from").value = $("to").value = "";
};

// Extract

const extract = () => attempt(async () => {
  const values = ["model", "device", "level", "absent"].map((name) => [name, $(name).value]);
  const name = $("person").value.trim();
  lastTrack()?.surfer.pause();
  show(await ask("POST", "extraction", { ...Object.fromEntries(values), name, spans: spans() }));
  await watch();
});

const duration = (s) => (s < 60 ? `${Math.max(1, Math.round(s))} s` : `${Math.round(s / 60)} min`);

// What screen readers say, and what they do not, because it changes all the time.
const progressTexts = ({ state: now, place, step, share, left_s: left }) => {
  if (now === "waiting") return [["Waiting…", "Waiting: one extraction comes first"][place] ?? `Waiting: ${place} extractions come first`, ""];
  if (step === "cancelling") return ["Cancelling…", ""];
  if (step === "loading") return ["Loading the model…", ""];
  if (step === "listening") return ["Listening to the person…", ""];
  if (step === "writing") return ["Writing the files…", ""];
  const rest = left === null ? "" : `, ${duration(left)} left`;
  return ["Extracting:", ` ${Math.round(100 * share)} %${rest}`];
};

const showButtons = () => {
  const busy = ["waiting", "working"].includes(state.extraction?.state);
  const known = marks().length + Object.keys(state.references).length > 0;
  $("extract").disabled = busy || !decoded || !known;
  $("extract").hidden = $("missing").hidden = busy;
  $("missing").textContent = !state.recording ? "First drop a recording above." : !known ? "First show whose voice you want." : "";
  $("work").hidden = !busy;
  if (!busy) return;
  const bar = $("work").querySelector("progress");
  if (state.extraction.step === "extracting") bar.value = state.extraction.share;
  else bar.removeAttribute("value");
  const [step, rest] = progressTexts(state.extraction);
  if ($("work-step").textContent !== step) $("work-step").textContent = step;
  $("work-rest").textContent = rest;
};

// The result

const showResult = async ({ id, result }) => {
  resultId = id;
  saved = false;
  $("result").hidden = false;
  $("verdict").textContent = verdict(result);
  $("warnings").replaceChildren(...result.warnings.map((text) => element("li", { textContent: text })));
  for (const link of document.querySelectorAll("[data-save]")) link.href = `${base}saved/${link.dataset.save}`;
  results.forEach((track) => track.destroy());
  const labels = { mixture: "Recording", voice: $("person").value.trim() || "The voice", others: "Everybody else" };
  const group = [];
  const onView = later((from, to) => showView(result, labels, from, to));
  results = Object.entries(labels).map(([name, label]) => {
    const track = new Track($(`track-${name}`), { name, label, withZoom: name === "mixture", onView, onProblem: tell });
    track.group = group;
    group.push(track);
    return track;
  });
  $("result").focus({ preventScroll: true });
  $("result").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "instant" : "smooth" });
  const fetched = async (path, kind) => (await request(base + path))[kind]().catch(outOfReach);
  let subtitles;
  try {
    await Promise.all(results.map(async (track, i) => {
      const name = Object.keys(labels)[i];
      const own = name === "mixture" ? peaks : new Float32Array(await fetched(`peaks/${name}`, "arrayBuffer"));
      await track.load(`${base}sounds/${name}?${id}`, own, result.seconds, loudest());
    }));
    subtitles = await fetched("saved/voice.srt", "text");
  } catch (error) {
    resultId = null; // so that it is shown when the server is in reach again
    throw error;
  }
  result.speech = [...subtitles.matchAll(/^(\d+):(\d+):(\d+),(\d+) --> (\d+):(\d+):(\d+),(\d+)/gm)].map((line) => {
    const [h, m, s, ms, h2, m2, s2, ms2] = line.slice(1).map(Number);
    return [3600 * h + 60 * m + s + ms / 1000, 3600 * h2 + 60 * m2 + s2 + ms2 / 1000].map((t) => t - result.start_s);
  });
  showView(result, labels, 0, result.seconds);
};

const verdict = ({ present, presence, active_s: active, seconds: all }) => {
  const speaks = `speaks for ${clock(active)} of ${clock(all)}`;
  if (present === null) return `The voice ${speaks}.`;
  if (!present) return `This person is probably not in the recording (presence ${presence.toFixed(2)} on a scale from 0 to 1).`;
  return `The person is there and ${speaks} (presence ${presence.toFixed(2)} on a scale from 0 to 1).`;
};

const showView = (result, labels, from, to) => {
  drawPresence(result, from, to);
  const query = new URLSearchParams({ from: from.toFixed(3), to: to.toFixed(3), id: resultId });
  const high = "Low tones are at the bottom, high ones at the top; bright is loud.";
  $("pictures").replaceChildren(...Object.entries(labels).map(([name, label]) => element("figure", {},
    element("img", { src: `${base}pictures/${name}?${query}`, alt: `Spectrogram of: ${label}, ${clock(from)} to ${clock(to)}. ${high}` }),
    element("figcaption", { textContent: label }))));
};

const drawPresence = ({ segments, speech = [], presence, active_s: active }, from, to) => {
  const canvas = $("presence"), scale = devicePixelRatio, context = canvas.getContext("2d");
  const width = (canvas.width = canvas.clientWidth * scale), height = (canvas.height = 22 * scale);
  const x = (t) => ((t - from) / (to - from)) * width;
  context.fillStyle = colour("--rule");
  context.fillRect(0, height - 5 * scale, width, 5 * scale);
  context.fillStyle = colour("--voice");
  for (const [start, end] of speech) context.fillRect(x(start), height - 5 * scale, Math.max(scale, x(end) - x(start)), 5 * scale);
  for (const [start, end, sure, present] of segments) {
    context.globalAlpha = present ? 0.75 : 0.25;
    context.fillRect(x(start), (1 - sure) * 15 * scale, Math.max(scale, x(end) - x(start) - scale), sure * 15 * scale);
  }
  context.globalAlpha = 1;
  const known = presence !== null;
  $("presence-text").textContent = known
    ? "Bars: how sure it is that the person speaks there. Line: when the person speaks."
    : "Line: when the person speaks.";
  canvas.ariaLabel = `The person speaks for ${clock(active)}: ${speech.slice(0, 20).map(([a, b]) => `${clock(a)} to ${clock(b)}`).join(", ")}`;
};

// Not more often than every 300 ms, and with the newest values.
const later = (work, timeout = 0, values = []) => (...newest) => {
  values = newest;
  timeout ||= setTimeout(() => { timeout = 0; work(...values); }, 300);
};

// All of it

const show = (now) => {
  const before = state;
  state = now;
  const { recording, extraction } = state;
  $("drop").hidden = $("voice").classList.toggle("off", !recording) === false;
  $("go").classList.toggle("off", !recording);
  $("loaded").hidden = !recording;
  if (recording) {
    $("name").textContent = recording.name;
    $("length").textContent = clock(recording.seconds);
    $("recording-warnings").replaceChildren(...recording.warnings.map((text) => element("li", { textContent: text })));
  }
  if (`${state.devices}` !== `${before.devices}`) {
    const names = { auto: "the fastest there is", cpu: "the processor" };
    $("device").replaceChildren(...state.devices.map((name) => new Option(names[name] ?? `graphics card ${name}`, name)));
  }
  const told = before.extraction?.state === "failed" && before.extraction.id === extraction?.id;
  if (extraction?.state === "failed" && !told) tell(extraction.error);
  if (extraction?.state === "done" && extraction.id !== resultId) attempt(() => showResult(extraction));
  if (!extraction || extraction.state !== "done") $("result").hidden = true;
  showChips();
};

const wouldLoseResult = () => !$("work").hidden || (!saved && !$("result").hidden);
const mayLoseResult = () => !wouldLoseResult() || confirm("The voice from this recording is not saved. Go on without it?");

const addReferences = (files) => attempt(async () => {
  const problems = [];
  for (const file of files) await send("references", file).then(show, ({ message }) => problems.push(message));
  tell([...new Set(problems)].join(" "));
});

const addRecording = (files) => attempt(async () => {
  if (files.length > 1) throw new Error("Drop one recording at a time.");
  if (files.length && mayLoseResult()) await useRecording(await send("recording", files[0]));
});

const target = (event) => (state.recording && !event.target.closest?.("#recording") ? $("voice") : $("recording"));
const highlight = (section) => { for (const each of document.querySelectorAll(".step")) each.classList.toggle("dragging", each === section); };

addEventListener("dragover", (event) => { event.preventDefault(); highlight(target(event)); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) highlight(null); });
addEventListener("drop", (event) => {
  event.preventDefault();
  highlight(null);
  const files = [...event.dataTransfer.files];
  if (files.length) (target(event) === $("voice") ? addReferences : addRecording)(files);
});

addEventListener("keydown", (event) => {
  if (event.target.closest("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const track = lastTrack(), key = event.key.toLowerCase();
  if (!track?.seconds) return;
  if (key === " " && !event.target.closest("button, a, summary")) { event.preventDefault(); track.toggle(); }
  if (key === "arrowleft") track.seek(track.at - 2);
  if (key === "arrowright") track.seek(track.at + 2);
  if (key === "i") $("from").value = clock(track.at, 1);
  if (key === "o") { $("to").value = clock(track.at, 1); mark(seconds($("from").value || "0"), track.at); }
});

addEventListener("click", (event) => {
  const isSecond = event.detail > 1 && event.target.closest("#example, #times button, #extract");
  if (isSecond) { event.preventDefault(); event.stopPropagation(); } // of a double click
}, true);

$("file").addEventListener("change", ({ target: input }) => { addRecording([...input.files]); input.value = ""; });
$("reference").addEventListener("change", ({ target: input }) => { addReferences([...input.files]); input.value = ""; });
$("another").addEventListener("click", () => $("file").click());
$("example").addEventListener("click", () => attempt(async () => {
  await useRecording(await ask("POST", "example"));
  if (!marks().length) mark(0, 3.3); // where a woman speaks alone
}));
$("times").addEventListener("submit", (event) => { event.preventDefault(); mark(seconds($("from").value), seconds($("to").value)); });
$("channel").addEventListener("change", choosePart);
$("track").addEventListener("change", choosePart);
$("extract").addEventListener("click", extract);
$("cancel").addEventListener("click", () => attempt(async () => show(await ask("DELETE", "extraction"))));
for (const link of document.querySelectorAll("[data-save]")) link.addEventListener("click", (event) => {
  event.preventDefault();
  attempt(async () => { // a browser does not say why it could not save something
    await (await request(link.href)).body.cancel();
    element("a", { href: link.href, download: "" }).click();
    saved = true;
  });
});

addEventListener("beforeunload", (event) => { if (uploading || wouldLoseResult()) event.preventDefault(); });
addEventListener("pagehide", () => navigator.sendBeacon(`${base}close`));
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

attempt(async () => {
  await opened;
  await watch();
});

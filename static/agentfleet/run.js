// The page of a run. Everything it shows of events comes over one websocket, from the first on: whoever comes
// late, reloads or reconnects reads the same rows in the same order. Text reaches the page as text nodes only.

import { length, refresh, startClocks } from "./parts.js";

const FIRST_WAIT = 500; // milliseconds before the first try to reconnect, doubling…
const LONGEST_WAIT = 10_000; // …up to this
const SILENCE = 15_000; // without an event after which the row is asked whether there are any
const FRAME = 10; // milliseconds of work in one frame
const ROWS = 5000; // of the log that stay in the page…
const CHARACTERS = 2_000_000; // …if they are not larger than this in all
const BLOCKS = 2000; // of the transcript that stay in the page
const OUTPUT = 200_000; // characters of one command's output that stay in the page

const page = document.getElementById("run");
const scroller = document.getElementById("scroll");
const transcript = document.getElementById("transcript");
const log = document.getElementById("log");
const doing = document.getElementById("doing");
const jump = document.getElementById("jump");
const connection = document.getElementById("connection");

// --- small tools ----------------------------------------------------------------------------------------------

// An element with a class and text; children may be elements or strings.
function make(tag, name, ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function json(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}

// Without the escapes that colour a terminal.
function plain(text) {
  return String(text).replace(/\u001b\[[0-9;?]*[ -/]*[@-~]/g, "");
}

function clockTime(moment) {
  return String(moment).slice(11, 23);
}

// --- the tail -------------------------------------------------------------------------------------------------

let following = true; // until the reader scrolls up
let lastTop = 0;

function atEnd() {
  return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 40;
}

scroller.addEventListener("scroll", () => {
  if (atEnd()) following = true;
  else if (scroller.scrollTop < lastTop) following = false;
  lastTop = scroller.scrollTop;
  jump.hidden = following;
});

function keepUp() {
  if (following) scroller.scrollTop = scroller.scrollHeight;
  lastTop = scroller.scrollTop;
  jump.hidden = following;
}

jump.addEventListener("click", () => {
  following = true;
  keepUp();
});

for (const tab of document.querySelectorAll("[data-view]")) {
  tab.addEventListener("click", () => {
    const chosen = tab.dataset.view;
    log.hidden = chosen !== "log";
    transcript.hidden = chosen !== "transcript";
    for (const other of document.querySelectorAll("[data-view]")) {
      other.setAttribute("aria-pressed", String(other === tab));
    }
    following = true;
    keepUp();
  });
}

// --- the log: every event in order ----------------------------------------------------------------------------

const logNote = make("p", "af-dim");
logNote.hidden = true;
log.append(logNote);
const sizes = []; // characters of the rows in the page
let logSize = 0;
let logDropped = 0;

function toLog(event) {
  const text = event.type === "output" ? plain(event.data.text).replace(/\n$/, "") : words(event.data);
  const row = make(
    "div",
    "af-log-row",
    make("span", "af-dim", `${event.id} ${clockTime(event.created_at)} `),
    make("span", "af-type", `${event.type} `),
    make("span", "", text),
  );
  row.dataset.event = event.id;
  log.append(row);
  sizes.push(text.length);
  logSize += text.length;
}

function words(data) {
  return Object.keys(data).length ? JSON.stringify(data) : "";
}

function trimLog() {
  let drop = 0;
  while (sizes.length > ROWS || (logSize > CHARACTERS && sizes.length > 1)) {
    logSize -= sizes.shift();
    drop += 1;
  }
  if (!drop) return;
  for (let row = 0; row < drop; row += 1) logNote.nextSibling.remove();
  logDropped += drop;
  const whole = make("a", "af-link", "the whole log");
  whole.href = page.dataset.log;
  logNote.replaceChildren(`${logDropped} earlier lines are not shown here: `, whole);
  logNote.hidden = false;
}

// --- the transcript -------------------------------------------------------------------------------------------

const calls = new Map(); // call id → its block, while it runs
const TERMINAL = new Set(["finished", "failed", "canceled"]);
const chosen = Number(page.dataset.attempt); // the only attempt to show; 0: all of them
let attempt = 1; // the one that the events now drawn belong to

function block(...children) {
  const element = make("div", "af-block", ...children);
  transcript.append(element);
  return element;
}

function note(event, text, name = "") {
  block(make("span", "af-dim", `${clockTime(event.created_at)} `), make("span", name, text)).classList.add("af-line");
}

const shows = {
  "status.change": (event) => {
    const { from, to, reason } = event.data;
    note(event, `${from ? `${from} → ` : ""}${to}${reason ? ` (${reason})` : ""}`, "af-strong");
  },
  "status.text": (event) => note(event, `says: ${event.data.text}`),
  "cancel.requested": (event) => note(event, "cancel requested"),
  "run.resumed": (event) => note(event, `goes on after ${length(event.data.waited_seconds)} of waiting`),
  "run.takeover": (event) => note(event, "another worker took over"),
  "sandbox.start": (event) => note(event, `sandbox starts from ${event.data.image}`),
  "sandbox.ready": (event) => note(event, `sandbox ready: ${event.data.id}`),
  "sandbox.lost": (event) => note(event, "sandbox lost", "af-bad"),
  "model.lost": (event) =>
    note(event, `a request's answer was lost: about ${event.data.estimatedTokens} tokens counted`, "af-bad"),
  "model.start": (event) => busyWith(`turn ${event.data.turn}: asking ${event.data.model}`),
  "model.turn": turn,
  "tool.start": (event) => {
    const call = calls.get(event.data.callId);
    if (call?.begun === false) begin(call);
    else startCall(event);
  },
  output: output,
  "output.cut": (event) => {
    callOf(event).note.textContent = `Only the first ${event.data.kept} characters were kept.`;
  },
  "tool.end": endCall,
  ask: (event) => {
    callOf(event).state.textContent = "waits for an answer";
  },
  respond: (event) => say(callOf(event), event.data.message),
  input: (event) => note(event, `somebody says (${event.data.mode}): ${event.data.message}`),
  "input.delivered": () => {},
  "approval.asked": (event) => {
    const call = startCall(event);
    call.begun = false;
    call.state.textContent = "waits for leave";
  },
  "approval.decided": (event) => {
    const { state, by, reason } = event.data;
    callOf(event).state.textContent = `${state}${by ? ` by ${by}` : ""}${reason ? `: ${reason}` : ""}`;
  },
  "attempt.failed": (event) => {
    const { attempt: number, code, message, next } = event.data;
    note(event, `attempt ${number} failed: ${code}: ${message}; the next begins at ${clockTime(next)}`, "af-bad");
  },
  call: (event) => note(event, `calls ${event.data.targetAgent}, ${event.data.run}: ${event.data.context}`),
  "slot.lent": (event) => note(event, "waits for a call, and lends its slot meanwhile"),
  "slot.back": (event) => note(event, "has its slot again"),
  "slot.given_up": (event) => note(event, "stands in line for a slot"),
  "signal.exit": (event) => note(event, `is to end with exit code ${event.data.code}`),
  "signal.rerun": (event) => note(event, "asks for another run after this one"),
  "signal.return": (event) => note(event, `returns: ${event.data.value}`),
  "shutdown.requested": (event) => note(event, `shuts itself down: ${event.data.reason}`, "af-bad"),
  "agent.text": (event) => note(event, event.data.text),
  warning: (event) => note(event, event.data.message, "af-bad"),
  "image.wait": (event) => note(event, `waits for its image, ${event.data.image}: it is being built`),
  pause: (event) => note(event, `waits ${event.data.seconds} s: ${event.data.code}: ${event.data.message}`, "af-bad"),
};

function toTranscript(event) {
  if (!chosen || chosen === attempt) toBlock(event);
  if (event.type === "attempt.failed") {
    attempt = event.data.attempt + 1;
    endCalls();
  } else if (event.type === "status.change" && TERMINAL.has(event.data.to)) {
    endCalls();
  }
}

// No call outlives its attempt.
function endCalls() {
  for (const call of calls.values()) call.state.textContent = "was not finished";
  calls.clear();
}

function toBlock(event) {
  if (event.type !== "model.start") busyWith("");
  const show = Object.hasOwn(shows, event.type) ? shows[event.type] : null;
  if (!show) {
    note(event, `${event.type} ${words(event.data)}`);
    return;
  }
  try {
    show(event);
  } catch {
    note(event, `${event.type} ${words(event.data)}`); // not the fields it has had so far
  }
}

// What goes on at this moment, beneath everything.
function busyWith(text) {
  doing.textContent = text ? `${text} …` : "";
  doing.hidden = !text;
}

function turn(event) {
  const { text, model, usage, toolCalls } = event.data;
  const used = usage ? `${usage.input} in, ${usage.output} out` : "";
  const turnBlock = block(make("div", "af-dim", `${clockTime(event.created_at)} ${model}  ${used}`));
  turnBlock.classList.add("af-turn");
  if (text) turnBlock.append(make("div", "af-text", text));
  if (toolCalls?.length) busyWith(`runs ${toolCalls.map((call) => call.name).join(", ")}`);
}

// The block of a call: what is asked, its output live beneath, its end.
function startCall(event) {
  const { toolName, callId, toolInput } = event.data;
  const state = make("span", "af-dim", "running");
  const pre = make("pre", "af-output");
  const whole = make("details", "af-whole", make("summary", "", "whole result"));
  const call = { pre, state, whole, size: 0, note: make("div", "af-dim") };
  const head = make("div", "af-call-head", make("strong", "", toolName ?? ""), " ", state);
  const asked = toolInput === undefined ? null : make("pre", "af-asked", asText(toolInput));
  const element = block(head, asked, pre, call.note, whole);
  element.classList.add("af-call");
  element.dataset.call = callId;
  pre.hidden = true;
  whole.hidden = true;
  calls.set(callId, call);
  const [position, index] = String(callId).split("-").map(Number);
  onOpen(whole, position + 1, attempt, (parts) => make("pre", "af-pre", parts[index]?.text ?? "It is not stored yet."));
  return call;
}

// A call that has waited for leave has its block.
function begin(call) {
  call.begun = true;
  call.state.textContent = "running";
}

function callOf(event) {
  return calls.get(event.data.callId) ?? startCall(event);
}

// One text as it is; several arguments by name.
function asText(input) {
  if (input === null || typeof input !== "object" || Array.isArray(input)) return json(input);
  const names = Object.keys(input);
  if (names.length === 1 && typeof input[names[0]] === "string") return input[names[0]];
  return names.map((name) => `${name}: ${json(input[name])}`).join("\n");
}

function output(event) {
  say(callOf(event), plain(event.data.text));
}

function say(call, text) {
  call.pre.hidden = false;
  call.pre.append(text);
  call.size += text.length;
  while (call.size > OUTPUT && call.pre.childNodes.length > 1) {
    call.size -= call.pre.firstChild.length;
    call.pre.firstChild.remove();
    call.note.textContent = "Earlier output is not shown here: it is in the whole log.";
  }
}

function endCall(event) {
  const call = callOf(event);
  const { success, durationMs, exitCode, lost, outputPreview } = event.data;
  const code = exitCode === undefined ? "" : `, exit ${exitCode}`;
  call.state.textContent = `${lost ? "lost" : success ? "ok" : "failed"}${code}, ${took(durationMs)}`;
  call.state.className = success ? "af-good" : "af-bad";
  if (!call.size && outputPreview) say(call, plain(outputPreview));
  call.whole.hidden = false;
  calls.delete(event.data.callId); // a later attempt's call of that id gets a block of its own
}

function took(milliseconds) {
  return milliseconds < 60_000 ? `${(milliseconds / 1000).toFixed(1)} s` : length(milliseconds / 1000);
}

function trimTranscript() {
  while (transcript.childElementCount > BLOCKS) {
    transcript.children[1].remove(); // the first is the prompt
  }
}

// Fill `details` from the message at `position` of an attempt's transcript, when it is first opened. 0: the newest's.
function onOpen(details, position, ofAttempt, fill) {
  let filling = null;
  details.addEventListener("toggle", async () => {
    if (!details.open || details.dataset.filled) return;
    const url = page.dataset.message.replace(/\d+\/$/, `${position}/${ofAttempt ? `?attempt=${ofAttempt}` : ""}`);
    try {
      const { parts } = await (await fetch(url, { credentials: "same-origin" })).json();
      filling?.remove();
      filling = fill(parts);
      details.append(filling);
      if (parts.length) details.dataset.filled = "yes";
    } catch {
      details.open = false; // try again
    }
  });
}

onOpen(document.getElementById("prompt"), 0, chosen, (parts) =>
  make("div", "", ...parts.map((part) => make("div", "", make("h3", "", part.type), make("pre", "af-pre", part.text ?? "")))),
);

// --- facts ----------------------------------------------------------------------------------------------------

const CHANGES = /^(status\.|cancel\.|model\.turn|model\.lost|sandbox\.|run\.|ask|respond|pause|image\.|approval\.|input|attempt\.)/;
let factsDue = false;
let factsBusy = false;
let factsAt = 0;

// At most once a second, never two at a time, and always once more after the last wish.
async function refreshFacts() {
  factsDue = true;
  if (factsBusy) return;
  factsBusy = true;
  while (factsDue) {
    const wait = factsAt + 1000 - Date.now();
    if (wait > 0) await new Promise((done) => setTimeout(done, wait));
    factsDue = false;
    factsAt = Date.now();
    try {
      if (!(await refresh(page.dataset.facts))) state("logged out", "Logged out: reload this page.");
    } catch {
      // The server is away; the websocket's return asks again.
    }
  }
  factsBusy = false;
}

// --- the websocket --------------------------------------------------------------------------------------------

let last = 0; // number of the newest event this page has
let wait = FIRST_WAIT;
let socket = null;
let timer = 0;
let over = false;
let heardAt = Date.now();
const queue = [];
let drawing = false;

function state(name, text) {
  connection.dataset.state = name;
  connection.textContent = text ?? name;
}

function connect() {
  clearTimeout(timer);
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const mine = new WebSocket(`${scheme}://${location.host}/ws/runs/${encodeURIComponent(page.dataset.run)}/`);
  socket = mine;
  mine.onopen = () => {
    mine.send(JSON.stringify({ after: last }));
    heardAt = Date.now();
    state("live");
    refreshFacts();
  };
  mine.onmessage = ({ data }) => {
    if (mine !== socket) return;
    wait = FIRST_WAIT;
    heardAt = Date.now();
    take(JSON.parse(data));
  };
  mine.onclose = () => {
    if (mine === socket && !over) again();
  };
}

function again() {
  socket = null;
  const pause = wait * (0.5 + Math.random() / 2);
  wait = Math.min(wait * 2, LONGEST_WAIT);
  if (connection.dataset.state !== "logged out") state("reconnecting", `reconnecting in ${(pause / 1000).toFixed(1)} s`);
  timer = setTimeout(connect, pause);
}

window.addEventListener("online", () => {
  if (!socket && !over) connect();
});

function take(message) {
  for (const event of message.events ?? []) {
    if (event.id <= last) continue; // asked for twice
    last = event.id;
    queue.push(event);
    if (CHANGES.test(event.type)) refreshFacts();
  }
  if (message.over) {
    over = true;
    state("over");
    socket.close();
    refreshFacts();
  }
  draw();
}

// A frame's worth of events at a time, so that thousands of them do not freeze the page.
function draw() {
  if (drawing || !queue.length) return;
  drawing = true;
  const frame = () => {
    const end = performance.now() + FRAME;
    let taken = 0;
    while (taken < queue.length && performance.now() < end) {
      toTranscript(queue[taken]);
      toLog(queue[taken]);
      taken += 1;
    }
    queue.splice(0, taken);
    trimLog();
    trimTranscript();
    keepUp();
    if (over && !queue.length) busyWith("");
    drawing = false;
    draw();
  };
  document.hidden ? setTimeout(frame, 250) : requestAnimationFrame(frame);
}

// A socket can look open and be dead: if the row has more than this page and nothing comes, open another.
setInterval(async () => {
  if (over || document.hidden || !socket || Date.now() - heardAt < SILENCE) return;
  await refreshFacts();
  const status = document.querySelector("[data-last-event]");
  if (status && Number(status.dataset.lastEvent) > last && Date.now() - heardAt >= SILENCE && socket) {
    const deaf = socket;
    again();
    deaf.close();
  }
}, SILENCE / 3);

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !over) refreshFacts();
});

startClocks();
state("connecting");
connect();

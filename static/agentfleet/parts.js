// Parts of a page that the server renders: fetched again, and swapped where they changed. And clocks that run.

const SHOWN = new Map(); // part → the markup last swapped in

// Put the newer [data-part] elements of `url` in place of the page's. False: the session is over.
export async function refresh(url) {
  const answer = await fetch(url, { credentials: "same-origin", cache: "no-store" });
  if (answer.redirected || answer.status === 403) return false;
  if (!answer.ok) return true;
  const newer = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of newer.querySelectorAll("[data-part]")) swap(part);
  const clock = newer.querySelector("[data-now]");
  if (clock) setClock(clock.dataset.now);
  runClocks();
  return true;
}

// Only what changed: a form that somebody is writing in stays as it is.
function swap(part) {
  const name = part.dataset.part;
  const markup = part.outerHTML;
  const old = document.querySelector(`[data-part="${CSS.escape(name)}"]`);
  if (!old || (SHOWN.get(name) ?? old.outerHTML) === markup) return;
  SHOWN.set(name, markup);
  old.replaceWith(document.adoptNode(part));
}

let skew = 0; // of the browser's clock against the server's, in milliseconds

function setClock(now) {
  skew = Date.now() - Date.parse(now);
}

const IN_WORDS = {
  since: (time) => time,
  ago: (time) => `${time} ago`,
  until: (time) => `in ${time}`,
  left: (time) => time,
};
const AHEAD = new Set(["until", "left"]);

// Write every [data-counts] time anew.
export function runClocks() {
  const now = Date.now() - skew;
  for (const clock of document.querySelectorAll("time[data-counts]")) {
    const at = Date.parse(clock.dateTime);
    const seconds = (AHEAD.has(clock.dataset.counts) ? at - now : now - at) / 1000;
    const text = IN_WORDS[clock.dataset.counts]?.(length(seconds)) ?? "";
    if (clock.textContent !== text) clock.textContent = text;
  }
}

export function startClocks() {
  const clock = document.querySelector("[data-now]");
  if (clock) setClock(clock.dataset.now);
  runClocks();
  setInterval(runClocks, 1000);
}

// 3 s, 4 min 05 s, 2 h 04 min, 3 d 4 h
export function length(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  if (whole < 48 * 3600) return `${Math.floor(whole / 3600)} h ${two(Math.floor(whole / 60) % 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor(whole / 3600) % 24} h`;
}

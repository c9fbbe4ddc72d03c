// The front page: one small fragment every five seconds, while somebody looks and never two at a time.

import { refresh, startClocks } from "./parts.js";

const EVERY = 5000;
const fleet = document.getElementById("fleet");

async function look() {
  if (!document.hidden) {
    try {
      if (!(await refresh(fleet.dataset.url))) location.reload(); // logged out: to the login page
    } catch {
      // The server is away: the next look finds it again.
    }
  }
  setTimeout(look, EVERY * (0.9 + Math.random() * 0.2));
}

if (fleet) {
  startClocks();
  setTimeout(look, EVERY);
}

// An agent's page: its images, every second while one is being built and now and then otherwise.

import { refresh } from "./parts.js";

const BUSY = 1000;
const QUIET = 5000;
const agent = document.getElementById("agent");

async function look() {
  if (!document.hidden) {
    try {
      if (!(await refresh(agent.dataset.images))) location.reload(); // logged out: to the login page
    } catch {
      // The server is away: the next look finds it again.
    }
  }
  wait();
}

function wait() {
  const busy = agent.querySelector('[data-part="images"][data-busy]');
  setTimeout(look, (busy ? BUSY : QUIET) * (0.9 + Math.random() * 0.2));
}

if (agent) wait();

// How the relay does, asked for every few seconds and handed to everybody who shows some of it.

import { every, get } from "./api.js";

const SECONDS = 5;

/** `now`: the last answer of /api/v1/status. */
export const status = { now: null };
const hears = new Set();
let asking = null;

/** Called with each answer, and at once if there is one. Gives the way to stop it. */
export function onStatus(hear) {
  hears.add(hear);
  if (status.now) hear(status.now);
  return () => hears.delete(hear);
}

export function start() {
  asking ??= every(SECONDS * 1000, async (signal) => {
    try {
      status.now = await get("/api/v1/status", {}, signal);
    } catch {
      return; // the header says that there is no answer
    }
    for (const hear of hears) hear(status.now);
  });
}

export const refresh = () => asking?.now();

export function stop() {
  asking?.stop();
  asking = null;
  status.now = null;
}

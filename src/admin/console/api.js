// What the page asks of the daemon. The token stays in this tab's sessionStorage and goes nowhere but into the
// Authorization field of requests to the place the page came from.
//
// Not here: what the answers mean (the views).

import { heardClock } from "./dom.js";

const KEY = "causeway.token";
/** An answer that takes longer than the daemon's own limit does not come. */
const PATIENCE = 40_000;

let token = "";
try {
  token = sessionStorage.getItem(KEY) ?? "";
} catch {
  // Without storage the token lasts until the page is loaded anew.
}

export const hasToken = () => token !== "";

export function setToken(text) {
  token = text.trim();
  try {
    if (token) sessionStorage.setItem(KEY, token);
    else sessionStorage.removeItem(KEY);
  } catch {
    // See above.
  }
}

/** Whether the daemon answers, for the header. `gone`: since when it does not, in ms. */
export const line = { gone: null, why: "", hears: new Set() };

function heard(gone, why = "") {
  const before = line.gone;
  line.gone = gone ? (line.gone ?? Date.now()) : null;
  line.why = why;
  if (before !== line.gone) for (const hear of line.hears) hear();
}

/** Called when the daemon says that the token is not the one. */
let refused = () => {};
export const onRefused = (act) => {
  refused = act;
};

/** The daemon said no, or nothing (status 0). */
export class Failure extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/** The part behind the question mark, without what says nothing. */
export function query(params) {
  const pairs = Object.entries(params).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return pairs.length ? `?${new URLSearchParams(pairs)}` : "";
}

async function ask(method, path, body, signal) {
  const headers = { Authorization: `Bearer ${token}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const patience = AbortSignal.timeout(PATIENCE);
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, patience]) : patience,
      cache: "no-store",
      redirect: "error",
      credentials: "omit",
      referrerPolicy: "no-referrer",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    const why = patience.aborted ? "no answer in time" : "no connection";
    heard(true, why);
    throw new Failure(0, `The daemon does not answer: ${why}.`);
  }
  heard(false);
  heardClock(response.headers.get("Date"));
  const answer = await response.json().catch(() => null);
  if (response.status === 401) refused();
  if (!response.ok) throw new Failure(response.status, answer?.error ?? `${response.status} ${response.statusText}`);
  if (answer === null) throw new Failure(response.status, "The answer is not JSON; is this address another program's?");
  return answer;
}

export const get = (path, params = {}, signal = undefined) => ask("GET", path + query(params), undefined, signal);
export const post = (path, body, signal = undefined) => ask("POST", path, body, signal);

/**
 * Does something now and every so often, one at a time, and not while nobody looks. `act` gets a signal that says when
 * its answer is wanted no longer. Gives `{now, stop}`.
 */
export function every(milliseconds, act) {
  let timer = 0;
  let control = new AbortController();
  let stopped = false;
  async function run() {
    clearTimeout(timer);
    control.abort();
    control = new AbortController();
    const mine = control;
    try {
      await act(mine.signal);
    } catch (error) {
      if (!mine.signal.aborted) console.error(error);
    }
    if (stopped || mine.signal.aborted) return;
    timer = setTimeout(wake, milliseconds);
  }
  function wake() {
    if (!document.hidden) run();
  }
  const seen = () => {
    if (!document.hidden) run();
  };
  document.addEventListener("visibilitychange", seen);
  run();
  return {
    now: run,
    stop() {
      stopped = true;
      clearTimeout(timer);
      control.abort();
      document.removeEventListener("visibilitychange", seen);
    },
  };
}

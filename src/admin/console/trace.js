// The life of a message: what happened to it, when, at which host, and the reasons of each decision, in the words that
// `causeway trace` has. The daemon answers from its index.

import { get } from "./api.js";
import { absolute, address, bytes, clock, counted, empty, field, fill, h, number, select, time, trouble } from "./dom.js";
import { go, link } from "./shell.js";

const FIELDS = ["id", "message_id", "from", "to", "since", "until"];
const SPANS = [["", "any time"], ["3600", "the last hour"], ["86400", "the last day"], ["604800", "the last week"], ["own", "from … to …"]];
const LIMIT = 20;

/** Event: how it went, and what it means. */
const EVENTS = {
  RECEIVE: ["calm", "came in"],
  RESOLVE: ["calm", "its way was decided"],
  REDIRECT: ["calm", "goes to another address"],
  EXPAND: ["calm", "became several recipients"],
  TRANSFER: ["calm", "a copy was split off"],
  SEND: ["good", "the next hop took it"],
  DEFER: ["warn", "not now; it is tried again"],
  FAIL: ["bad", "it could not be delivered"],
  DSN: ["calm", "a report was written"],
  DROP: ["bad", "nobody gets it, and nobody is told"],
  POISON: ["bad", "held: attempts ended inside the relay"],
};

export function trace(place, params) {
  let control = null;
  const text = (name, hint) => h("input", { type: "search", autocomplete: "off", spellcheck: "false", placeholder: hint, test: `trace-${name.replace("_", "-")}` });
  const inputs = { from: text("from", "a@example.com, or <>"), to: text("to", "b@example.net"), message_id: text("message_id", "<…@example.com>"), id: text("id", "000100000001") };
  const within = select(SPANS, "", { test: "trace-within" });
  const since = h("input", { type: "datetime-local", step: "1", "aria-label": "from" });
  const until = h("input", { type: "datetime-local", step: "1", "aria-label": "to" });
  const own = h("div", { class: "own-time" }, field("From", since), field("To", until));
  const form = h(
    "form",
    { class: "filters card", role: "search", "aria-label": "Search the tracking events" },
    field("Sender", inputs.from),
    field("Recipient", inputs.to),
    field("Message-ID", inputs.message_id),
    field("Id", inputs.id),
    field("When", within),
    own,
    h("div", { class: "buttons" }, h("button", { class: "primary", test: "trace-search" }, "Search"), h("button", { type: "button", on: { click: () => go("trace") } }, "Clear")),
  );
  const result = h("div", { class: "stories", "aria-live": "polite" });
  fill(place, h("div", { class: "bar" }, h("h1", {}, "Trace")), form, result);

  const showOwn = () => {
    own.hidden = within.value !== "own";
  };
  within.addEventListener("change", showOwn);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const next = {};
    for (const [name, input] of Object.entries(inputs)) if (input.value.trim()) next[name] = input.value.trim();
    if (within.value === "own") {
      if (since.value) next.since = new Date(since.value).toISOString();
      if (until.value) next.until = new Date(until.value).toISOString();
    } else if (within.value) next.within = within.value;
    if (JSON.stringify(next) === JSON.stringify(params)) ask();
    else go("trace", next);
  });

  const local = (iso) => (iso ? absolute(iso).replace(" ", "T") : "");
  function read(next) {
    params = next;
    for (const [name, input] of Object.entries(inputs)) input.value = params[name] ?? "";
    within.value = params.since || params.until ? "own" : (params.within ?? "");
    since.value = local(params.since);
    until.value = local(params.until);
    showOwn();
    ask();
  }

  async function ask() {
    control?.abort();
    const asked = Object.fromEntries(FIELDS.filter((key) => params[key]).map((key) => [key, params[key]]));
    if (params.within) asked.since = new Date(Date.now() - Number(params.within) * 1000).toISOString();
    if (Object.keys(asked).length === 0) {
      return fill(
        result,
        h("div", { class: "card" }, empty("Which message?", "Say what is known of it: its sender, its recipient, its Message-ID, or the number that “250 queued as …”, the log and the queue name it by. One is enough; several narrow it down.", "An address finds the message under the address it was sent to and under the one it became.")),
      );
    }
    control = new AbortController();
    const { signal } = control;
    if (!result.querySelector(".story")) fill(result, h("p", { class: "muted" }, "Searching…"));
    result.setAttribute("aria-busy", "true");
    try {
      const found = await get("/api/v1/trace", { ...asked, limit: LIMIT }, signal);
      fill(result, found.messages.length ? stories(found) : [(found.remarks ?? []).map((remark) => h("p", { class: "warn" }, remark)), nothing(asked)]);
    } catch (error) {
      if (signal.aborted) return;
      const hint = error.status === 404 ? "Without tracking events only the queue knows anything. [tracking] path in the configuration turns them on." : "";
      fill(result, h("div", { class: "card" }, trouble(error.message, hint)));
    }
    result.removeAttribute("aria-busy");
  }

  read(params);
  return { change: read, refresh: ask, search: () => inputs.from.focus(), stop: () => control?.abort() };
}

function nothing(asked) {
  const hints = ["Either it never came here, or it came under another address, or its events are older than tracking keeps them."];
  if (asked.since || asked.until) hints.push("The time is narrow: try any time.");
  if (asked.message_id) hints.push("A Message-ID is compared whole, with its angle brackets.");
  return h("div", { class: "card" }, empty("Nothing is known of such a message.", ...hints, h("p", {}, "What would become of it, ", h("a", { href: link("explain", { from: asked.from, to: asked.to }) }, "Explain"), " says.")));
}

function stories(found) {
  const single = found.messages.length === 1;
  return [
    (found.remarks ?? []).map((remark) => h("p", { class: "warn" }, remark)),
    !single && h("p", { class: "muted" }, `${counted(found.messages.length, "message")}${found.more ? `, and ${number(found.more)} more with earlier events: narrow the search to see them` : ""}`),
    found.messages.map((story, place) => card(story, single || place === 0)),
  ];
}

/** How it ended so far, by its last word on each recipient. */
function outcome(story) {
  const last = new Map();
  for (const event of story.events) {
    const to = event.to?.length ? event.to : ["*"];
    // Whoever a copy goes to has been heard of; what became of it may not have.
    if (["TRANSFER", "SEND", "DEFER", "FAIL", "DROP"].includes(event.event)) for (const one of to) last.set(`${event.relay} ${one}`, event.event);
  }
  const all = [...last.values()];
  if (all.some((one) => one === "FAIL" || one === "DROP")) return ["failed", "bad"];
  if (all.includes("DEFER")) return ["deferred", "warn"];
  if (all.length && all.every((one) => one === "SEND")) return ["delivered", "good"];
  return ["under way", "calm"];
}

function card(story, open, isReport = false) {
  const [word, tone] = outcome(story);
  const ids = story.ids ?? [];
  const relays = new Set(story.events.map((event) => event.relay));
  const first = story.events[0]?.time;
  const to = story.to ?? [];
  const head = h(
    "summary",
    {},
    h("span", { class: `badge ${tone}` }, h("i", { class: "dot", "aria-hidden": "true" }), word),
    h("span", { class: "story-title" }, isReport && h("span", { class: "muted" }, "report "), address(story.from), h("span", { class: "muted" }, " → "), address(to[0] ?? ""), to.length > 1 && h("span", { class: "more", title: to.join("\n") }, `+${to.length - 1}`)),
    first && time(first),
  );
  return h(
    "details",
    { class: `story ${isReport ? "report" : "card"}`, open, test: "trace-message" },
    head,
    h(
      "p",
      { class: "muted small wrap story-facts" },
      story.message_id ?? (ids.length ? "no Message-ID" : "refused before there was a message"),
      first && ` · ${absolute(first)}`,
      story.size != null && ` · ${bytes(story.size)}`,
      ids.map((one) => [" · ", h("a", { href: link("trace", { id: one.id }) }, `id ${one.id}`), relays.size > 1 && ` on ${one.relay}`]),
      ids.length > 0 && [" · ", h("a", { href: link("queue", { id: ids.map((one) => one.id).join(",") }) }, "in the queue?")],
    ),
    h("ol", { class: "timeline" }, story.events.map((event) => happened(event, first, relays.size > 1))),
    story.omitted > 0 && h("p", { class: "muted" }, `${number(story.omitted)} more events are not shown.`),
    (story.reports ?? []).map((report) => card(report, true, true)),
  );
}

/** The time since the first event, as trace says it on a terminal. */
function since(event, first) {
  const seconds = (Date.parse(event.time) - Date.parse(first)) / 1000;
  const two = (value) => String(Math.floor(value)).padStart(2, "0");
  if (seconds < 60) return `+${seconds.toFixed(3)}s`;
  if (seconds < 3600) return `+${Math.floor(seconds / 60)}m${two(seconds % 60)}s`;
  if (seconds < 86400) return `+${Math.floor(seconds / 3600)}h${two((seconds / 60) % 60)}m`;
  return `+${Math.floor(seconds / 86400)}d${two((seconds / 3600) % 24)}h`;
}

function happened(event, first, several) {
  const [tone, meaning] = EVENTS[event.event] ?? ["calm", ""];
  // A message that was refused has no number yet: its connector and peer are those that it came by.
  const received = event.event === "RECEIVE" || !event.id;
  const way = [
    event.connector && `${received ? "by" : "via"} ${event.connector}`,
    event.peer && `${received ? "from" : "at"} ${event.peer}`,
    event.tls,
    several && `on ${event.relay}`,
  ].filter(Boolean);
  return h(
    "li",
    { class: tone, test: "trace-event" },
    h("div", { class: "event-time" }, h("time", { datetime: event.time, title: `${absolute(event.time)} here\n${event.time}` }, clock(event.time)), h("span", { class: "muted small" }, since(event, first))),
    h(
      "div",
      { class: "event-body" },
      h("p", { class: "event-head" }, h("strong", {}, event.event), event.status && h("span", { class: "status" }, event.status), h("span", { class: "muted" }, meaning)),
      way.length > 0 && h("p", { class: "wrap" }, way.join(", ")),
      event.to?.length > 0 && h("p", { class: "wrap" }, h("span", { class: "muted" }, "to "), event.to.slice(0, 20).join(", "), event.to.length > 20 && ` and ${event.to.length - 20} more`),
      event.because?.length > 0 && h("ul", { class: "because" }, event.because.map((one) => h("li", {}, one))),
      event.detail && h("p", { class: "detail wrap" }, event.detail),
    ),
  );
}

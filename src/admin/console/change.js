// Changes to the queue: first what exactly would be touched, then the question, then step by step until all is done. As
// `causeway queue` does it: the dry run is the list with the same filter, and fixes how far it reaches (`up_to`), so that
// what comes meanwhile is not touched.

import { get, post } from "./api.js";
import { address, badge, counted, field, h, number, people, time } from "./dom.js";
import { ask, note } from "./shell.js";

/** Copies that a question names; the others are counted. */
const SHOWN = 10;
const PAGE = 1000;

/** How copies stand, as colours. */
export const STANDS = { waiting: "calm", active: "busy", deferred: "warn", held: "held" };

/** What each does, in words: the question, the button, what follows, what came of it. */
const VERBS = {
  hold: ["Hold", "What is held is not tried until somebody releases it, also after a restart.", "held"],
  release: ["Release", "What was held goes on.", "released"],
  retry: ["Retry", "Tried now, also where the next hop is left alone for a while.", "to be tried now"],
  bounce: ["Bounce", "Each sender gets a report that says it could not be delivered. There is no way back.", "returned to their senders"],
  remove: ["Remove", "Gone, and nobody is told: neither sender nor recipient. There is no way back.", "removed"],
};

export const VERB_NAMES = Object.entries(VERBS).map(([verb, [label]]) => [verb, label]);

const NAME = "causeway.who";
const remembered = () => {
  try {
    return localStorage.getItem(NAME) ?? "";
  } catch {
    return "";
  }
};

/** Everything that these filters mean now, and the filters made to mean no more than that. */
async function look(filters, say) {
  const first = [];
  let count = 0;
  const messages = new Set();
  const fixed = [];
  for (const filter of filters) {
    let bounded = filter;
    let cursor;
    do {
      const page = await get("/api/v1/queue", { ...bounded, limit: PAGE, cursor });
      if (!bounded.up_to) bounded = { ...filter, up_to: page.up_to };
      count += page.entries.length;
      for (const entry of page.entries) {
        if (first.length < SHOWN) first.push(entry);
        if (messages.size < 100_000) messages.add(entry.id);
      }
      cursor = page.next;
      if (cursor) say(`${number(count)} found so far …`);
    } while (cursor);
    fixed.push(bounded);
  }
  return { first, count, messages: messages.size, filters: fixed };
}

/**
 * Asks whether `verb` is to be done to what the filters mean, and does it. `all`: the one filter is empty, and everything
 * is meant. `words` says what was chosen.
 */
export async function change(verb, filters, { all = false, words = "", done = () => {} } = {}) {
  const [label, follows, past] = VERBS[verb];
  let found;
  const counting = note("Looking what this would touch …");
  try {
    found = await look(filters, counting.say);
  } catch (error) {
    return note(error.message, "bad");
  } finally {
    counting.away();
  }
  if (found.count === 0) {
    note("Nothing waits that is meant: it has gone on meanwhile.", "warn");
    return done();
  }
  const grave = verb === "bounce" || verb === "remove";
  const who = h("input", { type: "text", maxlength: 60, value: remembered(), autocomplete: "off", placeholder: "your name", test: "confirm-who" });
  const why = h("input", { type: "text", maxlength: 150, autocomplete: "off", test: "confirm-reason" });
  const rows = found.first.map((entry) =>
    h("tr", {}, h("td", {}, badge(entry.status, STANDS[entry.status])), h("td", {}, address(entry.from)), h("td", {}, people(entry.to, entry.recipients)), h("td", {}, `${entry.connector}${entry.hop === "smart-hosts" ? "" : ` (${entry.hop})`}`), h("td", { class: "figure" }, time(entry.accepted, "age"))),
  );
  const copies = counted(found.count, "copy", "copies");
  ask({
    title: `${label} ${copies}?`,
    yes: `${label} ${copies}`,
    grave,
    content: [
      h("p", { test: "confirm-text" }, `${copies} of ${counted(found.messages, "message")}${words ? `, ${words}` : ""}. `, follows),
      h("div", { class: "scroll" }, h("table", { class: "list tight" }, h("thead", {}, h("tr", {}, ["Stands", "From", "To", "Via", "Age"].map((one, place) => h("th", { scope: "col", class: place === 4 ? "figure" : null }, one)))), h("tbody", {}, rows))),
      found.count > rows.length && h("p", { class: "muted" }, `… and ${number(found.count - rows.length)} more`),
      h("div", { class: "fields two" }, field("Who", who, "stands in the tracking events"), field(verb === "bounce" ? "Why (stands in the report, too)" : "Why", why, "may be left empty")),
    ],
    async act(say) {
      try {
        localStorage.setItem(NAME, who.value.trim());
      } catch {
        // Asked again next time.
      }
      const sum = { changed: 0, busy: 0, passed: 0, failed: [] };
      for (const filter of found.filters) {
        let cursor;
        do {
          const step = await post(`/api/v1/queue/${verb}`, { filter, all, by: who.value.trim() || "the console", reason: why.value.trim() || undefined, cursor });
          sum.changed += step.changed;
          sum.busy += step.busy;
          sum.passed += step.passed;
          sum.failed.push(...step.failed);
          say(`${number(sum.changed)} of ${number(found.count)}`);
          cursor = step.next;
        } while (cursor);
      }
      tell(verb, past, sum);
      done();
    },
  });
}

function tell(verb, past, { changed, busy, passed, failed }) {
  const parts = [`${counted(changed, "copy", "copies")} ${past}.`];
  if (busy) parts.push(`${counted(busy, "copy is", "copies are")} being tried at this moment: ${verb === "hold" ? "held when they come back" : "hold them first, or try again"}.`);
  if (passed) parts.push(`${counted(passed, "copy", "copies")} needed nothing.`);
  for (const why of failed.slice(0, 3)) parts.push(`Not done: ${why}.`);
  const bad = failed.length > 0;
  note(parts.join(" "), bad ? "bad" : busy && verb !== "hold" ? "warn" : "good");
}

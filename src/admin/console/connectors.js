// The other ends: what each send connector demands, what its hosts last proved, until when their certificates last, what
// went wrong, and a test on demand. Below: our own certificates, and the next hops something waits for.

import { post } from "./api.js";
import { absolute, badge, counted, empty, fill, h, keyed, now as clockNow, number, setText, span, time } from "./dom.js";
import { link } from "./shell.js";
import { onStatus, refresh } from "./status.js";

const TONES = { up: "good", down: "bad", disabled: "calm", unused: "calm" };
const STATES = { up: "up", down: "down", disabled: "disabled", unused: "not used yet" };
/** What each level of the configuration demands. */
const DEMANDS = {
  off: "none: in the clear",
  opportunistic: "if offered, with any certificate",
  encrypt: "TLS, with any certificate",
  certificate: "TLS, a certificate that chains to the roots",
  domain: "TLS, a certificate that chains and carries the name",
  dane: "what the domain's TLSA records say",
};
const DAY = 86_400;
/** Somebody should renew it now. */
const SOON = 30 * DAY;

export function connectors(place) {
  const cards = h("div", { class: "connectors" });
  const own = h("div", { class: "card list-card" });
  const hops = h("div", { class: "card list-card" });
  const none = h("div", {});
  fill(place, h("div", { class: "bar" }, h("h1", {}, "Connectors")), none, cards, h("h2", {}, "Next hops with mail waiting"), hops, h("h2", {}, "Our own certificates"), own);
  const stop = onStatus((status) => {
    fill(none, status.connectors.length === 0 && empty("There is no send connector.", "Mail can leave only by one: see [[send_connector]] in the configuration."));
    keyed(cards, status.connectors, (one) => one.name, card);
    tellHops(hops, status.hops);
    tellOwn(own, status.certificates);
  });
  return { refresh, search: () => cards.querySelector("button")?.focus(), stop };
}

function expiry(when) {
  if (!when) return null;
  const left = (Date.parse(when) - clockNow()) / 1000;
  const tone = left < 0 ? "bad" : left < SOON ? "warn" : "";
  const words = left < 0 ? `ended ${span(-left)} ago` : `ends in ${span(left)}`;
  return h("span", { class: tone, title: `${absolute(when)} here\n${when}` }, words, h("span", { class: "muted" }, ` · ${absolute(when).slice(0, 10)}`));
}

function card(first) {
  const state = h("span", {});
  const demand = h("dd", {});
  const proved = h("dd", { class: "wrap" });
  const certificate = h("dd", {});
  const fault = h("dd", { class: "wrap" });
  const counts = h("dd", { class: "counts" });
  const waits = h("dd", {});
  const result = h("div", { class: "test-result", test: "connector-result", role: "status", hidden: true });
  const button = h("button", { type: "button", test: "connector-test", on: { click: test } }, "Test now");
  const faultName = h("dt", {}, "Last error");
  const element = h(
    "article",
    { class: "card connector", test: `connector-${first.name}`, "aria-label": first.name },
    h("header", {}, h("h2", {}, first.name), state, h("span", { class: "stretch" }), button),
    h(
      "dl",
      { class: "pairs" },
      h("dt", {}, "Demands"),
      demand,
      h("dt", {}, "Last proved"),
      proved,
      h("dt", {}, "Certificate"),
      certificate,
      faultName,
      fault,
      h("dt", {}, "Recipients"),
      counts,
      h("dt", {}, "Waiting"),
      waits,
    ),
    result,
  );
  let shown = "";

  async function test() {
    button.disabled = true;
    result.hidden = false;
    element.setAttribute("aria-busy", "true");
    fill(result, h("p", { class: "muted" }, "Connecting to its hosts, up to EHLO inside TLS; nothing is sent. This takes up to half a minute."));
    try {
      const answer = await post(`/api/v1/connectors/${encodeURIComponent(first.name)}/test`, {});
      fill(result, tested(answer));
    } catch (error) {
      fill(result, h("p", { class: "bad" }, error.message));
    }
    button.disabled = false;
    element.removeAttribute("aria-busy");
    refresh();
  }

  return {
    element,
    update(one) {
      // The days that are left change, too, but slowly.
      const sign = JSON.stringify([one, Math.floor(Date.now() / 60_000)]);
      if (sign === shown) return;
      shown = sign;
      fill(state, badge(STATES[one.state] ?? one.state, TONES[one.state] ?? "calm"));
      button.disabled = one.state === "disabled" || element.hasAttribute("aria-busy");
      element.classList.toggle("is-down", one.state === "down");
      fill(demand, h("span", { class: "word" }, one.tls), h("span", { class: "muted" }, ` ${DEMANDS[one.tls] ?? ""}`));
      fill(proved, one.proved ? [one.proved.what, h("span", { class: "muted" }, " · ", time(one.proved.at))] : h("span", { class: "none" }, one.state === "disabled" ? "nothing: it is disabled" : "nothing since the start; Test now looks"));
      fill(certificate, expiry(one.certificate_expires) ?? h("span", { class: "none" }, { off: "none is asked for", opportunistic: "any will do", encrypt: "any will do" }[one.tls] ?? "not seen yet"));
      faultName.hidden = fault.hidden = !one.fault;
      fault.className = `wrap ${one.state === "down" ? "bad" : ""}`;
      if (one.fault) fill(fault, one.fault.what, h("span", { class: "muted" }, " · ", time(one.fault.at)));
      const [delivered, deferred, failed] = one.counts;
      fill(counts, h("span", { class: delivered ? "good" : "muted" }, `${number(delivered)} delivered`), h("span", { class: deferred ? "warn" : "muted" }, `${number(deferred)} deferred`), h("span", { class: failed ? "bad" : "muted" }, `${number(failed)} failed`));
      const sum = one.ready + one.active + one.deferred;
      fill(waits, sum ? h("a", { href: link("queue", { connector: one.name }) }, `${counted(sum, "copy", "copies")}`) : "nothing", sum > 0 && h("span", { class: "muted" }, ` · ${number(one.ready)} ready, ${number(one.active)} active, ${number(one.deferred)} deferred`));
    },
  };
}

/** What a test found: the verdict, and each finding with the certificate that its host showed. */
function tested(answer) {
  const findings = answer.findings ?? [];
  const certificates = new Map((answer.hosts ?? []).filter((one) => one.tls).map((one) => [one.host, one.tls]));
  const level = { error: "bad", warning: "warn" };
  const line = (one) => {
    const tls = certificates.get(one.what);
    certificates.delete(one.what);
    return h("li", {}, badge(one.level, level[one.level] ?? "good"), h("span", { class: "wrap" }, h("strong", {}, one.what), " ", one.text, tls && shown(tls)));
  };
  // Where the connector takes whatever MX there is, no host can be named, and that is no fault.
  const [words, tone] = answer.ok ? ["Mail would flow.", "good"] : findings.some((one) => one.level === "error") ? ["Mail would not flow.", "bad"] : ["There was nothing to test.", "muted"];
  return [
    h("p", { class: `verdict ${tone}` }, words),
    h("ul", { class: "findings" }, findings.map(line)),
  ];
}

/** A host's certificate. */
function shown({ protocol, names = [], issuer, until }) {
  const more = names.length > 6 ? ` and ${names.length - 6} more` : "";
  const words = [protocol, `certificate for ${names.slice(0, 6).join(", ") || "no name"}${more}`, issuer && `issued by ${issuer}`];
  return h("span", { class: "certificate muted" }, words.filter(Boolean).join(", "), until && [", ", expiry(until)]);
}

/** The status says a next hop in words; the queue has a word for it. */
const inQueue = (hop) => (hop === "its smart hosts" ? "smart-hosts" : hop.replace(/^the MX of /, ""));

function tellHops(place, all) {
  if (!all.length) return fill(place, empty("No next hop has mail waiting."));
  let body = place.querySelector("tbody");
  if (!body) {
    body = h("tbody", {});
    fill(place, h("div", { class: "scroll" }, h("table", { class: "list hop-list" }, h("thead", {}, h("tr", {}, ["Next hop", "Connector"].map((one) => h("th", { scope: "col" }, one)), ["Ready", "Active", "Deferred", "Oldest"].map((one) => h("th", { scope: "col", class: "figure" }, one)), h("th", { scope: "col" }, "Last seen"))), body)));
  }
  keyed(body, all, (one) => `${one.connector} ${one.hop}`, (first) => {
    const cells = ["Ready", "Active", "Deferred", "Oldest"].map((label) => h("td", { class: "figure", "data-label": label }));
    const last = h("td", { class: "wrap", "data-label": "Last seen" });
    let shown = "";
    return {
      element: h("tr", {}, h("td", {}, h("a", { href: link("queue", { connector: first.connector, hop: inQueue(first.hop) }) }, first.hop)), h("td", { "data-label": "Connector" }, first.connector), cells, last),
      update(one) {
        [one.ready, one.active, one.deferred].forEach((value, index) => setText(cells[index], number(value)));
        const sign = JSON.stringify([one.oldest, one.last, one.resting === null]);
        if (sign === shown && one.resting === null) return;
        shown = sign;
        fill(cells[3], one.oldest ? time(one.oldest, "age") : "–");
        fill(last, one.last ?? h("span", { class: "none" }, "nothing bad"), one.resting != null && h("span", { class: "warn" }, ` · left alone for ${span(one.resting)}`));
      },
    };
  });
}

function tellOwn(place, all) {
  if (!all.length) return fill(place, empty("The configuration names no certificate."));
  const sign = JSON.stringify(all);
  if (place.dataset.shown === sign) return;
  place.dataset.shown = sign;
  fill(place, h("table", { class: "list own-list" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "File"), h("th", { scope: "col", class: "figure" }, "Ends"))), h("tbody", {}, all.map((one) => h("tr", {}, h("td", {}, h("span", { class: "address", title: one.file }, one.file), one.lost_names?.length ? h("div", { class: "warn" }, `no longer carries ${one.lost_names.join(", ")}`) : null), h("td", { class: "figure" }, expiry(one.expires)))))));
}

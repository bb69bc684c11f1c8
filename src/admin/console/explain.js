// What would become of a message, and why: asks the rules of the running daemon, and sends nothing. The answer is a tree:
// how it comes in, each recipient with what decided and what lost, and the copies at the end.

import { post } from "./api.js";
import { badge, counted, empty, field, fill, h, select, trouble } from "./dom.js";
import { go } from "./shell.js";

const ORIGINS = [["", "the Internet"], ["on-premises", "on-premises"], ["cloud", "the cloud"], ["partner", "a partner"], ["client", "a client"], ["ip", "an address …"]];
const UNITS = { "": 1, b: 1, kib: 1024, mib: 1024 ** 2, gib: 1024 ** 3 };

export function explain(place, params) {
  let control = null;
  const from = h("input", { type: "text", autocomplete: "off", spellcheck: "false", placeholder: "erin@fabrikam.com, or <>", test: "explain-from" });
  const to = h("textarea", { rows: 3, spellcheck: "false", placeholder: "one recipient a line", test: "explain-to" });
  const origin = select(ORIGINS, "", { test: "explain-origin" });
  const client = h("input", { type: "text", autocomplete: "off", spellcheck: "false", placeholder: "203.0.113.9", test: "explain-client" });
  const tlsName = h("input", { type: "text", autocomplete: "off", spellcheck: "false", placeholder: "mail.fabrikam.com", test: "explain-tls-name" });
  const size = h("input", { type: "text", autocomplete: "off", placeholder: "20MiB", test: "explain-size" });
  const clientField = field("Its address", client);
  const form = h(
    "form",
    { class: "explain-form card", "aria-label": "A message" },
    field("From", from),
    field("To", to),
    field("Comes from", origin),
    clientField,
    h("details", { class: "more-fields" }, h("summary", {}, "Certificate and size"), h("div", { class: "fields" }, field("Name in the client's certificate", tlsName), field("Size", size, "as MAIL declares it"))),
    h("div", { class: "buttons" }, h("button", { class: "primary", test: "explain-go" }, "Explain")),
    h("p", { class: "muted small" }, "Nothing is sent, and no other host is asked."),
  );
  const result = h("div", { class: "explained", "aria-live": "polite" });
  fill(place, h("div", { class: "bar" }, h("h1", {}, "Explain")), h("div", { class: "explain-columns" }, form, result));

  const showClient = () => {
    clientField.hidden = origin.value !== "ip";
  };
  origin.addEventListener("change", showClient);
  to.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const next = { from: from.value.trim(), to: recipients(to.value).join(" "), tls_name: tlsName.value.trim(), size: size.value.trim() };
    if (origin.value === "ip") next.client = client.value.trim();
    else next.origin = origin.value;
    for (const key of Object.keys(next)) if (!next[key]) delete next[key];
    if (JSON.stringify(next) === JSON.stringify(params)) ask();
    else go("explain", next);
  });

  function read(next) {
    params = next;
    from.value = params.from ?? "";
    to.value = recipients(params.to ?? "").join("\n");
    origin.value = params.client ? "ip" : (params.origin ?? "");
    client.value = params.client ?? "";
    tlsName.value = params.tls_name ?? "";
    size.value = params.size ?? "";
    if (params.tls_name || params.size) form.querySelector("details").open = true;
    showClient();
    ask();
  }

  async function ask() {
    control?.abort();
    const all = recipients(params.to ?? "");
    if (!all.length) {
      return fill(result, h("div", { class: "card" }, empty("What would become of a message?", "Type a sender and its recipients. The answer says for each of them what the directory knows, which rule or row chose the way and which ones lost, the next hop, what it must prove, and the copies in the end.", "It is what causeway explain prints, with the configuration that runs now.")));
    }
    const body = { from: params.from === "<>" ? "" : (params.from ?? ""), to: all };
    if (params.client) body.client = params.client;
    else if (params.origin) body.origin = params.origin;
    if (params.tls_name) body.tls_name = params.tls_name;
    if (params.size) {
      body.size = parseSize(params.size);
      if (body.size === null) return fill(result, h("div", { class: "card" }, trouble("Size: expected bytes, or such as 20MiB")));
    }
    control = new AbortController();
    const { signal } = control;
    result.setAttribute("aria-busy", "true");
    try {
      fill(result, tree(await post("/api/v1/explain", body, signal)));
    } catch (error) {
      if (signal.aborted) return;
      fill(result, h("div", { class: "card" }, trouble(error.message)));
    }
    result.removeAttribute("aria-busy");
  }

  read(params);
  return { change: read, refresh: ask, search: () => from.focus(), stop: () => control?.abort() };
}

/** Blanks, commas and new lines lie between them, but for those within quotes. */
const recipients = (text) => text.match(/(?:"(?:\\.|[^"\\])*"|[^\s,;"])+/g) ?? [];

function parseSize(text) {
  const [, amount, unit] = /^(\d+)\s*([a-z]*)$/i.exec(text) ?? [];
  const factor = UNITS[(unit ?? "").toLowerCase()];
  return amount === undefined || factor === undefined ? null : Number(amount) * factor;
}

/** A reason; what lost stands behind "lost:" and steps back. */
function reason(text) {
  const at = text.indexOf("lost:");
  if (at < 0) return h("li", {}, text);
  return h("li", {}, text.slice(0, at).replace(/;\s*$/, ""), h("span", { class: "lost" }, text.slice(at)));
}

function tree(answer) {
  const numbers = new Map(); // recipient as it goes out -> the copy it is in
  for (const copy of answer.copies) for (const one of copy.recipients) numbers.set(`${copy.via} ${copy.hop} ${one}`, copy.number);
  return [
    h(
      "section",
      { class: "card step" },
      h("h2", {}, "Comes in"),
      h("p", {}, h("strong", {}, answer.connector), h("span", { class: "muted" }, ` · origin ${answer.origin} · ${answer.internal ? "internal" : "not internal"}`)),
      h("ul", { class: "because" }, answer.comes_in.map(reason)),
      answer.refused && refusal({ reply: answer.refused }, "Refused at MAIL"),
    ),
    answer.recipients.map((one) => recipient(one, numbers)),
    answer.copies.length > 0 &&
      h(
        "section",
        { class: "card step" },
        h("h2", {}, counted(answer.copies.length, "copy", "copies")),
        h(
          "div",
          { class: "copies" },
          answer.copies.map((copy) =>
            h(
              "article",
              { class: "out", test: "explain-copy" },
              h("h3", {}, h("span", { class: "copy-number" }, String(copy.number)), copy.via),
              h("p", { class: "wrap" }, copy.hop),
              h("ul", { class: "plain-list" }, copy.recipients.map((to) => h("li", { class: "wrap" }, h("code", {}, `RCPT TO:<${to}>`)))),
              h("p", { class: "muted small" }, "TLS: ", copy.tls),
            ),
          ),
        ),
      ),
  ];
}

function recipient(one, numbers) {
  const refused = Boolean(one.refused);
  const routes = one.routes ?? [];
  const failed = one.failed ?? [];
  // The members of a group share the way to it: what was said before is not said again.
  let said = [];
  const fresh = (because) => {
    let shared = 0;
    while (shared < because.length && because[shared] === said[shared]) shared++;
    said = because;
    return because.slice(shared);
  };
  return h(
    "section",
    { class: `card step ${refused ? "refused" : ""}`, test: "explain-recipient" },
    h("h2", { class: "wrap" }, one.to, " ", refused ? badge("refused", "bad") : badge(routes.length > 1 ? `${routes.length} ways` : "taken", "good")),
    one.because && h("ul", { class: "because" }, one.because.map(reason)),
    refused && refusal(one.refused, "Refused at RCPT"),
    routes.map((route) => [
      h("ul", { class: "because" }, fresh(route.because).map(reason)),
      h(
        "div",
        { class: "branch" },
        h("p", { class: "wrap" }, h("strong", {}, route.via), h("span", { class: "muted" }, " → "), route.hop, numbers.has(`${route.via} ${route.hop} ${route.as}`) && h("span", { class: "muted" }, ` · copy ${numbers.get(`${route.via} ${route.hop} ${route.as}`)}`)),
        route.as !== one.to && h("p", { class: "wrap" }, h("span", { class: "muted" }, "as "), route.as),
        h("p", { class: "muted small" }, "TLS: ", route.tls),
      ),
    ]),
    failed.map((lost) => [h("ul", { class: "because" }, fresh(lost.because).map(reason)), h("div", { class: "branch bad-branch" }, h("p", { class: "wrap" }, h("span", { class: "muted" }, "not to "), lost.address), refusal(lost.refused, ""))]),
  );
}

function refusal(refused, title) {
  return h(
    "div",
    { class: "refusal" },
    (title || refused.why) && h("p", {}, title && h("strong", {}, title), title && refused.why && ": ", refused.why),
    refused.at_first && h("p", {}, h("span", { class: "muted" }, `for the first ${Math.round(refused.at_first.seconds / 60)} min `), h("code", {}, refused.at_first.reply)),
    refused.reply && h("p", {}, refused.at_first && h("span", { class: "muted" }, "then "), h("code", {}, refused.reply)),
  );
}

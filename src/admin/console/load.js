// Throughput, latency, what waits: over ten minutes, two hours, a day. The pictures share one cursor, so that a peak of one
// can be held against the others.

import { every, get } from "./api.js";
import { choice, empty, fill, h, number, setText, trouble } from "./dom.js";
import { go } from "./shell.js";
import uPlot from "./vendor/uplot/uPlot.esm.js";

const RANGES = [["10m", "10 min"], ["2h", "2 h"], ["24h", "24 h"]];
/** How often each range is worth asking for, in seconds. */
const SECONDS = { "10m": 5, "2h": 20, "24h": 120 };

const rate = (value) => (Number.isInteger(value) ? number(value) : value >= 100 ? number(Math.round(value)) : value >= 10 ? value.toFixed(1) : value.toFixed(2));
const milliseconds = (value) => (value >= 10_000 ? `${(value / 1000).toFixed(0)} s` : value >= 1000 ? `${(value / 1000).toFixed(1)} s` : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`);

/** Title, what it counts, series (field, name, colour, broken line), how a value is said. */
const CHARTS = [
  { title: "Throughput", unit: "a second", say: rate, series: [["accepted", "accepted", "--line-1"], ["delivered", "delivered", "--line-good"], ["deferred", "deferred", "--line-warn"], ["failed", "failed", "--line-bad"], ["refused", "refused", "--line-2", true]] },
  { title: "Latency", unit: "at most so long took half of the mail (p50), 99 in 100 (p99)", say: milliseconds, log: true, series: [["commit_p50", "to disk p50", "--line-1", true], ["commit_p99", "to disk p99", "--line-1"], ["delivery_p50", "to next hop p50", "--line-2", true], ["delivery_p99", "to next hop p99", "--line-2"]] },
  { title: "Waiting", unit: "copies, connections", say: (value) => number(Math.round(value)), series: [["waiting", "waiting", "--line-warn"], ["connections", "connections", "--line-1", true]] },
];

export function load(place, params) {
  let range = SECONDS[params.range] ? params.range : "10m";
  let data = null;
  let asking = null;
  let charts = [];
  const choices = h("div", {});
  const fault = h("div", {});
  const wrapper = h("div", { class: "charts", test: "load-chart" });
  fill(place, h("div", { class: "bar" }, h("h1", {}, "Load"), choices), fault, wrapper);

  function draw() {
    for (const chart of charts) chart.destroy();
    charts = [];
    if (!data) return;
    if (data.times.length === 0) return fill(wrapper, h("div", { class: "card" }, empty("Nothing was measured yet.", "The first figures come a few seconds after the start.")));
    fill(wrapper);
    charts = CHARTS.map((chart) => oneChart(wrapper, chart, data));
  }

  function begin() {
    asking?.stop();
    fill(choices, choice("Time", RANGES, range, (value) => go("load", { range: value === "10m" ? "" : value })));
    let fresh = true;
    asking = every(SECONDS[range] * 1000, async (signal) => {
      try {
        data = await get("/api/v1/load", { range }, signal);
        fill(fault);
      } catch (error) {
        if (signal.aborted) return;
        if (error.status || !data) fill(fault, trouble(error.message));
        return;
      }
      if (fresh || !charts.length) draw();
      else for (const chart of charts) chart.take(data);
      fresh = false;
    });
  }

  let width = 0;
  const resize = new ResizeObserver(() => {
    if (width !== wrapper.clientWidth) for (const chart of charts) chart.fit();
    width = wrapper.clientWidth;
  });
  resize.observe(wrapper);
  // The colours are drawn, not styled: another theme draws anew.
  window.addEventListener("causeway:theme", draw);
  begin();

  return {
    change(next) {
      const wanted = SECONDS[next.range] ? next.range : "10m";
      if (wanted === range) return;
      range = wanted;
      begin();
    },
    refresh: () => asking.now(),
    search: () => choices.querySelector("button")?.focus(),
    stop() {
      asking.stop();
      resize.disconnect();
      window.removeEventListener("causeway:theme", draw);
      for (const chart of charts) chart.destroy();
    },
  };
}

/** A line needs two points: one that stands alone, as after a start, is drawn as a dot. */
function alone(plot, index) {
  const values = plot.data[index];
  return values.reduce((found, value, at) => {
    if (value != null && values[at - 1] == null && values[at + 1] == null) found.push(at);
    return found;
  }, []);
}

function oneChart(wrapper, { title, unit, say, series, log }, data) {
  const styles = getComputedStyle(document.documentElement);
  const colour = (name) => styles.getPropertyValue(name).trim();
  const legend = h("div", { class: "chart-legend" });
  const canvas = h("div", { class: "chart" });
  const card = h("section", { class: "card chart-card", "aria-label": title }, h("header", {}, h("h2", {}, title), h("span", { class: "muted small" }, unit), legend), canvas);
  wrapper.append(card);

  const values = series.map(([, name, line, broken]) => {
    const value = h("span", { class: "chart-value" });
    const swatch = h("i", { class: broken ? "swatch broken" : "swatch", "aria-hidden": "true" });
    swatch.style.borderColor = colour(line);
    legend.append(h("span", { class: "chart-key" }, swatch, name, value));
    return value;
  });
  // On a logarithmic scale there is no nothing: it is left out.
  const rows = (from) => [from.times, ...series.map(([field]) => (from[field] ?? from.times.map(() => null)).map((value) => (log && value !== null && value <= 0 ? 0.1 : value)))];

  function tell(plot) {
    const at = plot.cursor.idx ?? null;
    series.forEach((_, index) => {
      const line = plot.data[index + 1];
      let place = at;
      // Without a cursor: the last that is known.
      if (place === null) for (place = line.length - 1; place > 0 && line[place] == null; ) place--;
      const value = line[place];
      setText(values[index], value == null ? "–" : say(value));
    });
  }

  const axis = { stroke: colour("--muted"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const height = () => (window.innerWidth < 700 ? 180 : 210);
  const top = (_, __, max) => [0, max > 0 ? max * 1.1 : 1];
  const plot = new uPlot(
    {
      width: canvas.clientWidth || 300,
      height: height(),
      // The last time stands under the last line, and half of it beyond.
      padding: [8, 30, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: "causeway" }, points: { size: 7 }, drag: { x: false, y: false } },
      scales: { x: { time: true }, y: log ? { distr: 3, range: (_, min, max) => [Math.min(min || 1, 1), Math.max(max || 10, 10) * 1.3] } : { range: top } },
      axes: [
        { ...axis, size: 28, space: 90, values: [[86400, "{YYYY}-{MM}-{DD}", null, null, null, null, null, null, 1], [60, "{HH}:{mm}", null, null, null, null, null, null, 1], [1, "{HH}:{mm}:{ss}", null, null, null, null, null, null, 1]] },
        { ...axis, size: 58, values: (_, splits) => splits.map((value) => (value === null ? "" : say(value))), ...(log ? { filter: (_, splits) => splits.map((value) => (/^1(0*)$|^0\.1$/.test(String(value)) ? value : null)) } : {}) },
      ],
      series: [{}, ...series.map(([, , line, broken]) => ({ stroke: colour(line), width: 1.75, dash: broken ? [5, 4] : undefined, points: { show: true, size: 5, fill: colour(line), filter: alone }, spanGaps: false }))],
      hooks: { setCursor: [tell], setData: [tell] },
    },
    rows(data),
    canvas,
  );
  tell(plot);
  return {
    take: (next) => plot.setData(rows(next)),
    fit: () => plot.setSize({ width: canvas.clientWidth, height: height() }),
    destroy() {
      plot.destroy();
      card.remove();
    },
  };
}

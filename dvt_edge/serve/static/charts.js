// The charts of the last minutes: one value a second, drawn once a second.

/* global uPlot */

const HEIGHT = 160;
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const exitColor = (k) => `--exit-${(k % 6) + 1}`;
const number = (value) => Number(value.toPrecision(3)).toString();

/** Rows as the server sends them. */
const BIN_S = 5; // exits of single seconds are noise
const AT = 0, LIMIT = 1, LATENCY = 2, SLOWEST = 3, AGE = 4, ENERGY = 5, WITH_ENERGY = 6, EXITS = 8;

export class Charts {
  constructor(hello) {
    this.exits = hello.exits;
    this.window = hello.window_s;
    this.rows = new Map();
    this.now = 0;
    const line = (label, color, more) => ({
      label, stroke: () => style(color), width: 2, points: { show: false }, ...more,
    });
    this.charts = {
      latency: this.make("latency-chart", [
        line("slowest", "--exit-6", { width: 1, dash: [2, 3] }),
        line("mean", "--ink"),
        line("budget", "--accent", { width: 1.5, dash: [6, 4], paths: uPlot.paths.stepped({ align: 1 }) }),
      ], { scales: { y: { range: () => [0, 1.15 * this.top()] } } }),
      exits: this.make("exits-chart", [...Array(this.exits).keys()].reverse().map((k) =>
        line(`up to exit ${k + 1}`, exitColor(k), {
          width: 0, fill: () => style(exitColor(k)), paths: uPlot.paths.stepped({ align: 1 }),
        })), {
        scales: { y: { range: [0, 100] } },
      }),
      age: this.make("age-chart", [line("mean", "--ink")]),
    };
    if (hello.energy) {
      this.charts.energy = this.make("energy-chart", [line("mean", "--ink")]);
    }
    new ResizeObserver(() => this.resize()).observe(document.getElementById("latency-chart"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  make(id, series, more = {}) {
    const box = document.getElementById(id);
    const axis = { stroke: () => style("--soft"), grid: { stroke: () => style("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const minutes = (u, values) => values.map((v) => (v === 0 ? "now" : `${-v / 60} min`));
    return new uPlot({
      width: box.clientWidth || 300, height: HEIGHT, legend: { show: false }, cursor: { show: false },
      padding: [8, 14, 0, 0],
      series: [{}, ...series],
      axes: [
        { ...axis, size: 26, splits: () => [-300, -240, -180, -120, -60, 0], values: minutes },
        { ...axis, size: 46, space: 32 },
      ],
      ...more,
      scales: { x: { time: false, range: [-this.window, 0] }, y: { range: (u, min, max) => [0, (max || 1) * 1.1] }, ...more.scales },
    }, null, box);
  }

  /** More seconds; `now` is the one that is not over yet. */
  add(rows, now) {
    for (const row of rows) this.rows.set(row[AT], row);
    if (now === this.now) return;
    this.now = now;
    for (const at of this.rows.keys()) if (at < now - this.window) this.rows.delete(at);
    this.draw();
  }

  frames(row) {
    return row.slice(EXITS).reduce((sum, count) => sum + count, 0);
  }

  /** Of the seconds from `since` on, a minute at most; null where there are none. */
  lately(since = 0) {
    const from = Math.max(since, this.now - 60);
    const rows = [...this.rows.values()].filter((row) => row[AT] >= from);
    const frames = rows.reduce((sum, row) => sum + this.frames(row), 0);
    if (frames === 0) return null;
    const sum = (column) => rows.reduce((total, row) => total + row[column], 0);
    const measured = sum(WITH_ENERGY);
    return {
      frames,
      seconds: rows.length,
      latency: sum(LATENCY) / frames,
      slowest: Math.max(...rows.map((row) => row[SLOWEST])),
      age: sum(AGE) / frames,
      energy: measured > 0 ? sum(ENERGY) / measured : null,
      exits: [...Array(this.exits).keys()].map((k) => sum(EXITS + k) / frames),
    };
  }

  /** What the latency's axis must hold: rare slow frames would hide all the rest. */
  top() {
    const rows = [...this.rows.values()];
    const slowest = rows.map((row) => row[SLOWEST]).sort((a, b) => a - b);
    const means = rows.map((row) => row[LATENCY] / this.frames(row));
    const limits = rows.map((row) => row[LIMIT] ?? 0);
    return Math.max(...means, ...limits, slowest[Math.floor(0.9 * slowest.length)] ?? 0) || 1;
  }

  /** Up to exit k, in percent, of the seconds that share a bin with each. */
  binned(k) {
    const bins = new Map();
    for (const row of this.rows.values()) {
      const bin = Math.floor(row[AT] / BIN_S);
      const sums = bins.get(bin) ?? [0, 0];
      sums[0] += row.slice(EXITS, EXITS + k + 1).reduce((a, b) => a + b);
      sums[1] += this.frames(row);
      bins.set(bin, sums);
    }
    return (row) => {
      const [upTo, all] = bins.get(Math.floor(row[AT] / BIN_S));
      return (100 * upTo) / all;
    };
  }

  draw() {
    const x = [...Array(this.window).keys()].map((k) => k - this.window);
    const column = (value) => x.map((ago) => {
      const row = this.rows.get(this.now + ago);
      return row === undefined ? null : value(row, this.frames(row));
    });
    this.charts.latency.setData([x, column((r) => r[SLOWEST]), column((r, n) => r[LATENCY] / n), column((r) => r[LIMIT])]);
    this.charts.exits.setData([x, ...[...Array(this.exits).keys()].reverse().map((k) => column(this.binned(k)))]);
    this.charts.age.setData([x, column((r, n) => r[AGE] / n)]);
    this.charts.energy?.setData([x, column((r) => (r[WITH_ENERGY] > 0 ? r[ENERGY] / r[WITH_ENERGY] : null))]);
    this.say(this.lately());
  }

  /** What the charts show of the last minute, as text. */
  say(last) {
    const put = (id, text) => { document.getElementById(id).textContent = text; };
    put("latency-said", last ? `· last minute ${number(last.latency)}, slowest ${number(last.slowest)}` : "");
    put("exits-said", last ? `· last minute ${last.exits.map((share) => `${Math.round(100 * share)} %`).join(" / ")}` : "");
    put("age-said", last ? `· last minute ${number(last.age)}` : "");
    put("energy-said", last && last.energy !== null ? `· last minute ${number(last.energy)}` : "");
  }

  resize() {
    for (const chart of Object.values(this.charts)) {
      const width = chart.root.parentElement.clientWidth;
      if (width > 0 && width !== chart.width) chart.setSize({ width, height: HEIGHT });
    }
  }
}

"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const exits = [...Array(data.exits).keys()];
  const axes = {
    latency: { key: "latency_ms", unit: "ms", name: "mean latency" },
    energy: { key: "energy_mj", unit: "mJ", name: "mean energy" },
  };
  const rightness = data.labelled ? "accuracy" : "agreement with the last exit";
  const slider = byId("budget");
  let axis = "latency"; // what the budget is in
  let pace = "back_to_back";
  let source = "records"; // what the classes are counted on
  let shown = null; // the point that all figures are of
  let limit = null; // the budget; null for the profile's own
  let drawn = false;

  // Numbers ---------------------------------------------------------------------------------------

  const amount = (value) => value.toFixed(value < 10 ? 3 : value < 100 ? 2 : 1);
  const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
  const signed = (value, digits) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
  const cost = (point) => point[axes[axis].key];
  const curve = () => data.frontiers[axis];

  /** The most accurate point that costs at most `most`; the cheapest where all cost more. */
  const best = (most) => curve().filter((point) => cost(point) <= most).at(-1) ?? curve()[0];

  const profilePoint = () => data.operating.point ?? best(data.operating.start[axis] ?? 0);

  function thresholdText(point, k) {
    if (k === data.exits - 1) return "all that are left";
    const threshold = point.thresholds[k];
    if (threshold === null) return "none leave";
    return threshold <= 0 ? "all leave" : threshold.toFixed(4);
  }

  // What the slider moves -------------------------------------------------------------------------

  function steer() {
    const points = curve();
    const [least, most] = [cost(points[0]), cost(points.at(-1))];
    slider.min = least;
    slider.max = most;
    slider.disabled = least === most;
    const start = data.operating.start[axis] ?? cost(profilePoint());
    const value = limit ?? start;
    slider.value = Math.min(Math.max(value, least), most);
    shown = limit === null ? profilePoint() : best(limit);
    const { unit, name } = axes[axis];
    byId("budget-name").textContent = `Budget, ${name}`;
    byId("budget-value").textContent = `${amount(value)} ${unit}`;
    byId("budget-least").textContent = `${amount(least)} ${unit}`;
    byId("budget-most").textContent = `${amount(most)} ${unit}`;
    byId("reset").disabled = limit === null;
    showFigures();
    redraw();
  }

  function showFigures() {
    const all = data.single_exits.at(-1);
    byId("accuracy").textContent = percent(shown.accuracy, 2);
    byId("latency").textContent = `${amount(shown.latency_ms)} ms`;
    if (shown.energy_mj !== null) byId("energy").textContent = `${amount(shown.energy_mj)} mJ`;
    const saved = [`${signed(100 * (shown.latency_ms / all.latency_ms - 1), 0)} % latency`];
    if (shown.energy_mj !== null) {
      saved.push(`${signed(100 * (shown.energy_mj / all.energy_mj - 1), 0)} % energy`);
    }
    saved.push(`${signed(100 * (shown.accuracy - all.accuracy), 2)} points`);
    byId("against").textContent = saved.map((text) => text.replaceAll(" ", "\u00a0")).join(", ");
    for (const k of exits) {
      document.querySelector(`[data-threshold="${k + 1}"]`).textContent = thresholdText(shown, k);
      document.querySelector(`[data-share="${k + 1}"]`).textContent = percent(shown.exit_fraction[k]);
    }
    const spoken = `${byId("budget-value").textContent}: ${rightness} ${percent(shown.accuracy, 2)}`;
    slider.setAttribute("aria-valuetext", spoken);
    const shares = exits.map((k) => `exit ${k + 1} ${percent(shown.exit_fraction[k])}`);
    byId("shares").setAttribute("aria-label", `Share of frames per exit: ${shares.join(", ")}`);
  }

  // Charts ----------------------------------------------------------------------------------------

  const paper = matchMedia("print");
  const paperWidth = 640; // pixels, of A4 and Letter upright; the sheet is laid out after drawing
  const config = { displayModeBar: false, responsive: true, scrollZoom: false };
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const exitColor = (k) => color(`--exit-${(k % 6) + 1}`);

  /** `color` is #rrggbb. */
  const faint = (hex, alpha) =>
    `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",")},${alpha})`;

  function layout(id, changes) {
    const line = { gridcolor: color("--line"), zeroline: false, linecolor: color("--line") };
    const { xaxis = {}, yaxis = {}, ...rest } = changes;
    const titled = ({ title, ...other }) =>
      title ? { ...other, title: { text: title, font: { size: 13 }, standoff: 12 } } : other;
    return {
      ...(paper.matches
        ? { width: paperWidth, height: byId(id).clientHeight }
        : { autosize: true }),
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: color("--sans"), size: 13, color: color("--soft") },
      hoverlabel: {
        bgcolor: color("--card"), bordercolor: color("--line"),
        font: { family: color("--sans"), size: 13, color: color("--ink") }, align: "left",
      },
      dragmode: false, // a finger on a chart scrolls the page
      showlegend: false,
      xaxis: { ...line, fixedrange: true, ...titled(xaxis) },
      yaxis: { ...line, fixedrange: true, ...titled(yaxis) },
      ...rest,
    };
  }

  const about = (point) =>
    `${percent(point.accuracy, 2)}<br>${amount(point.latency_ms)} ms` +
    (point.energy_mj === null ? "" : `<br>${amount(point.energy_mj)} mJ`) +
    `<br>exits ${point.exit_fraction.map((share) => percent(share, 0)).join(" / ")}`;

  function series(name, points, changes) {
    return {
      type: "scatter", mode: "markers", name,
      x: points.map(cost), y: points.map((point) => 100 * point.accuracy),
      text: points.map(about), hovertemplate: `<b>${name}</b><br>%{text}<extra></extra>`,
      ...changes,
    };
  }

  function drawTradeoff() {
    const [ink, soft, card, accent] = ["--ink", "--soft", "--card", "--accent"].map(color);
    const last = data.exits - 1;
    const traces = [
      series("the authors' rule", data.authors, {
        marker: { size: 6, color: card, line: { width: 1.5, color: soft } },
      }),
      ...(data.recorded.length
        ? [series("the checkpoint's thresholds", data.recorded, {
            marker: { size: 7, symbol: "diamond-open", color: soft },
          })]
        : []),
      series("best thresholds", curve(), {
        mode: "lines+markers", line: { color: ink, width: 2 }, marker: { size: 4, color: ink },
      }),
      series("all frames at one exit", data.single_exits.slice(0, last), {
        showlegend: false, mode: "markers+text", textposition: "bottom right", cliponaxis: false,
        texttemplate: data.single_exits.slice(0, last).map((_, k) => `all at exit ${k + 1}`),
        marker: { size: 10, symbol: "square", color: exits.map(exitColor) },
      }),
      series("static: all frames through all stages", data.single_exits.slice(last), {
        showlegend: false, mode: "markers+text", textposition: "bottom left", cliponaxis: false,
        texttemplate: ["static"],
        marker: { size: 12, symbol: "square", color: exitColor(last) },
      }),
      series("this budget", [shown], {
        cliponaxis: false,
        marker: { size: 16, color: accent, line: { width: 3, color: card } },
      }),
    ];
    const { unit, name } = axes[axis];
    byId("tradeoff-title").textContent =
      `${rightness[0].toUpperCase()}${rightness.slice(1)} against ${name}`;
    const budget = limit ?? data.operating.start[axis];
    const reach = Math.max(...data.single_exits.map(cost));
    Plotly.react("tradeoff", traces, layout("tradeoff", {
      showlegend: true,
      margin: { l: 52, r: 14, t: 8, b: 50 },
      // Where accuracy costs something, this corner is empty.
      legend: { x: 1, xanchor: "right", y: 0.02, yanchor: "bottom", bgcolor: color("--card") },
      xaxis: { title: `${name} per frame, ${unit}`, range: [0, 1.06 * reach] },
      yaxis: { title: `${rightness}, %` },
      hovermode: "closest",
      shapes: budget === undefined || budget > 1.06 * reach ? [] : [{
        type: "line", x0: budget, x1: budget, yref: "paper", y0: 0, y1: 1, layer: "below",
        line: { color: accent, width: 1.5, dash: "dot" },
      }],
    }), config);
  }

  function drawShares() {
    Plotly.react("shares", exits.map((k) => ({
      type: "bar", orientation: "h", x: [100 * shown.exit_fraction[k]], y: [""],
      marker: { color: exitColor(k), line: { width: 1, color: color("--card") } },
      hovertemplate: `exit ${k + 1}: %{x:.1f} %<extra></extra>`,
    })), layout("shares", {
      barmode: "stack", bargap: 0.1, margin: { l: 0, r: 0, t: 4, b: 4 },
      xaxis: { visible: false, range: [0, 100] }, yaxis: { visible: false },
    }), config);
  }

  function drawClasses() {
    const count = data.classes.length;
    const measured = source === "data" ? data.measurement.data.class_exit_fraction : null;
    const share = (c, k) => measured
      ? (measured[data.classes[c].name]?.[k] ?? 0)
      : shown.class_exits[c][k] / data.classes[c].images;
    const counted = (c, k) => measured
      ? ""
      : `, ${shown.class_exits[c][k]} of ${data.classes[c].images} images`;
    const short = (name) => (name.length > 22 ? `${name.slice(0, 21)}…` : name);
    const rows = [...Array(count).keys()];
    byId("classes").style.height = `${52 + 26 * count}px`;
    Plotly.react("classes", exits.map((k) => ({
      type: "bar", orientation: "h", name: `exit ${k + 1}`, y: rows,
      x: rows.map((c) => 100 * share(c, k)),
      customdata: rows.map((c) => [data.classes[c].name, counted(c, k)]),
      marker: { color: exitColor(k), line: { width: 1, color: color("--card") } },
      hovertemplate:
        `<b>%{customdata[0]}</b><br>exit ${k + 1}: %{x:.1f} %%{customdata[1]}<extra></extra>`,
    })), layout("classes", {
      barmode: "stack", bargap: 0.22,
      margin: { l: 8, r: 14, t: 4, b: 44 },
      xaxis: { range: [0, 100], title: "share of the class's images, %" },
      yaxis: {
        autorange: "reversed", automargin: true, showgrid: false, ticklen: 6,
        tickcolor: "rgba(0,0,0,0)", tickmode: "array", tickvals: rows,
        ticktext: data.classes.map((row) => short(row.name)),
      },
    }), config);
  }

  /** Edges and counts without the last bin where that gathers all the slowest runs: drawn as high
   *  as the others and many times as wide, it would look like most of them. */
  function bins({ edges_ms: edges, counts }) {
    const width = (k) => edges[k + 1] - edges[k];
    const last = counts.length - 1;
    const gathers = last > 0 && width(last) > 2 * width(last - 1);
    return gathers ? [edges.slice(0, -1), counts.slice(0, -1)] : [edges, counts];
  }

  /** Outlines of histograms: x are the edges, on a logarithmic axis. */
  function drawHistogram(id, distributions, name) {
    const traces = distributions.flatMap((times, k) => {
      const [edges, counts] = bins(times);
      return edges.length < 2 ? [] : [{
        type: "scatter", mode: "lines", name: `${name} ${k + 1}`, fill: "tozeroy",
        x: [edges[0], ...edges], y: [0, ...counts.map((n) => (100 * n) / times.runs), 0],
        line: { shape: "hv", width: 1.5, color: exitColor(k) },
        fillcolor: faint(exitColor(k), 0.25),
        hovertemplate: `${name} ${k + 1}: %{y:.1f} % of the runs from %{x:.3g} ms<extra></extra>`,
      }];
    });
    const logarithmic = { type: "log", title: "milliseconds, logarithmic", dtick: "D2", tickformat: "~g" };
    if (traces.length === 0) {
      drawPercentiles(id, distributions, name, logarithmic);
      return;
    }
    Plotly.react(id, traces, layout(id, {
      hovermode: "closest", margin: { l: 48, r: 10, t: 8, b: 50 },
      xaxis: logarithmic, yaxis: { title: "runs, %", rangemode: "tozero" },
    }), config);
  }

  /** For want of histograms: from the median to the 99th percentile. */
  function drawPercentiles(id, distributions, name, xaxis) {
    const ranks = ["p50", "p95", "p99"];
    Plotly.react(id, distributions.map((times, k) => ({
      type: "scatter", mode: "lines+markers+text", name: `${name} ${k + 1}`, cliponaxis: false,
      x: ranks.map((rank) => times[`${rank}_ms`]), y: ranks.map(() => `${name} ${k + 1}`),
      text: ranks, textposition: ["bottom center", "top center", "bottom center"],
      line: { width: 4, color: exitColor(k) }, marker: { size: 12, color: exitColor(k) },
      hovertemplate: "%{text} of %{y}: %{x:.3f} ms<extra></extra>",
    })), layout(id, {
      hovermode: "closest", margin: { l: 60, r: 24, t: 8, b: 50 },
      xaxis: { ...xaxis, automargin: true }, yaxis: { range: [distributions.length - 0.5, -0.5], showgrid: false },
    }), config);
  }

  function drawTimes() {
    const timing = data.measurement[pace].exits;
    drawHistogram("calls", timing.map((exit) => exit.latency), "exit");
    drawHistogram("stages", timing.at(-1).stages, "stage");
  }

  let waiting = false;
  function redraw() {
    if (!drawn || waiting) return;
    waiting = true;
    requestAnimationFrame(() => { // a slider fires faster than charts can follow
      waiting = false;
      drawTradeoff();
      drawShares();
      drawClasses();
    });
  }

  // Events ----------------------------------------------------------------------------------------

  slider.addEventListener("input", () => {
    limit = Number(slider.value);
    steer();
  });
  byId("reset").addEventListener("click", () => {
    limit = null;
    steer();
    slider.focus();
  });

  function press(attribute, chosen) {
    for (const button of document.querySelectorAll(`button[${attribute}]`)) {
      button.setAttribute("aria-pressed", String(button === chosen));
    }
  }
  for (const button of document.querySelectorAll("button[data-axis]")) {
    button.addEventListener("click", () => {
      press("data-axis", button);
      axis = button.dataset.axis;
      // The point stays; the budget that gives it is shown in the other unit.
      if (limit !== null) limit = cost(shown);
      steer();
    });
  }
  for (const button of document.querySelectorAll("button[data-pace]")) {
    button.addEventListener("click", () => {
      press("data-pace", button);
      pace = button.dataset.pace;
      for (const table of document.querySelectorAll("table[data-table]")) {
        table.hidden = table.dataset.table !== pace;
      }
      if (drawn) drawTimes();
    });
  }

  for (const button of document.querySelectorAll("button[data-source]")) {
    button.addEventListener("click", () => {
      press("data-source", button);
      source = button.dataset.source;
      byId("classes-of").textContent = source === "data"
        ? `Share of each class's images in ${button.textContent} per exit, at the profile's budget.`
        : "Share of each class's calibration images per exit, at the budget set above.";
      redraw();
    });
  }

  function drawAll() {
    drawTradeoff();
    drawShares();
    drawClasses();
    drawTimes();
  }
  for (const query of [matchMedia("(prefers-color-scheme: dark)"), paper]) {
    query.addEventListener("change", () => drawn && drawAll());
  }

  /** Plotly lies gzipped in the page. */
  async function unpack() {
    const packed = Uint8Array.from(atob(byId("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  steer();
  if (typeof DecompressionStream === "undefined") {
    byId("no-charts").hidden = false;
    return;
  }
  unpack().then(() => {
    drawn = true;
    drawAll();
    byId("tradeoff").on("plotly_click", ({ points: [point] }) => {
      limit = point.x; // the best for what the point costs
      steer();
    });
    document.documentElement.dataset.charts = "drawn";
  });
})();

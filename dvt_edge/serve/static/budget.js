// The slider: what a budget would give is shown while it moves, and put in force when it is let go.

import { exitColor } from "./charts.js";

const byId = (id) => document.getElementById(id);
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const ms = (value) => `${Number(value.toPrecision(3))} ms`;
const signed = (value, digits, unit) =>
  Math.abs(value) < 0.5 * 10 ** -digits ? `as now` : `${value > 0 ? "+" : "−"}${Math.abs(value).toFixed(digits)} ${unit}`;

export class Budget {
  /** `send` gives a message to the server, `say` a sentence to screen readers. */
  constructor(hello, send, say) {
    this.hello = hello;
    this.send = send;
    this.say = say;
    this.steps = [];
    this.state = null;
    this.measured = null;
    this.moving = false;
    this.asked = false;
    this.slider = byId("budget");
    this.name = hello.labelled ? "right on the records" : "as the last exit on the records";
    this.makeTable();
    this.slider.oninput = () => { this.moving = true; byId("refused").textContent = ""; this.show(); };
    this.slider.onchange = () => this.ask(this.steps[this.slider.value].latency_ms);
    byId("reset").onclick = () => this.ask(hello.start_latency_ms);
    this.lock();
  }

  makeTable() {
    const rows = [[this.hello.labelled ? "Right on the records" : "As the last exit", "accuracy"], ["Mean latency", "cost_ms"]];
    if (this.hello.energy) rows.push(["Mean energy", "energy_mj"]);
    for (let k = 0; k < this.hello.exits; k += 1) rows.push([`Exit ${k + 1}`, `exit-${k}`]);
    byId("figures").replaceChildren(...rows.map(([title, key]) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      if (key.startsWith("exit-")) {
        const dot = document.createElement("span");
        dot.className = `dot ${exitColor(Number(key.slice(5))).slice(2)}`;
        head.append(dot);
      }
      head.append(title);
      row.append(head);
      for (const column of ["now", "then", "measured"]) {
        const cell = document.createElement("td");
        cell.id = `${column}-${key}`;
        cell.textContent = "–";
        row.append(cell);
      }
      return row;
    }));
  }

  ask(latency_ms) {
    this.moving = false;
    this.asked = true;
    byId("refused").textContent = "";
    this.send({ type: "budget", latency_ms });
    this.show();
  }

  setSteps({ values, note }) {
    this.steps = values;
    this.note = note;
    this.slider.max = Math.max(1, values.length - 1);
    if (values.length) {
      byId("least").textContent = `cheapest, ${ms(values[0].latency_ms)}`;
      byId("most").textContent = `most accurate, ${ms(values.at(-1).latency_ms)}`;
    }
    this.place();
    this.lock();
    this.show();
  }

  setState(state) {
    const other = this.state && this.state.latency_ms !== state.latency_ms;
    this.state = state;
    if (other) this.say(`Budget in force: ${state.budget}`);
    const statistic = state.statistic === "mean" ? "Mean latency" : state.statistic === "max" ? "Longest latency" : `${state.statistic} of the latency`;
    byId("budget-name").textContent = statistic;
    byId("budget-now").textContent = `In force: ${state.budget}${state.moved ? "; thresholds moved from the solved ones to keep it" : ""}`;
    if (!this.moving && !this.asked) this.place();
    this.lock();
    this.show();
  }

  /** What was asked for is in force, or was refused because of `text`. */
  settle(text) {
    byId("refused").textContent = text ?? "";
    this.asked = false;
    if (!this.moving) this.place();
    this.lock();
    this.show();
  }

  setMeasured(measured) {
    this.measured = measured;
    this.show();
  }

  /** The slider where the budget in force is. */
  place() {
    if (!this.state || !this.steps.length) return;
    const limit = this.state.latency_ms ?? Infinity;
    const fitting = this.steps.filter((step) => step.latency_ms <= limit * (1 + 1e-9)).length;
    this.slider.value = Math.max(0, fitting - 1);
  }

  lock() {
    this.slider.disabled = this.steps.length === 0;
    byId("reset").disabled = !this.state || !this.steps.length || this.state.latency_ms === this.hello.start_latency_ms;
    const start = this.hello.start_latency_ms;
    byId("reset").textContent = start === null ? "Back to the start, without latency_ms" : `Back to ${ms(start)}`;
  }

  show() {
    const now = this.state?.records;
    const chosen = this.moving || this.asked ? this.steps[this.slider.value] : null;
    const then = chosen ?? now;
    const limit = chosen ? chosen.latency_ms : this.state?.latency_ms;
    byId("budget-value").textContent = limit === undefined ? "–" : limit === null ? "no limit" : ms(limit);
    this.fill("now", now);
    this.fill("then", then, chosen && !chosen.error ? now : null);
    this.fill("measured", this.measured && {
      cost_ms: this.measured.latency, energy_mj: this.measured.energy, exits: this.measured.exits,
    });
    const forecast = this.forecast(chosen, now);
    byId("forecast").textContent = forecast;
    this.slider.setAttribute("aria-valuetext", `${byId("budget-value").textContent}. ${chosen ? forecast : ""}`);
    byId("figures-note").textContent = this.measured
      ? `Measured over ${this.measured.frames} frames under this budget, in the last minute. Which answers are right is not known here.`
      : "Measured once a second has passed under this budget.";
  }

  forecast(chosen, now) {
    if (!this.steps.length) return this.note ?? "Working out what other budgets give …";
    if (!chosen) return this.note || "Move the slider to see what another budget gives on the records; let go to put it in force.";
    if (chosen.error) return `Cannot be kept: ${chosen.error}`;
    const doing = this.asked ? "Being put in force" : "Let go to put it in force";
    if (!now) return doing;
    return (
      `${percent(chosen.accuracy)} ${this.name} (${signed(100 * (chosen.accuracy - now.accuracy), 1, "points")}), ` +
      `${ms(chosen.cost_ms)} on average (${signed(chosen.cost_ms - now.cost_ms, 2, "ms")}). ${doing}.`
    );
  }

  fill(column, values, before) {
    const put = (key, text, moved) => {
      const cell = byId(`${column}-${key}`);
      if (!cell) return;
      if (cell.textContent !== text) cell.textContent = text;
      cell.classList.toggle("moved", Boolean(moved));
    };
    const of = (key, format) => {
      const value = values?.[key];
      put(key, value === undefined || value === null ? "–" : format(value), before && format(before[key] ?? 0) !== format(value ?? 0));
    };
    of("accuracy", percent);
    of("cost_ms", ms);
    of("energy_mj", (value) => `${Number(value.toPrecision(3))} mJ`);
    for (let k = 0; k < this.hello.exits; k += 1) {
      const share = values?.exits?.[k];
      put(`exit-${k}`, share === undefined ? "–" : percent(share), before && percent(before.exits[k]) !== percent(share ?? 0));
    }
  }
}

// The page: one socket; the next picture is asked for once the last one was drawn.

import { Budget } from "./budget.js";
import { Charts, exitColor } from "./charts.js";

const byId = (id) => document.getElementById(id);
const GOING_AWAY = 1001, POLICY = 1008, TRY_LATER = 1013;
const EVENTS_SHOWN = 50;

// The token came with the address; from here on the cookie holds it.
if (location.search) history.replaceState(null, "", location.pathname);

let socket = null;
let pause_ms = 500;
let charts = null, budget = null, hello = null;
let frame = null, frameAt = 0, since = 0, solved = null;
let source = null;

function put(id, text) {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
}

/** For screen readers. */
const say = (text) => put("said", text);

function link(state, text) {
  const element = byId("link");
  if (element.textContent !== text) say(text);
  element.dataset.state = state;
  put("link", text);
}

const send = (message) => {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
};

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  socket = new WebSocket(`${scheme}://${location.host}/live`);
  socket.binaryType = "blob";
  let coming = null; // a message whose picture has not come yet
  socket.onmessage = async ({ data }) => {
    if (typeof data === "string") {
      const message = JSON.parse(data);
      if (message.picture) {
        coming = message;
      } else {
        show(message);
        send({ type: "next" });
      }
      return;
    }
    const message = coming;
    coming = null;
    try {
      await draw(data, message.frame);
      show(message);
    } finally {
      send({ type: "next" });
    }
  };
  socket.onclose = closed;
}

async function closed({ code, reason }) {
  if (code === TRY_LATER || code === POLICY) {
    link("bad", reason);
    pause_ms = 10000;
  } else if (code === GOING_AWAY) {
    link("bad", "the run has ended");
    pause_ms = 5000;
  } else if (await unwelcome()) {
    link("bad", "the token is not valid any more: open the address that dvt-edge printed");
    pause_ms = 30000;
  } else {
    link("waiting", "connection lost, trying again");
    pause_ms = Math.min(5000, 2 * pause_ms);
  }
  setTimeout(connect, pause_ms);
}

/** A socket that is refused does not say why. */
async function unwelcome() {
  try {
    return (await fetch("/healthz", { cache: "no-store" })).status === 401;
  } catch {
    return false;
  }
}

async function draw(data, { label }) {
  const picture = await createImageBitmap(new Blob([data], { type: "image/jpeg" }));
  const canvas = byId("picture");
  if (canvas.width !== picture.width || canvas.height !== picture.height) {
    canvas.width = picture.width;
    canvas.height = picture.height;
    byId("screen").toggleAttribute("data-small", picture.width < 320);
  }
  canvas.getContext("2d").drawImage(picture, 0, 0);
  canvas.setAttribute("aria-label", `Live picture, answered ${label}`);
  picture.close();
}

function show(message) {
  if (message.exits !== undefined) begin(message);
  link("live", "live");
  pause_ms = 500;
  if (message.frame) showFrame(message.frame);
  if (message.state) showState(message.state);
  if (message.steps) budget.setSteps(message.steps);
  if (message.settled) budget.settle(message.refused);
  if (message.events) showEvents(message.events);
  showSources(message.sources);
  const before = charts.now;
  charts.add(message.seconds ?? [], message.now);
  if (charts.now !== before) budget.setMeasured(charts.lately(since));
}

/** The first message of a connection; of a second one, too, and the server may be another. */
function begin(message) {
  const same = hello && ["exits", "labelled", "energy", "window_s"].every((key) => hello[key] === message[key]);
  hello = message;
  put("device", hello.device);
  byId("device").title = hello.device;
  solved = null;
  byId("events").replaceChildren();
  if (!same) {
    for (const id of ["latency-chart", "exits-chart", "age-chart", "energy-chart"]) {
      byId(id).querySelector(".uplot")?.remove();
    }
    charts = new Charts(hello);
    byId("exits-key").replaceChildren(...[...Array(hello.exits).keys()].map((k) => {
      const item = document.createElement("li");
      const dot = document.createElement("span");
      dot.className = `dot ${exitColor(k).slice(2)}`;
      item.append(dot, `exit ${k + 1}`);
      return item;
    }));
  }
  charts.rows.clear();
  budget = new Budget(hello, send, say);
  if (source !== null) send({ type: "source", name: source });
  byId("no-energy").hidden = hello.energy;
  if (!hello.energy) put("no-energy", "No energy per exit was measured on this machine.");
  put("energy", hello.energy ? "–" : "not measured");
}

function showFrame(next) {
  frame = next;
  frameAt = performance.now();
  put("label", frame.label);
  put("confidence", frame.confidence === null ? "confidence unknown" : `${(100 * frame.confidence).toFixed(1)} % sure`);
  const exit = byId("exit");
  const dot = document.createElement("span");
  dot.className = `dot ${exitColor(frame.exit_stage - 1).slice(2)}`;
  exit.replaceChildren(dot, `${frame.exit_stage} of ${hello.exits}`);
  put("latency", `${frame.latency_ms.toFixed(2)} ms`);
  if (hello.energy) put("energy", frame.energy_mj === null ? "–" : `${frame.energy_mj.toPrecision(3)} mJ`);
  put("reason", frame.reason ?? (frame.truncated ? "cut short by its deadline" : "\u00a0"));
  showAge();
}

/** An old picture must not look like a new one. */
function showAge() {
  const screen = byId("screen");
  if (!frame) {
    screen.toggleAttribute("data-stopped", true);
    return;
  }
  const age_ms = frame.age_ms + performance.now() - frameAt;
  put("age", age_ms < 1000 ? `${age_ms.toFixed(0)} ms` : `${(age_ms / 1000).toFixed(1)} s`);
  const stopped = age_ms > 1000 * Math.min(hello.stale_s, 3);
  if (stopped) put("stopped", `No new picture for ${Math.round(age_ms / 1000)} s`);
  if (stopped && !screen.hasAttribute("data-stopped")) {
    say("The picture has stopped");
    byId("picture").setAttribute("aria-label", "The picture has stopped");
  }
  screen.toggleAttribute("data-stopped", stopped);
}

function showState(state) {
  since = state.since;
  budget.setState(state);
  byId("promise-card").hidden = !state.promise;
  if (!state.promise) return;
  if (solved !== null && solved !== state.promise.state) say(`Promise: ${state.promise.sentence}`);
  solved = state.promise.state;
  put("promise-state", state.promise.state);
  byId("promise-state").dataset.state = state.promise.state;
  put("promise", state.promise.sentence);
}

function showEvents(events) {
  const list = byId("events");
  for (const event of events) {
    const item = document.createElement("li");
    const time = document.createElement("time");
    const date = new Date(1000 * event.time);
    time.dateTime = date.toISOString();
    time.textContent = date.toLocaleTimeString();
    item.append(time, event.source ? `${event.source}: ${event.reason}` : event.reason);
    list.prepend(item);
  }
  while (list.children.length > EVENTS_SHOWN) list.lastElementChild.remove();
}

function showSources(names) {
  const select = byId("source");
  byId("sources").hidden = names.length < 2;
  if (select.options.length === names.length) return;
  select.replaceChildren(...names.map((name) => new Option(name, name)));
  select.value = source ?? names[0];
  select.onchange = () => {
    source = select.value;
    send({ type: "source", name: source });
  };
}

setInterval(() => hello && showAge(), 250);
byId("screen").toggleAttribute("data-stopped", true);
connect();

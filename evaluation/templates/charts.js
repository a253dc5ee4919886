"use strict";
// Charts that answer: values under the pointer, zoom, other x axes, smoothing, logarithms, lines and runs switched off.
// A chart is drawn as evaluation/charts.py draws it, and looks the same until something is changed.

// ---- numbers as people read them: evaluation/numbers.py --------------------------------------------------------------
const separated = text => text.replace(/\B(?=(\d{3})+(?!\d))/g, ",");
const whole = value => (value < 0 ? "-" : "") + separated(Math.abs(value).toFixed(0));
const number = value => {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000) return whole(value);
  if (size < 1e-3) {
    const [mantissa, exponent] = value.toExponential(2).split("e");
    return `${mantissa.replace(/\.?0+$/, "")}e${Number(exponent)}`;
  }
  const text = value.toFixed(Math.max(0, 3 - Math.floor(Math.log10(size))));
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
};
const duration = seconds => {
  const two = value => String(value).padStart(2, "0");
  if (seconds < 60) return seconds >= 10 || seconds === 0 ? `${seconds.toFixed(0)} s` : `${seconds.toFixed(1)} s`;
  const total = Math.round(seconds), left = Math.floor(total / 60);
  if (total < 3600) return total < 600 ? `${left} min ${two(total % 60)} s` : `${(total / 60).toFixed(0)} min`;
  if (total < 86400) return `${Math.floor(total / 3600)} h ${two(left % 60)} min`;
  return `${Math.floor(total / 86400)} d ${Math.floor(total % 86400 / 3600)} h`;
};
const FORMATS = {
  number,
  percent: share => {
    const value = 100 * share;
    return `${value === 0 || value >= 10 ? value.toFixed(0) : value >= 0.1 ? value.toFixed(1) : value.toFixed(2)} %`;
  },
  gibibytes: value => value === 0 ? "0" : value < 10 ? `${value.toFixed(2)} GiB` : `${value.toFixed(1)} GiB`,
  seconds: value => value < 0 ? number(value) : value >= 10 ? duration(value)
    : value > 0 && value < 0.1 ? `${number(1000 * value)} ms` : `${number(value)} s`,
  bytes: value => {
    for (const unit of ["B", "KiB", "MiB", "GiB"]) {
      if (Math.abs(value) < 1024) return `${number(value)} ${unit}`;
      value /= 1024;
    }
    return `${number(value)} TiB`;
  },
};

// Labels of an axis; with more digits where four are too few to tell where a tick is.
const atTicks = (ticks, shown) => {
  const labels = ticks.map(shown);
  if (shown !== number || ticks.length < 2) return labels;
  const step = Math.min(...ticks.slice(1).map((tick, i) => Math.abs(tick - ticks[i])));
  if (labels.every((label, i) => Math.abs(Number(label.replaceAll(",", "")) - ticks[i]) <= step / 100)) return labels;
  const digits = Math.max(0, 1 - Math.floor(Math.log10(step)));
  const longer = ticks.map(tick => tick.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  return digits && longer.every(label => label.endsWith("0")) ? longer.map(label => label.slice(0, -1)) : longer;
};

// ---- arithmetic ------------------------------------------------------------------------------------------------------
const linearTicks = (low, high, count) => {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find(factor => factor * power >= rough * (1 - 1e-9));
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i <= Math.floor(high / step + 1e-9); i++) ticks.push(i * step);
  return ticks;
};
const binaryTicks = (low, high, count) => {
  const span = high - low;
  if (!(span > 0)) return [low];
  const step = 2 ** Math.ceil(Math.log2(span / count) - 1e-9), ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i <= Math.floor(high / step + 1e-9); i++) ticks.push(i * step);
  return ticks;
};
const logarithmicTicks = (low, high) => {
  const ticks = [];
  for (let d = Math.floor(Math.log10(low)); d <= Math.ceil(Math.log10(high)); d++)
    for (const factor of high / low > 1000 ? [1] : [1, 2, 5]) ticks.push(factor * 10 ** d);
  return ticks.filter(tick => tick >= low && tick <= high);
};
const smooth = (values, window) => {
  const total = new Float64Array(values.length + 1);
  values.forEach((value, i) => { total[i + 1] = total[i] + value; });
  return values.map((_, i) => {
    const back = Math.min(Math.floor(window / 2), i), ahead = Math.min(back, values.length - 1 - i);
    return (total[i + ahead + 1] - total[i - back]) / (ahead + back + 1);
  });
};
// Index of the first that isn't below `value`, in a list that rises.
const lowerBound = (list, value) => {
  let low = 0, high = list.length;
  while (low < high) { const middle = (low + high) >> 1; if (list[middle] < value) low = middle + 1; else high = middle; }
  return low;
};
const nearest = (list, value) => {
  const i = lowerBound(list, value);
  return i > 0 && (i === list.length || value - list[i - 1] < list[i] - value) ? i - 1 : i;
};
const interpolated = ([from, to], at) => {
  const i = Math.min(Math.max(lowerBound(from, at), 1), from.length - 1);
  if (from.length === 1) return to[0];
  return to[i - 1] + (to[i] - to[i - 1]) * (at - from[i - 1]) / (from[i] - from[i - 1]);
};
const quantile = (values, q) => {
  const sorted = Float64Array.from(values).sort(), at = q * (sorted.length - 1), i = Math.floor(at);
  return sorted[i] + (sorted[Math.min(i + 1, sorted.length - 1)] - sorted[i]) * (at - i);
};
const element = (tag, name, text) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
};

// ---- the page's state, and what follows from it ----------------------------------------------------------------------
const data = JSON.parse(document.getElementById("chart-data").textContent);
const state = { axis: "steps", smoothing: 4, view: null, hidden: new Set() };
const AXES = {
  steps: { of: (run, steps) => steps, label: at => `step ${whole(at)}`, ticks: (low, high, count) =>
    linearTicks(low, high, count).filter(Number.isInteger).map(at => [at, whole(at)]) },
  images: { of: (run, steps) => run.images && steps.map(step => interpolated(run.images, step)),
    label: at => `${whole(at)} images`, ticks: (low, high, count) => linearTicks(low, high, count).map(at => {
      const [unit, name] = high >= 5e9 ? [1e9, " B"] : high >= 5e6 ? [1e6, " M"] : high >= 5e4 ? [1e3, " k"] : [1, ""];
      return [at, number(at / unit) + name];
    }) },
  seconds: { of: (run, steps) => run.seconds && steps.map(step => interpolated(run.seconds, step)), label: duration,
    ticks: (low, high, count) => {
      const span = high - low;
      const [unit, name] = span > 1.5e5 ? [86400, "d"] : span > 6000 ? [3600, "h"] : span > 100 ? [60, "min"] : [1, "s"];
      return linearTicks(low / unit, high / unit, count).map(at => [at * unit, at === 0 ? "0" : `${number(at)} ${name}`]);
    } },
};
// Of more noisy lines than these, what is behind their means is left out.
const MOST_RAW = 3;
const cache = new Map();
const kept = (key, make) => { if (!cache.has(key)) cache.set(key, make()); return cache.get(key); };
// Where points lie across; null where the run doesn't tell.
const across = line => kept(`${state.axis} ${line.run} ${line.steps}`, () =>
  AXES[state.axis].of(data.runs[line.run], data.steps[line.steps]));

class Chart {
  constructor(figure) {
    this.figure = figure;
    this.plot = figure.querySelector(".plot");
    this.svg = figure.querySelector("svg");
    Object.assign(this, data.charts[figure.dataset.chart]);
    this.off = new Set();
    this.stale = false; // what is drawn already is right
    this.visible = false;
    this.buttons();
    this.pointer();
    this.keys();
  }

  buttons() {
    for (const key of this.figure.querySelectorAll(".key")) {
      const line = Number(key.dataset.line), button = element("button", key.className, key.textContent);
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        if (!this.off.delete(line)) this.off.add(line);
        button.setAttribute("aria-pressed", String(!this.off.has(line)));
        this.redraw();
      });
      key.replaceWith(button);
    }
    const tools = element("span", "tools");
    this.tool(tools, "log", "logarithmic y axis", this.log, on => { this.log = this.forced = on; });
    this.tool(tools, "⤢", "over the whole width", this.figure.classList.contains("wide"), on =>
      this.figure.classList.toggle("wide", on));
    this.figure.querySelector("figcaption").prepend(tools);
  }

  tool(tools, text, title, on, change) {
    const button = element("button", "", text);
    Object.assign(button, { type: "button", title });
    button.setAttribute("aria-label", title);
    button.setAttribute("aria-pressed", String(on));
    button.addEventListener("click", () => {
      on = !on;
      button.setAttribute("aria-pressed", String(on));
      change(on);
      this.redraw();
    });
    tools.append(button);
  }

  shown() {
    return this.lines.filter((line, i) => !this.off.has(i) && !state.hidden.has(line.run) && across(line));
  }

  course(line) {
    if (!line.noisy) return line.means;
    return kept(`${state.smoothing} ${this.figure.dataset.chart} ${this.lines.indexOf(line)}`, () =>
      smooth(line.means, Math.max(1, Math.floor(state.smoothing / 100 * line.means.length))));
  }

  redraw() { this.stale = true; if (this.visible) schedule(this); }

  draw() {
    this.stale = false;
    this.clear();
    const lines = this.shown();
    this.plot.querySelectorAll("span").forEach(label => label.remove());
    if (!lines.length) { this.svg.innerHTML = ""; this.seen = []; return; }
    const [low, high] = this.view = state.view ?? extent();
    this.seen = lines.map(line => {
      const x = across(line), from = Math.max(0, lowerBound(x, low) - 1), to = Math.min(x.length, lowerBound(x, high) + 2);
      const cut = list => list && list.slice(from, to);
      return { line, x: cut(x), y: cut(this.course(line)), means: cut(line.means), lows: cut(line.lows), highs: cut(line.highs) };
    }).filter(({ x }) => x.length);
    if (!this.seen.length) { this.svg.innerHTML = ""; return; }
    this.raw = this.seen.filter(({ line }) => line.noisy).length <= MOST_RAW;
    const [bottom, top, log] = this.values();
    const transform = log ? Math.log10 : value => value;
    this.left = x => (x - low) / (high - low);
    this.up = y => (transform(Math.min(top, Math.max(bottom, y))) - transform(bottom)) / (transform(top) - transform(bottom));
    const at = (x, y) => `${(1000 * this.left(x)).toFixed(1)} ${(1000 * (1 - this.up(y))).toFixed(1)}`;
    const path = (xs, ys) => "M" + (xs.length > 1 ? xs : [xs[0], xs[0]]).map((x, i) => at(x, ys[Math.min(i, ys.length - 1)])).join("L");
    const parts = [];
    let found = log ? logarithmicTicks(bottom, top) : [];
    const evenTicks = this.format === "bytes" ? binaryTicks : linearTicks;
    if (found.length < 2) found = evenTicks(bottom, top, this.plot.clientHeight > 260 ? 6 : 4);
    const texts = atTicks(found, FORMATS[this.format]);
    for (const [i, y] of found.entries()) {
      const place = 1000 * (1 - this.up(y));
      parts.push(`<line x1="0" x2="1000" y1="${place.toFixed(1)}" y2="${place.toFixed(1)}"/>`);
      this.label("y", { bottom: `${100 * this.up(y)}%` }, texts[i]);
    }
    for (const [x, text] of AXES[state.axis].ticks(low, high, Math.max(3, Math.floor(this.plot.clientWidth / 110))))
      this.label("x", { left: `${100 * this.left(x)}%` }, text);
    for (const run of new Set(lines.map(line => line.run)))
      for (const step of data.runs[run].restarts) {
        const x = AXES[state.axis].of(data.runs[run], [step])?.[0];
        if (x === undefined || x < low || x > high) continue;
        const place = (1000 * this.left(x)).toFixed(1);
        parts.push(`<line class="restart" x1="${place}" x2="${place}" y1="0" y2="1000"/>`);
      }
    const drawn = [`<g class="rules">${parts.join("")}</g>`];
    for (const { line, x, y, means, lows, highs } of this.seen) {
      const look = `s${line.colour}${line.dashed ? " dashed" : ""}`;
      const behind = line.noisy && this.raw;
      if (behind && lows) drawn.push(`<path class="band ${look}" d="${path([...x, ...[...x].reverse()], [...highs, ...[...lows].reverse()])}Z"/>`);
      else if (behind) drawn.push(`<path class="faint ${look}" d="${path(x, means)}"/>`);
      drawn.push(`<path class="${look}" d="${path(x, y)}"/>`);
    }
    this.svg.innerHTML = drawn.join("");
  }

  // The same as _range in charts.py, of what is in view.
  values() {
    let low = Infinity, high = -Infinity;
    for (const { y } of this.seen)
      for (const value of y) { if (value < low) low = value; if (value > high) high = value; }
    const most = this.robust ? Math.max(...this.seen.map(({ y }) => quantile(y, 0.98))) : 0;
    if (most > 0 && high > 1.5 * most) high = most;
    for (const { line, means, lows, highs } of this.seen) {
      if (line.noisy && this.raw) {
        low = Math.min(low, quantile(lows ?? means, 0.005));
        high = Math.max(high, quantile(highs ?? means, 0.995));
      }
    }
    if (this.log && low > 0 && high / low > (this.forced ? 1 : 4)) return [low / 1.1, high * 1.1, true];
    if (this.zero) low = Math.min(0, low);
    const margin = 0.05 * (high - low) || 0.1 * Math.abs(high) || 1;
    return [this.zero && low === 0 ? low : low - margin, high + margin, false];
  }

  label(name, style, text) {
    const label = element("span", name, text);
    Object.assign(label.style, style);
    this.plot.append(label);
  }

  clear() { this.plot.querySelectorAll(".hair, .dot, .tip, .chosen").forEach(mark => mark.remove()); }

  mark(name, style) {
    const mark = element("div", name);
    Object.assign(mark.style, style);
    this.plot.append(mark);
    return mark;
  }

  // What each line is at x: a point of its own, the nearest.
  hits(x) {
    return this.seen.map(seen => ({ ...seen, i: nearest(seen.x, x) }))
      .filter(({ x: xs, i }) => xs[i] >= this.view[0] && xs[i] <= this.view[1]);
  }

  // Only where x lies; the chart under the pointer tells the values.
  hair(x) {
    this.clear();
    if (this.visible && !this.stale && this.left && x >= this.view[0] && x <= this.view[1])
      this.mark("hair", { left: `${100 * this.left(x)}%` });
  }

  point(x) {
    const hits = this.seen?.length ? this.hits(x) : [];
    if (!hits.length) return;
    const closest = hits.reduce((a, b) => Math.abs(b.x[b.i] - x) < Math.abs(a.x[a.i] - x) ? b : a);
    this.at = x = closest.x[closest.i];
    for (const chart of charts) chart.hair(x);
    for (const { line, x: xs, y, i } of hits)
      this.mark(`dot s${line.colour}`, { left: `${100 * this.left(xs[i])}%`, bottom: `${100 * this.up(y[i])}%` });
    const place = this.left(x);
    const tip = this.mark("tip", place > 0.5 ? { right: `${100 * (1 - place)}%`, marginRight: "12px" }
      : { left: `${100 * place}%`, marginLeft: "12px" });
    tip.append(element("b", "", AXES[state.axis].label(x)));
    const show = FORMATS[this.format];
    for (const { line, y, means, lows, highs, i } of hits) {
      const row = element("div");
      if (this.lines.length > 1) row.append(element("span", `key s${line.colour}${line.dashed ? " dashed" : ""}`, line.name));
      row.append(element("em", "", show(y[i])));
      if (lows) row.append(element("small", "", `${show(lows[i])} to ${show(highs[i])}`));
      else if (line.noisy && means[i] !== y[i]) row.append(element("small", "", `here ${show(means[i])}`));
      tip.append(row);
    }
  }

  pointer() {
    let from = null, box = null;
    const share = event => {
      const area = this.plot.getBoundingClientRect();
      return Math.min(1, Math.max(0, (event.clientX - area.left) / area.width));
    };
    const value = at => this.view[0] + at * (this.view[1] - this.view[0]);
    this.plot.addEventListener("pointerdown", event => {
      if (event.button !== 0) return;
      if (this.stale || !this.view) this.draw();
      from = share(event);
      this.plot.setPointerCapture(event.pointerId);
    });
    this.plot.addEventListener("pointermove", event => {
      if (this.stale || !this.view) this.draw();
      const at = share(event);
      this.point(value(at));
      if (from === null) return;
      box = this.mark("chosen", { left: `${100 * Math.min(from, at)}%`, width: `${100 * Math.abs(at - from)}%` });
    });
    this.plot.addEventListener("pointerup", event => {
      const at = share(event), start = from;
      from = null;
      if (start !== null && Math.abs(at - start) * this.plot.clientWidth > 8) zoom([start, at].sort((a, b) => a - b).map(value));
      else if (box) this.clear();
    });
    this.plot.addEventListener("pointercancel", () => { from = null; this.clear(); });
    this.plot.addEventListener("pointerleave", () => charts.forEach(chart => chart.clear()));
    this.plot.addEventListener("dblclick", () => zoom(null));
  }

  // Arrows go along the line, + and - zoom about the place, Escape goes back.
  keys() {
    this.plot.tabIndex = 0;
    this.plot.addEventListener("keydown", event => {
      if (this.stale || !this.view) this.draw();
      const [low, high] = this.view, x = this.at >= low && this.at <= high ? this.at : (low + high) / 2;
      const go = { ArrowLeft: -1, ArrowRight: 1 }[event.key], factor = { "+": 0.5, "-": 2 }[event.key];
      const along = this.seen.length ? this.seen[0].x : [];
      if (event.key === "Escape") zoom(null);
      else if (go && along.length) {
        const i = nearest(along, x) + go * Math.max(1, Math.round(along.length / (event.shiftKey ? 10 : 100)));
        this.point(along[Math.min(along.length - 1, Math.max(0, i))]);
      }
      else if (factor) zoom(within(x - (x - low) * factor, x + (high - x) * factor));
      else return;
      event.preventDefault();
    });
    this.plot.addEventListener("blur", () => charts.forEach(chart => chart.clear()));
  }
}

const charts = [...document.querySelectorAll("figure[data-chart]")].map(figure => new Chart(figure));
const visible = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    const chart = charts.find(({ plot }) => plot === target);
    chart.visible = isIntersecting;
    if (isIntersecting && chart.stale) schedule(chart);
  }
}, { rootMargin: "200px" });
const waiting = new Set();
const schedule = chart => {
  if (!waiting.size) requestAnimationFrame(() => { for (const next of waiting) next.draw(); waiting.clear(); });
  waiting.add(chart);
};
const redrawAll = () => { for (const chart of charts) chart.redraw(); };
// What is in view when nothing is zoomed, the same in all charts, so that one place is one moment.
const extent = () => kept(`extent ${state.axis} ${[...state.hidden]}`, () => {
  const ends = data.charts.flatMap(chart => chart.lines).filter(line => !state.hidden.has(line.run)).map(across).filter(Boolean);
  const low = Math.min(...ends.map(x => x[0])), high = Math.max(...ends.map(x => x[x.length - 1]));
  return [low > 0 && low < 0.1 * high ? 0 : low, high > low ? high : low + 1];
});
// At most all that there is: then nothing is zoomed.
const within = (low, high) => {
  const [first, last] = extent();
  return low <= first && high >= last ? null : [Math.max(low, first), Math.min(high, last)];
};
const reset = document.getElementById("reset");
const zoom = view => {
  state.view = view;
  reset.disabled = !view;
  redrawAll();
};

for (const { plot } of charts) visible.observe(plot);
new ResizeObserver(redrawAll).observe(document.querySelector("main"));
document.getElementById("controls").hidden = false;
reset.addEventListener("click", () => zoom(null));
for (const radio of document.querySelectorAll("input[name=axis]")) {
  radio.disabled = radio.value !== "steps" && !data.runs.some(run => run[radio.value]);
  radio.addEventListener("change", () => { state.axis = radio.value; zoom(null); });
}
const slider = document.getElementById("smoothing");
slider.addEventListener("input", () => {
  state.smoothing = Number(slider.value);
  slider.nextElementSibling.textContent = `${slider.value} %`;
  cache.clear();
  redrawAll();
});
for (const box of document.querySelectorAll("input[name=run]"))
  box.addEventListener("change", () => {
    if (box.checked) state.hidden.delete(Number(box.value)); else state.hidden.add(Number(box.value));
    redrawAll();
  });
const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  const text = filter.value.trim().toLowerCase();
  for (const { figure } of charts) {
    const name = `${figure.dataset.metric} ${figure.querySelector("b").textContent}`.toLowerCase();
    figure.hidden = !name.includes(text);
  }
  for (const group of document.querySelectorAll("section.group")) group.hidden = !group.querySelector("figure:not([hidden])");
});

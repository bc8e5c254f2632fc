// Training curves: a chart a stage and loss. Its legend also shows the values at the cursor, which follows the pointer
// or the arrow keys.
"use strict";

const CHART = { height: 260, left: 56, right: 24, top: 10, bottom: 30 };

/** Draw a chart into a new figure, and again whenever its width changes or `redraw` is called. */
function drawChart(chart, place, isLog) {
  const hidden = new Set();
  let cursor = null;  // a step
  const drawing = svg("svg", { class: "chart", tabindex: 0, role: "img", "aria-label": `${chart.title} by step` });
  const readings = chart.lines.map(() => html("output"));
  const step = html("output", { class: "quiet" });
  const keys = chart.lines.map((line, index) => html("button", {
    type: "button", class: `key ${lineClass(index)}`, "aria-pressed": "true", onclick: () => toggle(index),
  }, html("span", { class: "swatch" }), `${line.title} `, readings[index]));
  place.append(html("figure", {}, html("figcaption", {}, html("h3", {}, chart.title), step), drawing,
    html("div", { class: "legend", role: "group", "aria-label": `Lines of ${chart.title}` }, ...keys)));

  function toggle(index) {
    if (!hidden.delete(index)) hidden.add(index);
    keys[index].setAttribute("aria-pressed", String(!hidden.has(index)));
    redraw();
  }

  function redraw() {
    const width = drawing.clientWidth || 640;
    const shown = chart.lines.map((line, index) => ({ ...line, index, smooth: smoothed(line.values) }))
      .filter((line) => !hidden.has(line.index) && line.steps.length);
    drawing.setAttribute("viewBox", `0 0 ${width} ${CHART.height}`);
    drawing.replaceChildren();
    if (!shown.length) return;
    const axes = scales(shown, width, isLog());
    drawing.append(...grid(axes, width));
    for (const line of shown) {
      for (const [kind, values] of [["raw", line.values], ["smooth", line.smooth]]) {
        drawing.append(svg("path", { class: `${lineClass(line.index)} ${kind}`, d: path(line.steps, values, axes) }));
      }
    }
    read(shown, axes);
  }

  /** Show the values at the cursor; without one, the last ones. */
  function read(shown, axes) {
    const last = Math.max(...shown.flatMap((line) => line.steps));
    const at = cursor ?? last;
    step.textContent = `step ${Math.round(at)}`;
    readings.forEach((reading) => { reading.textContent = ""; });
    if (cursor !== null) {
      const x = axes.x(at);
      drawing.append(svg("line", { class: "cursor", x1: x, x2: x, y1: CHART.top, y2: CHART.height - CHART.bottom }));
    }
    for (const line of shown) {
      const index = nearest(line.steps, at);
      readings[line.index].textContent = short(line.smooth[index]);
      drawing.append(svg("circle", {
        class: lineClass(line.index), r: 3, cx: axes.x(line.steps[index]), cy: axes.y(line.smooth[index]),
      }));
    }
  }

  const steps = [...new Set(chart.lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const share = (event.clientX - box.left - CHART.left) / (box.width - CHART.left - CHART.right);
    cursor = steps[nearest(steps, clamp(share, 0, 1) * steps.at(-1))];
    redraw();
  });
  drawing.addEventListener("pointerleave", () => { cursor = null; redraw(); });
  drawing.addEventListener("blur", () => { cursor = null; redraw(); });
  drawing.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const from = cursor === null ? steps.length - 1 : nearest(steps, cursor);
    cursor = steps[clamp(from + move, 0, steps.length - 1)];
    redraw();
  });
  new ResizeObserver(redraw).observe(drawing);
  return redraw;
}

/** Functions from step and value to pixels, and the ticks of both axes. */
function scales(lines, width, log) {
  const values = lines.flatMap((line) => line.values).filter((value) => !log || value > 0);
  const f = log ? Math.log10 : (value) => value;
  let [low, high] = [f(Math.min(...values)), f(Math.max(...values))];
  if (!(high > low)) [low, high] = [low - 0.5, high + 0.5];
  const end = Math.max(...lines.flatMap((line) => line.steps));
  const inner = { width: width - CHART.left - CHART.right, height: CHART.height - CHART.top - CHART.bottom };
  return {
    x: (step) => CHART.left + (step / end) * inner.width,
    y: (value) => CHART.top + (1 - (f(log ? Math.max(value, 10 ** low) : value) - low) / (high - low)) * inner.height,
    steps: ticks(0, end, Math.max(2, inner.width / 110)),
    values: ticks(low, high, 5).map((tick) => (log ? 10 ** tick : tick)),
  };
}

/** Round numbers between two, about so many. */
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const first = Math.ceil(low / size);
  const length = Math.floor(high / size) - first + 1;
  return Array.from({ length }, (_, i) => Number(((first + i) * size).toPrecision(12)));
}

function grid(axes, width) {
  const bottom = CHART.height - CHART.bottom;
  const across = (y, name) => svg("line", { class: name, x1: CHART.left, x2: width - CHART.right, y1: y, y2: y });
  const beside = (value) => ({ class: "tick", x: CHART.left - 6, y: axes.y(value) + 4, "text-anchor": "end" });
  return [
    ...axes.values.flatMap((value) => [
      across(axes.y(value), "gridline"), svg("text", beside(value), String(Number(value.toPrecision(3)))),
    ]),
    ...axes.steps.map((step) =>
      svg("text", { class: "tick", x: axes.x(step), y: bottom + 18, "text-anchor": "middle" }, String(step))),
    across(bottom, "axis"),
  ];
}

function path(steps, values, axes) {
  return steps.map((step, i) => `${i ? "L" : "M"}${axes.x(step).toFixed(1)} ${axes.y(values[i]).toFixed(1)}`).join("");
}

/** Running mean over a tenth of the points, centred. */
function smoothed(values) {
  const half = Math.floor(values.length / 20);
  return values.map((_, i) => {
    const near = values.slice(Math.max(0, i - half), i + half + 1);
    return near.reduce((sum, value) => sum + value, 0) / near.length;
  });
}

/** The place of the number in a sorted list that is nearest to another. */
function nearest(numbers, wanted) {
  let best = 0;
  numbers.forEach((number, i) => { if (Math.abs(number - wanted) < Math.abs(numbers[best] - wanted)) best = i; });
  return best;
}

// One image: two rows under a divider, all rows side by side, its words and its values.
"use strict";

/** Show an image of a block with two of its rows, given by their places, left and right of the divider. */
function drawViewer(block, image, left, right) {
  the("image-name").textContent = image.name;
  drawCompare(block, image, left, right);
  drawSideBySide(block, image);
  drawWords(block, image);
  drawValues(block, image, [left, right]);
  applyZoom();
}

function drawCompare(block, image, left, right) {
  for (const [side, row] of [["left", left], ["right", right]]) {
    const title = block.rows[row].title;
    const shown = the(`${side}-image`);
    const uri = picture(image, row);
    shown.hidden = uri === null;
    if (uri !== null) shown.src = uri;
    shown.alt = `${image.name}, ${title}`;
    the(`${side}-tag`).textContent = uri === null ? `${title}: no image` : title;
  }
  the("slider").setAttribute("aria-label", `Divider: ${block.rows[left].title} left, ${block.rows[right].title} right`);
}

/** Put the divider at a percentage from the left. */
function moveDivider(percent) {
  const at = clamp(percent, 0, 100);
  the("slider").value = String(at);
  the("left-pane").style.clipPath = `inset(0 ${100 - at}% 0 0)`;
  the("divider").style.left = `${at}%`;
}

/** A drag moves the divider near it, and anywhere while the whole image is seen; else it moves the image. */
function grabDivider(place) {
  const width = the("compare").clientWidth;
  const near = Math.abs(place.x - Number(the("slider").value) / 100) * width < 24;
  return near || zoom.scale === 1 ? ({ x }) => moveDivider(x * 100) : null;
}

function drawSideBySide(block, image) {
  const views = block.rows.map((row, index) => {
    const uri = picture(image, index);
    if (uri === null) return null;
    const shown = html("img", { src: uri, alt: `${image.name}, ${row.title}`, draggable: "false", onload: applyZoom });
    const view = html("div", { class: "view", tabindex: 0, role: "group", "aria-label": `${row.title}, zoomable` },
      html("div", { class: "pane" }, shown));
    makeZoomable(view);
    return html("figure", {}, view, html("figcaption", {}, row.title));
  });
  the("side-by-side").replaceChildren(...views.filter((view) => view !== null));
}

function drawWords(block, image) {
  const instructions = new Map();  // those of several rows that read the same stand once
  block.rows.forEach((row, index) => {
    const said = image.views[index]?.instruction;
    if (said) instructions.set(said, [...(instructions.get(said) ?? []), row.title]);
  });
  const named = (rows) => (instructions.size > 1 ? `Instruction of ${rows.join(", ")}` : "Instruction");
  const lines = [["Caption", image.caption], ["Degraded by", image.recipe]];
  for (const [said, rows] of instructions) lines.push([named(rows), said]);
  const pair = ([name, text]) => [html("dt", {}, name), html("dd", {}, text)];
  the("words").replaceChildren(...lines.filter(([, text]) => text).flatMap(pair));
}

/** The values of every row; bold is a metric's best among the methods, the rows compared are set off. */
function drawValues(block, image, compared) {
  const measured = block.rows.map((row, index) => ({ row, index, values: image.views[index]?.values ?? [] }))
    .filter(({ values }) => values.some((value) => value !== null));
  const best = block.metrics.map((metric, m) => {
    const values = measured.filter(({ row }) => row.method).map(({ values }) => values[m]);
    const known = values.filter((value) => value !== null);
    return known.length > 1 ? Math[metric.more ? "max" : "min"](...known) : null;
  });
  const isBest = (row, value, m) => row.method && value !== null && value === best[m];
  const heads = block.metrics.map((metric) => html("th", { scope: "col" }, headed(metric.name, metric.more)));
  const lines = measured.map(({ row, index, values }) =>
    html("tr", { class: compared.includes(index) && "compared" }, html("th", { scope: "row" }, row.title),
      ...values.map((value, m) => html("td", { class: isBest(row, value, m) && "best" }, short(value)))));
  the("values").replaceChildren(
    html("table", {}, html("thead", {}, html("tr", {}, html("th"), ...heads)), html("tbody", {}, ...lines)));
}

/** The data: URI of what a row shows of an image; null if it has none. */
function picture(image, row) {
  const place = image.views[row]?.picture;
  return place === null || place === undefined ? null : data.pictures[place];
}

/** Views have the shape of the image. */
function fitted({ target }) {
  the("viewer").style.setProperty("--ratio", target.naturalWidth / target.naturalHeight);
  applyZoom();
}

function startViewer() {
  the("slider").addEventListener("input", (event) => moveDivider(Number(event.target.value)));
  for (const side of ["left", "right"]) the(`${side}-image`).addEventListener("load", fitted);
  makeZoomable(the("compare"), grabDivider);
  the("zoom-in").addEventListener("click", () => zoomAt(STEP));
  the("zoom-out").addEventListener("click", () => zoomAt(1 / STEP));
  the("zoom-reset").addEventListener("click", resetZoom);
  new ResizeObserver(applyZoom).observe(the("compare"));
  moveDivider(50);
}

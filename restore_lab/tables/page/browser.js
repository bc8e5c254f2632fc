// The images of a condition: sorted, searched, the worst ten of a row, one of them in the viewer.
"use strict";

const TEN = 10;
const ALL = "all", NONE = "none";

/** What is chosen; rows and metrics by their places in the block. */
const chosen = {
  block: 0, image: NONE, left: 0, right: 0,
  metric: 0, row: 0, minus: NONE, order: "worst", worstOf: ALL, search: "",
};

const currentBlock = () => data.blocks[chosen.block];

/** What an image is sorted by: the row's value, less another row's; null if one is not there. */
function sortValue(image) {
  const own = image.views[chosen.row]?.values[chosen.metric] ?? null;
  if (chosen.minus === NONE || own === null) return own;
  const other = image.views[chosen.minus]?.values[chosen.metric] ?? null;
  return other === null ? null : own - other;
}

/** The places of the images that are shown, in order; those without a value come last. */
function listing() {
  const block = currentBlock();
  const valued = block.images.map((image, place) => ({ place, image, value: sortValue(image) }));
  const byName = (a, b) => a.image.name.localeCompare(b.image.name, undefined, { numeric: true });
  const sign = (chosen.order === "worst") === block.metrics[chosen.metric]?.more ? 1 : -1;
  const byValue = (a, b) => (a.value === null) - (b.value === null) || sign * (a.value - b.value) || byName(a, b);
  const sorted = valued.sort(chosen.order === "name" ? byName : byValue);
  const some = chosen.worstOf === ALL ? sorted : sorted.filter(({ value }) => value !== null).slice(0, TEN);
  const wanted = chosen.search.toLowerCase();
  return some.filter(({ image }) => `${image.name}\n${image.caption}`.toLowerCase().includes(wanted));
}

/** Choose a condition, and in it what is most likely wanted: the first method, against the LQ or else the original. */
function chooseBlock(place) {
  const { rows, images } = data.blocks[place];
  const shows = (index) => images.some((image) => picture(image, index) !== null);
  const shown = rows.map((row, index) => index).filter(shows);
  const right = shown.find((index) => rows[index].method) ?? shown[0];
  const left = shown.find((index) => rows[index].title === "LQ") ?? shown[0];
  Object.assign(chosen, { block: place, image: NONE, left, right, metric: 0, row: right, minus: NONE, worstOf: ALL });
  drawControls();
  draw();
}

function drawControls() {
  const { metrics, rows, images, notes } = currentBlock();
  const titles = rows.map((row, index) => [index, row.title]);
  const has = (index, test) => images.some((image) => image.views[index] && test(image.views[index]));
  const valued = titles.filter(([index]) => has(index, (view) => view.values.some((value) => value !== null)));
  const pictured = titles.filter(([index]) => has(index, (view) => view.picture !== null));
  offer(the("block"), data.blocks.map((block, index) => [index, block.title]), chosen.block);
  offer(the("metric"), metrics.map((metric, index) => [index, headed(metric.name, metric.more)]), chosen.metric);
  offer(the("sorted-row"), valued, chosen.row);
  offer(the("minus-row"), [[NONE, "nothing"], ...valued], chosen.minus);
  offer(the("left-row"), pictured, chosen.left);
  offer(the("right-row"), pictured, chosen.right);
  the("order").value = chosen.order;
  const methods = valued.filter(([index]) => rows[index].method);
  const tens = methods.map(([index, title]) => chip(`worst ten of ${title}`, index));
  the("shown").replaceChildren(chip("all images", ALL), ...tens);
  the("block-notes").replaceChildren(...notes.map((note) => html("li", {}, note)));
}

/** A button that shows all images, or the worst ten of a row by the chosen metric. */
function chip(text, row) {
  const press = () => {
    chosen.worstOf = row;
    if (row !== ALL) Object.assign(chosen, { row, minus: NONE, order: "worst", right: row });
    drawControls();
    draw();
  };
  const pressed = String(chosen.worstOf === row);
  return html("button", { type: "button", class: "chip", "aria-pressed": pressed, onclick: press }, text);
}

/** The thumbnails and, in the viewer, the chosen image, or the first one if that is not among them. */
function draw() {
  const shown = listing();
  const { images, total, metrics } = currentBlock();
  if (!shown.some(({ place }) => place === chosen.image)) chosen.image = shown[0]?.place ?? NONE;
  the("count").textContent = `${shown.length} shown; this file holds ${images.length} of ${total} images` +
    (metrics.length ? `; under each its ${the("metric").selectedOptions[0].text}` : "");
  the("thumbnails").replaceChildren(...shown.map(thumbnail));
  the("viewer").hidden = shown.length === 0;
  if (shown.length) select(chosen.image);
}

function thumbnail({ place, image, value }) {
  const uri = picture(image, chosen.right) ?? image.views.map((_, row) => picture(image, row)).find((found) => found);
  const selected = place === chosen.image;
  return html("button", {
    type: "button", class: "thumbnail", role: "option", "aria-selected": String(selected), tabindex: selected ? 0 : -1,
    "data-place": place, onclick: () => select(place),
  },
  html("img", { src: uri, alt: "", decoding: "async" }),
  html("span", {}, image.name),
  html("span", { class: "value" }, short(value)));
}

function select(place, { focus = false } = {}) {
  chosen.image = place;
  for (const button of the("thumbnails").children) {
    const selected = Number(button.dataset.place) === place;
    button.setAttribute("aria-selected", String(selected));
    button.tabIndex = selected ? 0 : -1;
    if (selected && focus) button.focus();
    if (selected) scrollInto(the("thumbnails"), button);
  }
  drawViewer(currentBlock(), currentBlock().images[place], chosen.left, chosen.right);
}

/** Scroll a list, and not the page, so that one of its children is seen. */
function scrollInto(list, child) {
  const [top, left] = [child.offsetTop - list.offsetTop, child.offsetLeft - list.offsetLeft];
  list.scrollTop = clamp(list.scrollTop, top + child.offsetHeight - list.clientHeight, top);
  list.scrollLeft = clamp(list.scrollLeft, left + child.offsetWidth - list.clientWidth, left);
}

/** Select the image so many places further in the listing. */
function step(by, options) {
  const places = [...the("thumbnails").children].map((button) => Number(button.dataset.place));
  const to = clamp(places.indexOf(chosen.image) + by, 0, places.length - 1);
  if (places.length) select(places[to], options);
}

function startBrowser() {
  const number = (text) => (text === NONE ? NONE : Number(text));
  const listen = (id, key, read) => the(id).addEventListener("input", (event) => {
    chosen[key] = read(event.target.value);
    if (["row", "minus", "order"].includes(key)) chosen.worstOf = ALL;
    drawControls();
    draw();
  });
  listen("metric", "metric", Number);
  listen("sorted-row", "row", Number);
  listen("minus-row", "minus", number);
  listen("order", "order", String);
  listen("search", "search", String);
  listen("left-row", "left", Number);
  listen("right-row", "right", Number);
  the("block").addEventListener("input", (event) => chooseBlock(Number(event.target.value)));
  the("previous").addEventListener("click", () => step(-1));
  the("next").addEventListener("click", () => step(1));
  the("thumbnails").addEventListener("keydown", (event) => {
    const list = the("thumbnails").children;
    const line = [...list].filter((button) => button.offsetTop === list[0].offsetTop).length;
    const all = list.length;
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -line, ArrowDown: line, Home: -all, End: all }[event.key];
    if (!by) return;
    event.preventDefault();
    step(by, { focus: true });
  });
  the("viewer").addEventListener("keydown", (event) => {
    if (event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "n") step(1);
    if (event.key === "p") step(-1);
  });
}

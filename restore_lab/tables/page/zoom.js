// One zoom for every view: what happens in one (wheel, drag, two fingers, keys) happens in all.
"use strict";

const MOST = 32;
const STEP = 1.25;
const NUDGE = 0.1;

// The image is enlarged by `scale` about its upper left corner, then moved by x widths and y heights of the view.
const zoom = { scale: 1, x: 0, y: 0 };

/** Bring every view up to date. */
function applyZoom() {
  zoom.x = clamp(zoom.x, 1 - zoom.scale, 0);
  zoom.y = clamp(zoom.y, 1 - zoom.scale, 0);
  for (const image of document.querySelectorAll(".view img")) {
    image.style.transform = `translate(${zoom.x * 100}%, ${zoom.y * 100}%) scale(${zoom.scale})`;
    const pixels = image.clientWidth * zoom.scale * devicePixelRatio;
    image.classList.toggle("magnified", image.naturalWidth > 0 && pixels > image.naturalWidth);
  }
  the("viewer").classList.toggle("zoomed", zoom.scale > 1);
  the("zoom-level").textContent = `${Number(zoom.scale.toFixed(1))}x`;
}

/** Zoom by a factor about a point of the view (x and y in [0, 1]). Says whether anything changed. */
function zoomAt(factor, x = 0.5, y = 0.5) {
  const scale = clamp(zoom.scale * factor, 1, MOST);
  if (scale === zoom.scale) return false;
  zoom.x = x - (x - zoom.x) * (scale / zoom.scale);
  zoom.y = y - (y - zoom.y) * (scale / zoom.scale);
  zoom.scale = scale;
  applyZoom();
  return true;
}

/** Move the image by parts of the view. Says whether there is anything to move. */
function shiftBy(x, y) {
  zoom.x += x;
  zoom.y += y;
  applyZoom();
  return zoom.scale > 1;
}

/** Show the whole image. */
function resetZoom() {
  Object.assign(zoom, { scale: 1, x: 0, y: 0 });
  applyZoom();
  return true;
}

/** A pointer's place in a view, both in [0, 1]. */
function placeIn(view, event) {
  const box = view.getBoundingClientRect();
  return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
}

/** Let a view answer wheel, drag, two fingers and keys. A drag is given to the function that `grab(place)` returns. */
function makeZoomable(view, grab = () => null) {
  const pointers = new Map();
  let taken = null;

  view.addEventListener("wheel", (event) => {
    const { x, y } = placeIn(view, event);
    if (zoomAt(STEP ** (-event.deltaY / 100), x, y)) event.preventDefault();  // at its end the page scrolls
  }, { passive: false });

  view.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const place = placeIn(view, event);
    pointers.set(event.pointerId, place);
    taken = pointers.size === 1 ? grab(place) : null;
    taken?.(place);
    view.setPointerCapture(event.pointerId);
  });

  view.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const place = placeIn(view, event);
    pointers.set(event.pointerId, place);
    if (taken) {
      taken(place);
    } else if (pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      zoomAt(distance(place, other) / (distance(before, other) || 1), (place.x + other.x) / 2, (place.y + other.y) / 2);
    } else {
      shiftBy(place.x - before.x, place.y - before.y);
    }
  });

  for (const end of ["pointerup", "pointercancel"]) {
    view.addEventListener(end, (event) => { pointers.delete(event.pointerId); taken = null; });
  }

  view.addEventListener("keydown", (event) => {
    const act = KEYS[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    if (act()) event.preventDefault();
  });
}

const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y);

const KEYS = {
  "+": () => zoomAt(STEP),
  "=": () => zoomAt(STEP),
  "-": () => zoomAt(1 / STEP),
  "0": resetZoom,
  ArrowLeft: () => shiftBy(NUDGE, 0),
  ArrowRight: () => shiftBy(-NUDGE, 0),
  ArrowUp: () => shiftBy(0, NUDGE),
  ArrowDown: () => shiftBy(0, -NUDGE),
};

// Elements and numbers, as the other scripts use them; and the page's data.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);

/** The element with an id. */
const the = (id) => document.getElementById(id);

/** A new element; attributes named on... are listeners, those that are false, null or undefined are left out. */
function html(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

const SVG = new DOMParser().parseFromString("<svg></svg>", "text/html").querySelector("svg").namespaceURI;

/** A new element of a drawing. */
function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Give a select element these options, [value, text] each, and choose one. */
function offer(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => html("option", { value }, text)));
  select.value = String(chosen);
}

/** A number in about four digits. */
function short(value) {
  if (value === null || value === undefined) return "-";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 1e-3)) return value.toExponential(2);
  return size >= 100 ? value.toFixed(1) : size >= 10 ? value.toFixed(2) : value.toFixed(4);
}

/** A heading with the direction in which its numbers are better. */
const headed = (title, more) => `${title} ${more ? "\u2191" : "\u2193"}`;

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

const LINE_COLOURS = 8;

/** The class of the style sheet that colours the line at a place. */
const lineClass = (index) => `line-${index % LINE_COLOURS}`;

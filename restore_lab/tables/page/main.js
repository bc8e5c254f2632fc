// Draws the page from its data.
"use strict";

const { table } = data;
document.title = `${table.name}: ${table.title}`;
the("title").textContent = document.title;
the("source").textContent = table.source;
the("missing").hidden = !data.missing;
the("missing").textContent = data.missing;

drawTable(table, the("table-place"));
const some = (test) => table.lines.some((line) => line.cells.some(test));
the("table-legend").textContent = [
  "Click a heading to sort.",
  some((cell) => cell.mark) ? "Bold: best, underlined: second, as far as paired 95 percent intervals tell them apart." : "",
  some((cell) => cell.published) ? "In brackets: published." : "",
].join(" ");
the("claims").append(...listed("Claims", table.claims));
the("notes").append(...listed("Notes", table.notes));

the("no-curves").hidden = data.charts.length > 0;
the("log-control").hidden = data.charts.length === 0;
const redraws = data.charts.map((chart) => drawChart(chart, the("charts"), () => the("log-scale").checked));
the("log-scale").addEventListener("input", () => redraws.forEach((redraw) => redraw()));

const first = data.blocks.findIndex((block) => block.images.length);
the("no-images").hidden = first >= 0;
the("browser").hidden = first < 0;
if (first >= 0) {
  data.blocks = data.blocks.filter((block) => block.images.length);
  the("block-control").hidden = data.blocks.length < 2;
  startViewer();
  startBrowser();
  chooseBlock(0);
}

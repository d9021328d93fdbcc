// Columns sort by click or key, and the plot is drawn; the page has the rest without this script.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...[...table.tHead.rows].at(-1).cells];
  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value || NaN);
  };
  const compare = (a, b) => typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
  const missing = (value) => typeof value === "number" && Number.isNaN(value);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const first = head.classList.contains("number") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      const sign = order === "ascending" ? 1 : -1;
      heads.forEach((each) => each.setAttribute("aria-sort", each === head ? order : "none"));
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      // What is missing stays at the end either way.
      rows.sort(([a], [b]) => missing(a) - missing(b) || (missing(a) ? 0 : sign * compare(a, b)));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

// Each point of the plot has its values; here it gets its place, and the plot its axes.
const plot = document.querySelector("svg.plot");
if (plot) {
  const [left, right, top, bottom] = [56, 628, 32, 344];
  const points = [...plot.querySelectorAll(".point")];
  const below = plot.firstChild;
  const draw = (name, attributes, text = "") => {
    const element = document.createElementNS(plot.namespaceURI, name);
    Object.entries(attributes).forEach((pair) => element.setAttribute(...pair));
    element.textContent = text;
    plot.insertBefore(element, below);
  };
  const axis = (values, start, end) => {
    const [least, most] = [Math.min, Math.max].map((of) => values.reduce((a, b) => of(a, b)));
    const room = Math.max(0.06 * (most - least), 1);
    const [low, high] = [least - room, most + room];
    // At most nine ticks, at multiples of 1, 2 or 5 times a power of ten.
    const rough = (high - low) / 8;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => power * factor >= rough * (1 - 1e-9));
    const ticks = [];
    for (let n = Math.ceil(low / step); n <= high / step; n++) ticks.push(Number((n * step).toPrecision(6)));
    return { ticks, at: (value) => start + (value - low) / (high - low) * (end - start) };
  };
  const x = axis(points.map((point) => Number(point.dataset.x)), left, right);
  const y = axis([0, ...points.map((point) => Number(point.dataset.y))], bottom, top);
  const label = (tick) => String(tick).replace("-", "\u2212");
  draw("rect", { class: "zone", x: left, y: y.at(0), width: right - left, height: bottom - y.at(0) });
  for (const tick of y.ticks) {
    draw("line", { class: tick ? "grid" : "zero", x1: left, x2: right, y1: y.at(tick), y2: y.at(tick) });
    draw("text", { class: "y", x: left - 8, y: y.at(tick) + 4, "text-anchor": "end" }, label(tick));
  }
  x.ticks.forEach((tick, number) => {
    draw("line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: bottom, y2: top });
    draw("text", { class: number % 2 ? "x minor" : "x", x: x.at(tick), y: bottom + 20, "text-anchor": "middle" }, label(tick));
  });
  for (const point of points) {
    point.setAttribute("transform", `translate(${x.at(point.dataset.x)} ${y.at(point.dataset.y)})`);
  }
  plot.closest("figure").hidden = false;
}

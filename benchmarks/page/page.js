"use strict";
// Tables sort by a click on a heading; the filter hides rows and fades marks; marks say what they are.
const rows = [...document.querySelectorAll("tbody tr")];
const marks = [...document.querySelectorAll(".mark")];

function keyOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.key === undefined ? cell.textContent : Number(cell.dataset.key);
}

function compare(a, b) {
  return typeof a === "number" && typeof b === "number"
    ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true});
}

function sort(heading) {
  const table = heading.closest("table"), column = heading.cellIndex;
  const sign = heading.ariaSort === "ascending" ? -1 : 1;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort((a, b) => sign * compare(keyOf(a, column), keyOf(b, column))));
}

for (const heading of document.querySelectorAll("thead th")) {
  const button = document.createElement("button");
  button.append(...heading.childNodes);
  button.addEventListener("click", () => sort(heading));
  heading.append(button);
}

const bar = document.createElement("div");
bar.className = "filter";
bar.innerHTML = '<label>Filter <input type="search" placeholder="gru training 512"></label><output></output>';
document.querySelector("main").prepend(bar);
const input = bar.querySelector("input");
for (const row of rows) row.words = row.textContent.toLowerCase();
for (const mark of marks) {
  const title = mark.querySelector("title");
  mark.tip = title.textContent;
  title.remove();  // the browser's own would lie over ours
}

input.addEventListener("input", () => {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = (text) => words.every((word) => text.includes(word));
  let shown = 0;
  for (const row of rows) shown += !(row.hidden = !wanted(row.words));
  for (const mark of marks) mark.classList.toggle("out", !wanted(mark.tip.toLowerCase()));
  bar.querySelector("output").textContent = words.length ? `${shown} of ${rows.length} rows of tables` : "";
});

const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
document.addEventListener("pointermove", show);
document.addEventListener("pointerdown", show);
document.addEventListener("scroll", () => { tip.hidden = true; });

function show(event) {
  const mark = event.target.closest?.(".mark");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.tip;
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 4))}px`;
  const below = event.clientY + 16;
  tip.style.top = `${below + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : below}px`;
}

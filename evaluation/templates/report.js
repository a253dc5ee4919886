"use strict";
// A click on a picture shows it large.
document.addEventListener("click", event => {
  const open = document.querySelector(".zoom");
  if (open) return open.remove();
  if (!event.target.matches(".pictures img, .timeline img")) return;
  const zoom = document.createElement("div"), image = document.createElement("img");
  zoom.className = "zoom"; image.src = event.target.src; image.alt = event.target.alt;
  zoom.append(image); document.body.append(zoom);
});
document.addEventListener("keydown", event => { if (event.key === "Escape") document.querySelector(".zoom")?.remove(); });
// Charts: the values at the step under the pointer.
for (const plot of document.querySelectorAll(".plot[data-lines]")) {
  const lines = JSON.parse(plot.dataset.lines);
  let marks = [];
  const clear = () => { marks.forEach(mark => mark.remove()); marks = []; };
  const add = (name, style) => {
    const mark = document.createElement("div");
    mark.className = name; Object.assign(mark.style, style); plot.append(mark); marks.push(mark);
    return mark;
  };
  plot.addEventListener("pointerleave", clear);
  plot.addEventListener("pointermove", event => {
    clear();
    const area = plot.getBoundingClientRect(), at = (event.clientX - area.left) / area.width;
    const hits = lines.map(line => ({ line, point: line.points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a) }));
    const x = hits[0].point[0];
    add("hair", { left: `${100 * x}%` });
    for (const { line, point } of hits) add(`dot s${line.colour}`, { left: `${100 * point[0]}%`, bottom: `${100 * Math.min(1, Math.max(0, point[1]))}%`, top: "auto", marginBottom: "-4.5px" });
    const tip = add("tip", x > .5 ? { right: `${100 * (1 - x)}%`, marginRight: "12px" } : { left: `${100 * x}%`, marginLeft: "12px" });
    const head = document.createElement("b");
    head.textContent = `step ${hits[0].point[2]}`; tip.append(head);
    for (const { line, point } of hits) {
      const row = document.createElement("div");
      row.textContent = lines.length > 1 ? `${line.name}  ${point[3]}` : point[3]; tip.append(row);
    }
  });
}

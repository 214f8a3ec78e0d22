// Hovering or walking over the tree: the way of one particle, and what is known of it. Text only ever as text.
for (const svg of document.querySelectorAll("svg.family")) {
  const dots = new Map([...svg.querySelectorAll("circle[data-id]")].map((dot) => [dot.dataset.id, dot]));
  const way = svg.querySelector("path.pointed");
  const note = svg.closest("section").querySelector(".inspector");
  const pictures = new Map([...document.querySelectorAll("img[data-particle]")].map((i) => [i.dataset.particle, i.src]));
  const first = note.textContent;
  const at = (dot) => ["cx", "cy"].map((name) => Number(dot.getAttribute(name)));
  let current = null;
  const show = (dot) => {
    if (dot === current) return;
    current = dot;
    note.replaceChildren();
    let path = "";
    if (!dot) note.textContent = first;
    for (let child = dot; child; ) {
      const parent = dots.get(child.dataset.parent);
      if (parent) {
        const [[x0, y0], [x1, y1]] = [at(parent), at(child)];
        path += `M${x0} ${y0}C${(x0 + x1) / 2} ${y0} ${(x0 + x1) / 2} ${y1} ${x1} ${y1}`;
      }
      child = parent;
    }
    way.setAttribute("d", path);
    if (!dot) return;
    let seen = dot;
    while (seen && !pictures.has(seen.dataset.id)) seen = dots.get(seen.dataset.parent);
    if (seen) {
      const picture = document.createElement("img");
      picture.src = pictures.get(seen.dataset.id);
      picture.alt = `particle ${seen.dataset.id}`;
      note.append(picture);
    }
    note.append(dot.querySelector("title").textContent);
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    let best = null;
    let near = 20 ** 2;
    for (const dot of dots.values()) {
      const [cx, cy] = at(dot);
      const distance = (cx - x) ** 2 + (cy - y) ** 2;
      if (distance < near) [best, near] = [dot, distance];
    }
    show(best);
  });
  svg.addEventListener("pointerleave", () => show(null));
  svg.addEventListener("keydown", (event) => {
    const all = [...dots.values()].sort((a, b) => at(a)[0] - at(b)[0] || at(a)[1] - at(b)[1]);
    const from = current ?? [...svg.querySelectorAll("circle.won")].pop() ?? all[all.length - 1];
    const column = all.filter((dot) => at(dot)[0] === at(from)[0]);
    const row = column.indexOf(from);
    const later = all.filter((dot) => dot.dataset.parent === from.dataset.id);
    const moves = {
      ArrowLeft: dots.get(from.dataset.parent),
      ArrowRight: later.find((dot) => dot.matches(".won")) ?? later[0],
      ArrowUp: column[row - 1],
      ArrowDown: column[row + 1],
    };
    if (event.key === "Escape") return show(null);
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(moves[event.key] ?? from);
  });
}

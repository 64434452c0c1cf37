"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const state = { modalities: new Set(["visual", "text", "joint"]), hidden: new Set(), shift: null };
  const redraws = [];
  const tip = document.getElementById("tip");
  const minus = text => text.replace("-", "−");
  const fixed = (value, digits) => value === null || value === undefined ? "–" : minus(value.toFixed(digits));
  const css = name => `var(--${name})`;
  const colourOf = (result, split, several) => several ? css(`s${result.number % 7}`) : css(["visual", "text", "joint"].includes(split.modality) ? split.modality : "other");
  const shown = (result, split) => state.modalities.has(split.modality) && !state.hidden.has(result.number);
  const describe = (result, split) => [
    `${split.short}${split.name === split.short ? "" : ` (${split.name})`}`, result.label,
    `EMID ${fixed(split.emid, result.digits)}${split.ci ? ` [${fixed(split.ci[0], result.digits)}, ${fixed(split.ci[1], result.digits)}]` : ""}${split.verdict ? `, ${split.verdict}` : ""}`,
    `EMI ${fixed(split.emi, result.digits)}${split.p === null ? "" : `, p ${split.p < 0.001 ? "< 0.001" : split.p.toFixed(3)}`}`,
    `index ${fixed(split.index, 3)}${split.n === null ? "" : `, ${split.n} rows`}${split.images === null ? "" : `, ${split.images} images`}`,
  ].join("\n");

  function showTip(text, box) {
    tip.textContent = text;
    tip.hidden = false;
    const own = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(box.right + 10, innerWidth - own.width - 4))}px`;
    tip.style.top = `${Math.max(4, Math.min(box.top - own.height / 2, innerHeight - own.height - 4))}px`;
  }
  const hideTip = () => { tip.hidden = true; };

  function choose(name, scroll) {
    state.shift = state.shift === name ? null : name;
    redraws.forEach(draw => draw());
    document.querySelectorAll("tr[data-split]").forEach(row => row.classList.toggle("chosen", row.dataset.split === state.shift));
    if (state.shift && scroll) {
      document.querySelectorAll("details[data-split]").forEach(one => { if (one.dataset.split === state.shift) { one.open = true; one.scrollIntoView({ block: "nearest" }); } });
    }
  }

  // What a pointer does to a mark, the arrow keys do to the marks of a focused figure.
  function interactive(svg, marks, textOf, nameOf) {
    marks.on("mouseenter", function (d) { showTip(textOf(d), this.getBoundingClientRect()); })
      .on("mouseleave", hideTip)
      .on("click", d => choose(nameOf(d), true));
    let at = -1;
    svg.attr("tabindex", 0).on("keydown", () => {
      const nodes = marks.nodes(), key = d3.event.key;
      if (!nodes.length || !["ArrowDown", "ArrowUp", "ArrowLeft", "ArrowRight", "Enter", "Escape"].includes(key)) return;
      d3.event.preventDefault();
      if (key === "Escape") { hideTip(); return; }
      if (key === "Enter") { if (at >= 0) choose(nameOf(d3.select(nodes[at]).datum()), true); return; }
      at = (at + (key === "ArrowDown" || key === "ArrowRight" ? 1 : nodes.length - 1)) % nodes.length;
      showTip(textOf(d3.select(nodes[at]).datum()), nodes[at].getBoundingClientRect());
    }).on("blur", hideTip);
  }

  function canvas(holder, width, height) {
    holder.textContent = "";
    return d3.select(holder).append("svg").attr("viewBox", `0 0 ${width} ${height}`).attr("width", width).attr("height", height)
      .attr("role", "img").attr("aria-label", holder.dataset.alt);
  }
  const clip = (text, most) => text.length <= most ? text : `${text.slice(0, most - 1)}…`;
  const dot = (modality) => ({ visual: d3.symbolCircle, text: d3.symbolSquare, joint: d3.symbolTriangle }[modality] || d3.symbolDiamond);

  function register(holder, draw) {
    const run = () => { if (holder.clientWidth) draw(holder, Math.max(280, holder.clientWidth)); };
    redraws.push(run);
    run();
  }

  // Shifts ranked by EMID with their intervals, models beside each other.
  document.querySelectorAll(".chart.ranked").forEach(holder => register(holder, (element, width) => {
    const all = holder.dataset.results.split(",").map(Number).map(number => data.results[number]);
    const results = all.filter(result => !state.hidden.has(result.number));
    const names = [], byName = new Map();
    results.forEach(result => result.splits.filter(split => split.emid !== null && shown(result, split)).forEach(split => {
      if (!byName.has(split.name)) { byName.set(split.name, []); names.push(split.name); }
      byName.get(split.name).push({ result, split });
    }));
    names.sort((a, b) => d3.descending(byName.get(a)[0].split.emid, byName.get(b)[0].split.emid));
    const narrow = width < 560, lane = 13, labelRow = narrow ? 16 : 0;
    const band = Math.max(20, lane * Math.max(1, results.length) + 6) + labelRow;
    const longest = d3.max(names, name => byName.get(name)[0].split.short.length) || 0;
    const left = narrow ? 8 : Math.min(width * 0.36, 16 + 6.7 * Math.min(longest, 40));
    const height = 26 + band * names.length + 48;
    const svg = canvas(element, width, height);
    const points = names.reduce((found, name) => found.concat(byName.get(name)), []);
    const ends = points.reduce((found, { split }) => found.concat(split.ci || [], split.emid), [0]);
    const x = d3.scaleLinear().domain(d3.extent(ends)).nice().range([left, width - 14]);
    svg.append("line").attr("class", "zero").attr("x1", x(0)).attr("x2", x(0)).attr("y1", 12).attr("y2", height - 42);
    const several = all.length > 1;
    names.forEach((name, place) => {
      const top = 18 + place * band, own = byName.get(name);
      if (name === state.shift) svg.insert("rect", ":first-child").attr("class", "row-hover").attr("x", 0).attr("y", top - 3).attr("width", width).attr("height", band);
      svg.append("text").attr("x", narrow ? left : left - 10).attr("y", narrow ? top + 9 : top + (band - labelRow) / 2)
        .attr("text-anchor", narrow ? "start" : "end").text(clip(own[0].split.short, narrow ? Math.floor(width / 7.5) : 40)).append("title").text(name);
      own.forEach((one, number) => { one.y = top + labelRow + (band - labelRow) / 2 - 3 + (number - (own.length - 1) / 2) * lane; });
    });
    const marks = svg.selectAll("g.mark").data(points).enter().append("g").attr("class", "mark");
    marks.filter(one => one.split.ci).append("line").attr("stroke-width", 2.2).attr("y1", one => one.y).attr("y2", one => one.y)
      .attr("x1", one => x(one.split.ci[0])).attr("x2", one => x(one.split.ci[1])).attr("stroke", one => colourOf(one.result, one.split, several));
    marks.append("path").attr("d", one => d3.symbol().type(dot(one.split.modality)).size(64)()).attr("transform", one => `translate(${x(one.split.emid)},${one.y})`)
      .attr("stroke-width", 2).attr("stroke", one => colourOf(one.result, one.split, several))
      .attr("fill", one => ["lost", "gained"].includes(one.split.verdict) ? colourOf(one.result, one.split, several) : css("paper"));
    svg.append("g").attr("class", "axis").attr("transform", `translate(0,${height - 42})`).call(d3.axisBottom(x).ticks(Math.max(3, width / 130)));
    svg.append("text").attr("class", "soft").attr("x", width - 14).attr("y", height - 4).attr("text-anchor", "end").text("EMID: what is lost under the shift →");
    interactive(svg, marks, one => describe(one.result, one.split), one => one.split.name);
  }));

  // EMID over severity, an operator a panel.
  document.querySelectorAll(".chart.severity").forEach(holder => register(holder, (element, width) => {
    const result = data.results[Number(holder.dataset.result)], points = result.splits.filter(split => split.operator === holder.dataset.operator);
    if (!points.some(split => shown(result, split))) { element.textContent = ""; return; }
    const height = 178, svg = canvas(element, width, height), series = result.splits.filter(split => split.operator !== null);
    const ends = series.reduce((found, split) => found.concat(split.ci || [], split.emid), [0]);
    const x = d3.scalePoint().domain(points.map(split => split.level)).range([44, width - 16]).padding(0.3), y = d3.scaleLinear().domain(d3.extent(ends)).nice().range([height - 46, 10]);
    const colour = css(points[0].modality);
    svg.append("line").attr("class", "zero").attr("x1", 40).attr("x2", width - 8).attr("y1", y(0)).attr("y2", y(0));
    svg.append("path").attr("fill", "none").attr("stroke-width", 1.8).attr("stroke", colour).attr("d", d3.line().x(split => x(split.level)).y(split => y(split.emid))(points));
    const marks = svg.selectAll("g.mark").data(points).enter().append("g").attr("class", "mark");
    marks.filter(split => split.ci).append("line").attr("stroke", colour).attr("stroke-width", 2).attr("x1", split => x(split.level)).attr("x2", split => x(split.level)).attr("y1", split => y(split.ci[0])).attr("y2", split => y(split.ci[1]));
    marks.append("path").attr("d", split => d3.symbol().type(dot(split.modality)).size(60)()).attr("transform", split => `translate(${x(split.level)},${y(split.emid)})`).attr("stroke", colour).attr("stroke-width", 2)
      .attr("class", split => split.name === state.shift ? "on" : null).attr("fill", split => ["lost", "gained"].includes(split.verdict) ? colour : css("paper"));
    svg.append("g").attr("class", "axis").attr("transform", `translate(0,${height - 46})`).call(d3.axisBottom(x).tickSizeOuter(0));
    svg.append("g").attr("class", "axis").attr("transform", "translate(40,0)").call(d3.axisLeft(y).ticks(4));
    svg.append("text").attr("class", "soft").attr("x", width - 8).attr("y", height - 6).attr("text-anchor", "end").text("level");
    interactive(svg, marks, split => describe(result, split), split => split.name);
  }));

  // What moved: the roots of the divergences, each with what it would be without a shift.
  const parts = [["v", "images"], ["t", "questions"], ["id", "responses, ID"], ["ood", "responses, shift"]];
  document.querySelectorAll(".chart.moved").forEach(holder => register(holder, (element, width) => {
    const result = data.results[Number(holder.dataset.result)];
    const splits = result.splits.filter(split => split.roots && shown(result, split)).sort((a, b) => d3.descending(d3.sum(Object.values(a.roots)), d3.sum(Object.values(b.roots))));
    const narrow = width < 560, labelRow = narrow ? 15 : 0, band = 20 + labelRow, longest = d3.max(splits, split => split.short.length) || 0;
    const left = narrow ? 8 : Math.min(width * 0.36, 16 + 6.7 * Math.min(longest, 40)), height = 16 + band * splits.length + 46;
    const svg = canvas(element, width, height), x = d3.scaleLinear().domain([0, d3.max(splits, split => d3.sum(Object.values(split.roots))) || 1]).nice().range([left, width - 14]);
    const cells = [];
    splits.forEach((split, place) => {
      let start = 0;
      const top = 10 + place * band;
      svg.append("text").attr("x", narrow ? left : left - 10).attr("y", narrow ? top + 10 : top + 13).attr("text-anchor", narrow ? "start" : "end").text(clip(split.short, narrow ? Math.floor(width / 7.5) : 40)).append("title").text(split.name);
      parts.forEach(([key, label], number) => { cells.push({ split, key, label, number, start, end: start + split.roots[key], top: top + labelRow, floor: split.floors[key] }); start += split.roots[key]; });
    });
    const marks = svg.selectAll("g.mark").data(cells).enter().append("g").attr("class", "mark");
    marks.append("rect").attr("x", cell => x(cell.start)).attr("width", cell => Math.max(0, x(cell.end) - x(cell.start) - 1)).attr("y", cell => cell.top).attr("height", 15)
      .attr("fill", cell => css(`p${cell.number}`)).attr("class", cell => cell.split.name === state.shift ? "on" : null);
    marks.filter(cell => cell.floor !== undefined).append("line").attr("x1", cell => x(cell.start + cell.floor)).attr("x2", cell => x(cell.start + cell.floor)).attr("y1", cell => cell.top - 1).attr("y2", cell => cell.top + 16).attr("stroke", css("ink")).attr("stroke-width", 1.6);
    svg.append("g").attr("class", "axis").attr("transform", `translate(0,${height - 40})`).call(d3.axisBottom(x).ticks(Math.max(3, width / 130)));
    svg.append("text").attr("class", "soft").attr("x", width - 14).attr("y", height - 2).attr("text-anchor", "end").text("root of the divergence; line: without a shift");
    interactive(svg, marks, cell => `${cell.split.short}\n${cell.label}: ${cell.split.roots[cell.key].toFixed(3)}${cell.floor === undefined ? "" : `, without a shift ${cell.floor.toFixed(3)}`}`, cell => cell.split.name);
  }));

  // Two scores of every split. Names that would lie on one another are left to the pointer and the table.
  document.querySelectorAll(".chart.scatter").forEach(holder => register(holder, (element, width) => {
    const spec = data.scatters[Number(holder.dataset.scatter)], result = spec.result === null ? null : data.results[spec.result];
    const points = spec.points.filter(point => point.x !== null && point.y !== null && (!point.modality || state.modalities.has(point.modality)));
    const height = Math.min(440, Math.max(300, width * 0.6)), svg = canvas(element, width, height);
    const x = d3.scaleLinear().domain(d3.extent(points, point => point.x)).nice().range([56, width - 20]), y = d3.scaleLinear().domain(d3.extent(points, point => point.y)).nice().range([height - 52, 22]);
    svg.append("g").attr("class", "axis").attr("transform", `translate(0,${height - 52})`).call(d3.axisBottom(x).ticks(Math.max(3, width / 130)));
    svg.append("g").attr("class", "axis").attr("transform", "translate(56,0)").call(d3.axisLeft(y).ticks(6));
    svg.append("text").attr("class", "soft").attr("x", width - 20).attr("y", height - 8).attr("text-anchor", "end").text(`${spec.x} →`);
    svg.append("text").attr("class", "soft").attr("x", 4).attr("y", 11).text(`↑ ${spec.y}`);
    const marks = svg.selectAll("g.mark").data(points).enter().append("g").attr("class", "mark");
    marks.append("path").attr("d", point => d3.symbol().type(dot(point.modality)).size(52)()).attr("transform", point => `translate(${x(point.x)},${y(point.y)})`)
      .attr("fill", point => css(point.modality || "s0")).attr("class", point => point.name === state.shift ? "on" : null);
    const boxes = points.map(point => ({ left: x(point.x) - 5, right: x(point.x) + 5, top: y(point.y) - 5, bottom: y(point.y) + 5 }));
    points.forEach((point, place) => {
      const text = clip(point.short, 24), wide = text.length * 7, flipped = x(point.x) + 8 + wide > width - 4, from = flipped ? x(point.x) - 8 - wide : x(point.x) + 8;
      const box = { left: from, right: from + wide, top: y(point.y) - 8, bottom: y(point.y) + 6 };
      const free = box.left > 58 && boxes.every((other, own) => own === place || box.right < other.left || other.right < box.left || box.bottom < other.top || other.bottom < box.top);
      if (!free && point.name !== state.shift) return;
      boxes.push(box);
      svg.append("text").attr("class", "soft").attr("x", flipped ? x(point.x) - 8 : from).attr("text-anchor", flipped ? "end" : "start").attr("y", y(point.y) + 4).text(text);
    });
    interactive(svg, marks, point => `${point.short}${result ? `\n${result.label}` : ""}\n${spec.x} ${minus(point.x.toPrecision(3))}\n${spec.y} ${minus(point.y.toPrecision(3))}`, point => point.name);
  }));

  // Controls.
  document.querySelectorAll("input[data-modality]").forEach(box => box.addEventListener("change", () => {
    state.modalities[box.checked ? "add" : "delete"](box.dataset.modality);
    document.querySelectorAll("input[data-modality]").forEach(other => { if (other.dataset.modality === box.dataset.modality) other.checked = box.checked; });
    document.querySelectorAll("[data-of]").forEach(one => { one.hidden = !state.modalities.has(one.dataset.of); });
    redraws.forEach(draw => draw());
  }));
  document.querySelectorAll("input[data-series]").forEach(box => box.addEventListener("change", () => {
    state.hidden[box.checked ? "delete" : "add"](Number(box.dataset.series));
    redraws.forEach(draw => draw());
  }));
  document.querySelectorAll("tr[data-split]").forEach(row => row.addEventListener("click", event => { if (!event.target.closest("a, button")) choose(row.dataset.split, false); }));
  document.querySelectorAll("table.sortable").forEach(table => table.querySelectorAll("thead th").forEach((th, column) => {
    const button = th.querySelector("button");
    if (button) button.addEventListener("click", () => {
      const up = th.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => { const cell = row.cells[column]; return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value); };
      const rows = [...table.tBodies[0].rows].sort((a, b) => { const [p, q] = [key(a), key(b)]; return (typeof p === "number" && typeof q === "number" ? p - q : String(p).localeCompare(String(q))) * (up ? 1 : -1); });
      table.tBodies[0].append(...rows);
    });
  }));
  document.querySelectorAll(".copy").forEach(button => button.addEventListener("click", async () => {
    const table = button.previousElementSibling.querySelector("table");
    const text = [...table.rows].map(row => [...row.cells].map(cell => cell.dataset.value ?? cell.textContent.trim()).join("\t")).join("\n");
    try { await navigator.clipboard.writeText(text); } catch { const area = document.createElement("textarea"); area.value = text; document.body.append(area); area.select(); document.execCommand("copy"); area.remove(); }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy table"; }, 1500);
  }));

  // Rows are made when they are first looked at, and their images when they come into view.
  const seen = new IntersectionObserver(entries => entries.forEach(entry => {
    if (entry.isIntersecting) { entry.target.src = data.images[Number(entry.target.dataset.image)]; seen.unobserve(entry.target); }
  }), { rootMargin: "300px" });
  const element = (name, className, text) => { const one = document.createElement(name); if (className) one.className = className; if (text !== undefined) one.textContent = text; return one; };
  function side(title, row, digits) {
    const box = element("div", "side");
    box.append(element("p", "tag", `${title}${row.value === null ? "" : `: contributes ${fixed(row.value, digits)} to EMI`}`));
    if (row.image !== null) { const image = element("img"); image.alt = `${title}: the image of this row`; image.dataset.image = row.image; image.width = 150; image.height = 110; box.append(image); seen.observe(image); }
    [["Question", row.question], ["Response", row.response]].forEach(([label, text]) => { const line = element("p"); line.append(element("span", "tag", `${label}: `), text); box.append(line); });
    return box;
  }
  function rowElement(row, digits) {
    const box = element("div", "row");
    const moved = row.clean ? ["image", "question", "response"].filter(key => row[key] !== row.clean[key]) : [];
    box.append(element("p", "tag", `Row ${row.id}: lost ${fixed(row.loss, digits)}${moved.length ? `; what moved: ${moved.join(", ")}` : ""}`));
    const sides = element("div", "sides");
    if (row.clean) sides.append(side("Clean", row.clean, digits));
    sides.append(side("Shifted", row, digits));
    const reference = element("p", "reference");
    reference.append(element("span", "tag", "Reference: "), row.reference);
    box.append(sides, reference);
    return box;
  }
  document.querySelectorAll("details[data-rows]").forEach(holder => {
    const [number, name] = JSON.parse(holder.dataset.rows), result = data.results[number], rows = result.rows[name];
    const fill = () => { if (!holder.querySelector(".row")) holder.append(...rows.map(row => rowElement(row, result.digits))); };
    holder.addEventListener("toggle", () => { if (holder.open) fill(); });
    if (holder.open) fill();
    holder.matches_ = words => rows.some(row => { const text = [row.id, row.question, row.response, row.reference, name, row.clean ? `${row.clean.question} ${row.clean.response}` : ""].join(" ").toLowerCase(); return words.every(word => text.includes(word)); });
  });
  document.querySelectorAll("input[type=search]").forEach(box => box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    box.closest("section").querySelectorAll("details[data-rows]").forEach(holder => {
      const found = holder.matches_(words);
      holder.hidden = !found;
      count += found;
    });
    box.closest("section").querySelector(".count").textContent = words.length ? `${count} shifts have such rows` : "";
  }));
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraws.forEach(draw => draw()); } });
})();

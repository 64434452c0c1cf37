"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = selector => [...document.querySelectorAll(selector)];
  const fixed = (value, digits) => value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−");

  // Images are taken from the data when they come into view, or all at once for a printer.
  const seen = new IntersectionObserver(entries => entries.forEach(entry => { if (entry.isIntersecting) show(entry.target); }), { rootMargin: "300px" });
  function show(image) { image.src = data.images[Number(image.dataset.image)]; seen.unobserve(image); }
  all("img[data-image]").forEach(image => seen.observe(image));
  addEventListener("beforeprint", () => all("img[data-image]:not([src])").forEach(show));

  // A shift is chosen by its name or its mark; its rows open, and the page goes there.
  function choose(name) {
    all("tr[data-split]").forEach(row => row.classList.toggle("chosen", row.dataset.split === name));
    all(".mark").forEach(mark => mark.classList.toggle("on", mark.dataset.split === name));
    const own = all("details[data-split]").filter(one => one.dataset.split === name);
    if (!own.length) return;
    all("details[data-split]").forEach(one => { one.open = own.includes(one); });
    own.forEach(fill);
    requestAnimationFrame(() => own[0].scrollIntoView({ block: "start" }));
  }
  all("button[data-open]").forEach(button => button.addEventListener("click", () => choose(button.dataset.open)));
  all(".mark").forEach(mark => {
    mark.setAttribute("tabindex", "0");
    mark.setAttribute("role", "button");
    mark.addEventListener("click", () => choose(mark.dataset.split));
    mark.addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(mark.dataset.split); } });
  });

  // Tables: hide a modality, sort by a column, copy.
  all("input[data-modality]").forEach(box => box.addEventListener("change", () => {
    const hidden = new Set(all("input[data-modality]").filter(one => !one.checked).map(one => one.dataset.modality));
    all("details[data-of]").forEach(one => { one.hidden = hidden.has(one.dataset.of); });
    const gone = new Set(all("details[data-of]").filter(one => one.hidden).map(one => one.dataset.split));
    const modality = new Map(data.results.flatMap(result => Object.entries(result.splits).map(([name, split]) => [name, split.modality])));
    all("tr[data-split]").forEach(row => { row.hidden = gone.has(row.dataset.split) || hidden.has(modality.get(row.dataset.split)); });
  }));
  all("table.sortable").forEach(table => table.querySelectorAll("thead th").forEach((th, column) => th.querySelector("button").addEventListener("click", () => {
    const up = th.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => { const cell = row.cells[column]; return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value); };
    const rows = [...table.tBodies[0].rows].sort((a, b) => { const [p, q] = [key(a), key(b)]; return (typeof p === "number" && typeof q === "number" ? p - q : String(p).localeCompare(String(q))) * (up ? 1 : -1); });
    table.tBodies[0].append(...rows);
  })));
  all(".copy").forEach(button => button.addEventListener("click", async () => {
    const table = button.previousElementSibling.querySelector("table");
    const text = [...table.rows].map(row => [...row.cells].map(cell => cell.dataset.value ?? cell.textContent.trim()).join("\t")).join("\n");
    try { await navigator.clipboard.writeText(text); } catch { const area = document.createElement("textarea"); area.value = text; document.body.append(area); area.select(); document.execCommand("copy"); area.remove(); }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy table"; }, 1500);
  }));

  // Rows are made when they are first looked at.
  const element = (name, className, text) => { const one = document.createElement(name); if (className) one.className = className; if (text !== undefined) one.textContent = text; return one; };
  function side(title, row) {
    const box = element("div", "side");
    box.append(element("p", "tag", title));
    if (row.image !== null) { const image = element("img"); image.alt = `${title}: the image of this row`; image.dataset.image = row.image; box.append(image); seen.observe(image); }
    [["Question", row.question], ["Response", row.response]].forEach(([label, text]) => { const line = element("p"); line.append(element("span", "tag", `${label}: `), text); box.append(line); });
    return box;
  }
  function rowElement(row, digits) {
    const box = element("div", "row");
    const cosine = row.cosine_loss === null || row.cosine_loss === undefined ? "" : `cosine ${fixed(row.cosine, 3)}, down by ${fixed(row.cosine_loss, 3)}; `;
    const moved = row.clean ? ["image", "question", "response"].filter(key => row[key] !== row.clean[key]) : [];
    box.append(element("p", "tag", `Row ${row.id}: ${cosine}value in EMI down by ${fixed(row.loss, digits)}${moved.length ? `; what moved: ${moved.join(", ")}` : ""}`));
    const sides = element("div", "sides");
    if (row.clean) sides.append(side("In distribution", row.clean));
    sides.append(side("Shifted", row));
    const reference = element("p", "reference");
    reference.append(element("span", "tag", "Reference: "), row.reference);
    box.append(sides, reference);
    return box;
  }
  function fill(holder) {
    if (!holder.dataset.rows || holder.querySelector(".row")) return;
    const [number, name] = JSON.parse(holder.dataset.rows);
    holder.append(...data.results[number].rows[name].map(row => rowElement(row, data.results[number].digits)));
  }
  all("details[data-rows]").forEach(holder => holder.addEventListener("toggle", () => { if (holder.open) fill(holder); }));
  all("input[type=search]").forEach(box => box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    all("details[data-rows]").forEach(holder => {
      const [number, name] = JSON.parse(holder.dataset.rows);
      const found = data.results[number].rows[name].some(row => {
        const text = [row.id, row.question, row.response, row.reference, name, row.clean ? `${row.clean.question} ${row.clean.response}` : ""].join(" ").toLowerCase();
        return words.every(word => text.includes(word));
      });
      holder.hidden = !found;
      count += found;
    });
    box.closest("section").querySelector(".count").textContent = words.length ? `${count} shifts have such rows` : "";
  }));
})();

// SPDX-License-Identifier: GPL-2.0-only
// The matrix: unfolding the details of a cell below its row, links to cells, search.
"use strict";

{
  const matrix = document.getElementById("kvm-matrix");
  const search = document.getElementById("kvm-search");
  const outcome = document.getElementById("kvm-outcome");
  const differing = document.getElementById("kvm-differing");
  const columns = [...matrix.tHead.rows[0].cells].map((cell) => cell.textContent);
  const bodies = [...matrix.tBodies];
  const rows = bodies.flatMap((body) => [...body.rows].slice(1));
  const texts = rows.map((row) => {
    const [test, clause] = row.cells;
    return `${test.textContent} ${clause.textContent}`.toLowerCase();
  });
  const unfolded = new Map();  // row -> unfolded details, by column

  const matchesLink = (row) => {
    const [key, value] = linked();
    const cells = [...row.cells];
    if (key === "clause") return cells[1].textContent === value;
    return key !== "deviation" || cells.some((cell) => cell.title === value);
  };

  const filter = () => {
    const words = wordsOf(search);
    const shown = new Map(bodies.map((body) => [body, 0]));
    rows.forEach((row, number) => {
      const isShown = words.every((word) => texts[number].includes(word))
        && (!differing.checked || row.parentElement.id === "kvm-differ")
        && (!outcome.value || row.getElementsByClassName(outcome.value).length > 0)
        && matchesLink(row);
      row.hidden = !isShown;
      unfolded.get(row)?.forEach((below) => { below.hidden = !isShown; });
      shown.set(row.parentElement, shown.get(row.parentElement) + isShown);
    });
    for (const [body, number] of shown) body.querySelector("span").textContent = number;
    showCount([...shown.values()].reduce((sum, number) => sum + number));
  };

  const toggle = (link) => {
    const cell = link.parentElement;
    const row = cell.parentElement;
    const below = unfolded.get(row) ?? [];
    const open = below[cell.cellIndex];
    link.classList.toggle("kvm-open", !open);
    if (open) {
      open.remove();
      delete below[cell.cellIndex];
      return;
    }
    const made = document.createElement("tr");
    made.className = "kvm-below";
    const content = made.insertCell();
    content.colSpan = columns.length;
    const title = document.createElement("h3");
    title.textContent = `${columns[cell.cellIndex]}: ${link.textContent}`;
    title.className = cell.className;
    content.append(title, ...link.dataset.parts.split(" ").map((name) => {
      const part = document.createElement("kvm-part");
      part.setAttribute("of", name);
      return part;
    }));
    // Details stand in the order of their columns.
    const before = below.slice(0, cell.cellIndex).findLast((other) => other) ?? row;
    before.after(made);
    below[cell.cellIndex] = made;
    unfolded.set(row, below);
  };

  const go = () => {
    const [key, value] = linked();
    if (key === "test") {
      search.value = outcome.value = "";
      differing.checked = false;
    }
    filter();
    if (key === "test") {
      const link = matrix.querySelector(`a[href="#test=${CSS.escape(value)}"]`);
      if (!link) return;
      if (!link.classList.contains("kvm-open")) toggle(link);
      link.scrollIntoView({ block: "center" });
    } else if (key) {
      document.getElementById("results").scrollIntoView();
    }
  };

  matrix.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-parts]");
    if (!link) return;
    event.preventDefault();
    toggle(link);
  });
  for (const control of [search, outcome, differing]) control.addEventListener("input", filter);
  window.addEventListener("hashchange", go);
  window.addEventListener("load", go);
}

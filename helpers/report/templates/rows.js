// Links to rows of pytest-html's table, and search in it.
"use strict";

{
  const search = document.getElementById("kvm-search");
  const rows = () => [...document.querySelectorAll("tbody.results-table-row")]
    .filter((row) => row.querySelector(".col-clause"));

  const isTarget = (row) => {
    const [key, value] = target();
    const cell = row.querySelector(".col-clause");
    return value === (key === "clause" ? cell.textContent : cell.dataset[key]);
  };

  const filter = () => {
    const [key, value] = target();
    const words = wordsOf(search);
    let shown = 0;
    for (const row of rows()) {
      const text = row.querySelector(".collapsible").textContent.toLowerCase();
      row.hidden = !(words.every((word) => text.includes(word))
        && (!key || key === "test" || isTarget(row)));
      shown += !row.hidden;
    }
    sayFilter(shown);
  };

  const fold = (row, isFolded) => {
    row.querySelector(".extras-row").classList.toggle("hidden", isFolded);
    row.querySelectorAll("kvm-part").forEach((part) => part.connectedCallback());
  };

  const go = () => {
    filter();
    const [key] = target();
    if (key === "test") {
      const row = rows().find(isTarget);
      if (row) fold(row, false);
      row?.scrollIntoView();
    } else if (key) {
      document.getElementById("results").scrollIntoView();
    }
  };

  // pytest-html would draw all rows anew to unfold one, which is slow with thousands.
  document.addEventListener("click", (event) => {
    const row = event.target.closest("tr.collapsible")?.parentElement;
    if (!row) return;
    event.stopPropagation();
    fold(row);
  }, true);

  // It replaces the whole table whenever it draws.
  new MutationObserver(filter).observe(document.body, { childList: true });
  search.addEventListener("input", filter);
  window.addEventListener("hashchange", go);
  window.addEventListener("load", go);
}

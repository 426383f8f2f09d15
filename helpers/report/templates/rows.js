// SPDX-License-Identifier: GPL-2.0-only
// pytest-html's table: links to rows, search.
"use strict";

{
  const search = document.getElementById("kvm-search");
  const rows = () => [...document.querySelectorAll("tbody.results-table-row")]
    .filter((row) => row.querySelector(".col-clause"));

  const matchesLink = (row) => {
    const [key, value] = linked();
    const cell = row.querySelector(".col-clause");
    return value === (key === "clause" ? cell.textContent : cell.dataset[key]);
  };

  const filter = () => {
    const [key, value] = linked();
    const words = wordsOf(search);
    let shown = 0;
    for (const head of document.querySelectorAll("th.sortable")) head.tabIndex = 0;
    for (const row of rows()) {
      const text = row.querySelector(".collapsible").textContent.toLowerCase();
      row.querySelector(".collapsible").tabIndex = 0;
      row.hidden = !(words.every((word) => text.includes(word))
        && (!key || key === "test" || matchesLink(row)));
      shown += !row.hidden;
    }
    showCount(shown);
  };

  const fold = (row, isFolded) => {
    row.querySelector(".extras-row").classList.toggle("hidden", isFolded);
    row.querySelectorAll("kvm-part").forEach((part) => part.connectedCallback());
  };

  const go = () => {
    filter();
    const [key] = linked();
    if (key === "test") {
      const row = rows().find(matchesLink);
      if (row) fold(row, false);
      row?.scrollIntoView();
    } else if (key) {
      document.getElementById("results").scrollIntoView();
    }
  };

  // pytest-html would draw thousands of rows anew to unfold a row.
  document.addEventListener("click", (event) => {
    const row = event.target.closest("tr.collapsible")?.parentElement;
    if (!row) return;
    event.stopPropagation();
    fold(row);
  }, true);

  // pytest-html has no keys.
  document.addEventListener("keydown", (event) => {
    const isKey = event.key === "Enter" || event.key === " ";
    if (!isKey || !event.target.matches("tr.collapsible, th.sortable")) return;
    event.preventDefault();
    event.target.click();
  });
  for (const box of document.querySelectorAll("input.filter")) {
    box.ariaLabel = box.dataset.testResult;
  }

  // pytest-html replaces the whole table whenever it draws.
  new MutationObserver(filter).observe(document.body, { childList: true });
  search.addEventListener("input", filter);
  window.addEventListener("hashchange", go);
  window.addEventListener("load", go);
}

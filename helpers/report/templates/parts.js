// SPDX-License-Identifier: GPL-2.0-only
// Parts (see html.py), and functions that rows.js and matrix.js share.
"use strict";

document.documentElement.lang = "en";

customElements.define("kvm-part", class extends HTMLElement {
  connectedCallback() {
    if (this.hasChildNodes() || this.closest(".extras-row.hidden")) return;
    const part = document.getElementById(this.getAttribute("of"));
    this.append(part.content.cloneNode(true));
  }
});

// Key and value of the address's #clause=ID, #deviation=ID or #test=NUMBER.
const linked = () => location.hash.match(/^#(clause|deviation|test)=(.*)$/)?.slice(1) ?? [];

const wordsOf = (search) => search.value.toLowerCase().split(/\s+/);

const showCount = (shown) => {
  const [key, value] = linked();
  const all = document.createElement("a");
  all.href = "#results";
  all.textContent = "show all";
  const named = key && key !== "test" ? [` for ${key} ${value} (`, all, ")"] : [];
  document.getElementById("kvm-filter").replaceChildren(`${shown} shown`, ...named);
};

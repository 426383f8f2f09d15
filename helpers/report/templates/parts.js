// Parts, and what is the same for both kinds of results.
"use strict";

customElements.define("kvm-part", class extends HTMLElement {
  connectedCallback() {
    if (this.hasChildNodes() || this.closest(".extras-row.hidden")) return;
    const part = document.getElementById(this.getAttribute("of"));
    this.append(part.content.cloneNode(true));
  }
});

// What a link asks for: #clause=ID, #deviation=ID or #test=NUMBER.
const target = () => location.hash.match(/^#(clause|deviation|test)=(.*)$/)?.slice(1) ?? [];

const wordsOf = (search) => search.value.toLowerCase().split(/\s+/);

const sayFilter = (shown) => {
  const [key, value] = target();
  const all = document.createElement("a");
  all.href = "#results";
  all.textContent = "show all";
  const named = key && key !== "test" ? [` of ${key} ${value} (`, all, ")"] : [];
  document.getElementById("kvm-filter").replaceChildren(`${shown} shown`, ...named);
};

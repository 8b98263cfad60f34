"use strict";
const root = document.documentElement;
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const touch = window.matchMedia("(pointer: coarse)").matches;
const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();

// Pictures that leave the page, on paper or as a file, have its light colours.
function inLight(work) {
  const before = root.hasAttribute("data-light");
  root.setAttribute("data-light", "");
  try {
    return work();
  } finally {
    root.toggleAttribute("data-light", before);
  }
}

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function save(name, type, content) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  const link = make("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

const fileName = (name, ending) => `${name.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "report"}.${ending}`;

// RFC 4180, with the mark by which spreadsheets know UTF-8.
function saveCsv(name, rows) {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  };
  save(fileName(name, "csv"), "text/csv", `\ufeff${rows.map((row) => row.map(cell).join(",")).join("\r\n")}\r\n`);
}

function tool(text, label, act) {
  const button = make("button", { type: "button", className: "tool" }, text);
  button.setAttribute("aria-label", label);
  button.addEventListener("click", act);
  return button;
}

// What is far from the screen is not drawn, and what holds a place on the graphics card gives it back.
const drawables = [];
const near = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const one = drawables.find((drawable) => drawable.element === entry.target);
      if (entry.isIntersecting && !one.drawn) {
        one.drawn = true;
        one.draw();
      } else if (!entry.isIntersecting && one.drawn && one.heavy && !root.hasAttribute("data-print")) {
        one.drawn = false;
        one.clear();
      }
    }
  },
  { rootMargin: "500px" },
);

function redraw() {
  for (const one of drawables) if (one.drawn) one.draw();
}

function register(element, draw, clear = null) {
  drawables.push({ element, draw, clear, heavy: clear !== null, drawn: false });
  near.observe(element);
}

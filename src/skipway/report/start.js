// The page as it opens: tables at once, figures when plotly.js is unpacked.
for (const place of document.querySelectorAll(".table")) startTable(place);

async function unpacked(packed) {
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
}

async function startFigures() {
  const packed = document.getElementById("plotly").textContent;
  if (!packed) return;
  try {
    document.head.append(make("script", {}, await unpacked(packed)));
  } catch {
    for (const place of document.querySelectorAll(".drawn, .plotly")) {
      place.prepend(make("p", {}, "This browser is too old to draw the figures; their numbers stand in the tables."));
    }
    return;
  }
  for (const place of document.querySelectorAll(".figure")) startFigure(place);
  for (const place of document.querySelectorAll(".plotly")) startPlot(place);
  root.setAttribute("data-ready", "");
}

// On paper everything is drawn, open, light and as wide as the paper.
let opened = [];
function printing(on) {
  if (on === root.hasAttribute("data-print")) return;
  root.toggleAttribute("data-print", on);
  root.toggleAttribute("data-light", on);
  if (on) {
    // The numbers of every network would be a book: they lie in files of their own.
    opened = [...document.querySelectorAll("details:not([open]):not(.folded)")];
    for (const one of drawables) one.drawn = true;
  }
  for (const one of opened) one.open = on;
  redraw();
  // What is drawn already keeps the width that it was drawn at, on paper and back on the screen.
  for (const plot of document.querySelectorAll(".js-plotly-plot")) if (plot.data) Plotly.relayout(plot, { autosize: true });
}

dark.addEventListener("change", redraw);
window.addEventListener("beforeprint", () => printing(true));
window.addEventListener("afterprint", () => printing(false));
window.matchMedia("print").addEventListener("change", (event) => printing(event.matches));
startFigures();

const inked = (colour) => (colour === undefined || colour === "black" ? css("--soft") : colour);

// Figures that come as plotly has them take only the page's own colours and fonts.
function dressed(figure, height) {
  const ink = css("--ink");
  const lines = { gridcolor: css("--grid"), linecolor: css("--rule"), zerolinecolor: css("--rule") };
  const layout = JSON.parse(JSON.stringify(figure.layout));
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
    Object.assign(layout[name], lines, { automargin: name.startsWith("y") ? "left" : "bottom" });
  }
  for (const name of Object.keys(layout).filter((key) => /^scene/.test(key))) {
    for (const axis of ["xaxis", "yaxis", "zaxis"]) {
      layout[name][axis] = { ...layout[name][axis], gridcolor: css("--grid"), backgroundcolor: "rgba(0,0,0,0)" };
    }
  }
  for (const shape of layout.shapes || []) shape.line = { ...shape.line, color: inked(shape.line?.color) };
  // The caption and the heading stand beside the plot as text.
  delete layout.title;
  delete layout.width;
  return Object.assign(layout, {
    height, autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
    margin: { l: 56, r: 16, t: 20, b: 44, ...(layout.margin?.l ? layout.margin : {}) },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    dragmode: touch ? false : layout.dragmode,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--rule"), activecolor: css("--accent") },
  });
}

function startPlot(place) {
  const figure = JSON.parse(place.querySelector("script").textContent);
  const frame = place.closest("figure"), name = frame.dataset.name;
  const plot = make("div");
  place.append(plot);
  const height = figure.layout.height || 420;
  plot.style.height = `${height}px`;
  const solid = Object.keys(figure.layout).some((key) => /^scene/.test(key));
  const draw = () => Plotly.react(plot, figure.data, dressed(figure, height), {
    responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover", plotlyServerURL: "",
    modeBarButtonsToRemove: ["sendDataToCloud", "editInChartStudio", "lasso2d", "select2d", "toImage"],
  });
  frame.querySelector("h3").after(tool("PNG", `Download ${name} as PNG`, () => {
    const light = inLight(() => dressed(figure, height));
    savePicture(name, [{ title: "", data: figure.data, layout: light, height }], []);
  }));
  register(plot, draw, solid ? () => Plotly.purge(plot) : null);
}

const loaded = (address) => new Promise((resolve, reject) => {
  const image = new Image();
  image.onload = () => resolve(image);
  image.onerror = reject;
  image.src = address;
});

// One PNG of all panels, with their titles and the legend.
async function savePicture(name, panels, legend) {
  const columns = panels.length > 9 ? 4 : panels.length > 4 ? 3 : Math.min(panels.length, 2);
  const width = panels.length === 1 ? 880 : 640, gap = 24, head = 40;
  const scale = panels.length > 12 ? 1 : 2;
  const rows = Math.ceil(panels.length / columns);
  const height = Math.max(...panels.map((panel) => panel.height));
  const total = columns * width + (columns + 1) * gap;
  const canvas = make("canvas", {});
  const context = canvas.getContext("2d");
  const family = getComputedStyle(document.body).fontFamily;
  const places = [];
  let x = gap, y = 70;
  context.font = `15px ${family}`;
  for (const one of legend.filter(({ on }) => on)) {
    const needed = 40 + context.measureText(one.text).width + 22;
    if (x + needed > total - gap && x > gap) [x, y] = [gap, y + 24];
    places.push([one, x, y]);
    x += needed;
  }
  const top = legend.length ? y + 24 : 56;
  canvas.width = total * scale;
  canvas.height = (top + rows * (height + head) + gap) * scale;
  context.scale(scale, scale);
  const [ink, paper] = inLight(() => [css("--ink"), css("--card")]);
  context.fillStyle = paper;
  context.fillRect(0, 0, total, canvas.height);
  context.fillStyle = ink;
  context.font = `600 20px ${family}`;
  context.fillText(name, gap, 36, total - 2 * gap);
  context.font = `15px ${family}`;
  for (const [one, left, line] of places) {
    context.strokeStyle = one.colour;
    context.lineWidth = one.width;
    context.setLineDash(one.dashed ? [4, 3] : []);
    context.beginPath();
    context.moveTo(left, line - 5);
    context.lineTo(left + 28, line - 5);
    context.stroke();
    context.fillText(one.text, left + 36, line);
  }
  for (const [number, panel] of panels.entries()) {
    const left = gap + (number % columns) * (width + gap), down = top + Math.floor(number / columns) * (height + head);
    const picture = await Plotly.toImage({ data: panel.data, layout: { ...panel.layout, width, height: panel.height } },
      { format: "png", width, height: panel.height, scale });
    context.font = `600 15px ${family}`;
    context.fillText(panel.title, left + 8, down + 20, width - 16);
    context.drawImage(await loaded(picture), left, down + (panel.title ? 28 : 0), width, panel.height);
  }
  canvas.toBlob((blob) => save(fileName(name, "png"), "image/png", blob), "image/png");
}

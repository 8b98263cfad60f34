// Figures: lines with bands or intervals, in panels that share a scale and a legend.
const SHADES = 6;
const DASHES = ["4px 3px", "solid"];
const WIDTHS = [1.4, 2.6];
const SYMBOLS = ["circle", "diamond", "square", "triangle-up", "cross", "x"];

const channels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
const faded = (colour, alpha) => `rgba(${channels(colour).join(",")},${alpha})`;

function colourOf(figure, place) {
  const count = figure.colours.length;
  if (figure.palette !== "ordered" || count < 2) return css(`--kind-${place % SHADES}`);
  // Ordered colours are spread over the whole ramp, so that the ends are always its ends.
  const at = (place * (SHADES - 1)) / (count - 1);
  const [low, high] = [Math.floor(at), Math.ceil(at)].map((shade) => channels(css(`--ordered-${shade}`)));
  const mixed = low.map((part, i) => Math.round(part + (high[i] - part) * (at - Math.floor(at))));
  return `#${mixed.map((part) => part.toString(16).padStart(2, "0")).join("")}`;
}

// Where a figure has one weight, it is the bold one.
const weightOf = (figure, line) => (figure.weights.length === 1 ? 1 : line.weight);
const nameOf = (figure, line) => [figure.colours[line.colour], figure.weights[line.weight]].filter(Boolean).join(", ");
const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");
const isShown = (shown, line) => shown.colours[line.colour] && shown.weights[line.weight];

function curves(figure, panel, shown) {
  return panel.lines.flatMap((line) => {
    const colour = colourOf(figure, line.colour), weight = weightOf(figure, line), visible = isShown(shown, line);
    const name = nameOf(figure, line);
    const traces = [];
    if (line.low) {
      // A band is drawn only where it has both of its edges.
      const kept = line.x.map((_, i) => i).filter((i) => line.low[i] !== null && line.high[i] !== null);
      const back = kept.slice().reverse();
      traces.push({
        x: [...kept.map((i) => line.x[i]), ...back.map((i) => line.x[i])],
        y: [...kept.map((i) => line.high[i]), ...back.map((i) => line.low[i])],
        fill: "toself", fillcolor: faded(colour, weight ? 0.16 : 0.09), line: { width: 0 }, mode: "lines",
        hoverinfo: "skip", showlegend: false, visible,
      });
    }
    traces.push({
      x: line.x, y: line.y, name, mode: line.x.length > 1 ? "lines" : "markers", visible, showlegend: false,
      line: { color: colour, width: WIDTHS[weight], dash: DASHES[weight] }, marker: { color: colour },
      text: line.labels || undefined,
      hovertemplate: `%{y:.3~g}${line.labels ? " (%{text})" : ""}<extra>${escaped(name)}</extra>`,
    });
    return traces;
  });
}

function placesOf(figure) {
  const all = figure.panels.flatMap((panel) => panel.lines.flatMap((line) => line.x));
  const unique = [...new Set(all)];
  return unique.every((x) => typeof x === "number") ? unique.sort((a, b) => a - b) : unique;
}

// Points that stand at the same place are moved apart, so that no interval hides another.
function intervals(figure, panel, shown) {
  const places = placesOf(figure);
  const joined = !figure.across && places.length > 1 && places.every((x) => typeof x === "number");
  const apart = Math.min(joined ? 0.03 : 0.14, 0.6 / Math.max(1, panel.lines.length));
  return panel.lines.flatMap((line, number) => {
    const colour = colourOf(figure, line.colour), visible = isShown(shown, line), name = nameOf(figure, line);
    const shift = (number - (panel.lines.length - 1) / 2) * apart;
    const at = line.x.map((x) => places.indexOf(x) + shift);
    const upright = (x, y) => (figure.across ? { x: y, y: x } : { x, y });
    const points = (line.points || []).flatMap((values, i) => values.map((value) => [at[i], value]));
    const bounds = line.low && {
      type: "data", symmetric: false, color: colour, thickness: 1.6, width: 4,
      array: line.y.map((y, i) => (y === null || line.high[i] === null ? null : line.high[i] - y)),
      arrayminus: line.y.map((y, i) => (y === null || line.low[i] === null ? null : y - line.low[i])),
    };
    const told = line.y.map((y, i) => {
      const span = line.low && line.low[i] !== null ? ` (${Number(line.low[i].toPrecision(3))} to ${Number(line.high[i].toPrecision(3))})` : "";
      return y === null ? "" : `${escaped(line.x[i])}: ${Number(y.toPrecision(3))}${span}`;
    });
    const traces = [{
      ...upright(points.map(([x]) => x), points.map(([, y]) => y)), mode: "markers", visible, showlegend: false,
      hoverinfo: "skip", marker: { color: faded(colour, 0.4), size: 5 },
    }, {
      ...upright(at, line.y), name, visible, showlegend: false, mode: joined ? "lines+markers" : "markers",
      line: { color: colour, width: 1.4, dash: DASHES[weightOf(figure, line)] },
      marker: { color: colour, size: 8, symbol: SYMBOLS[line.colour % SYMBOLS.length] },
      [figure.across ? "error_x" : "error_y"]: bounds || undefined,
      text: told, hovertemplate: `%{text}<extra>${escaped(name)}</extra>`,
    }];
    return points.length ? traces : traces.slice(1);
  });
}

function layoutOf(figure, width) {
  const grid = { gridcolor: css("--grid"), linecolor: css("--rule"), zeroline: false, ticks: "", fixedrange: touch };
  const small = { size: 12.5, color: css("--soft") };
  const xs = figure.panels.flatMap((panel) => panel.lines.flatMap((line) => line.x));
  const last = Math.max(0, ...xs.filter((x) => typeof x === "number"));
  const value = {
    ...grid, title: { text: figure.yTitle, font: small, standoff: 6 }, tickfont: small,
    ...(figure.logY ? { type: "log", exponentformat: "power", dtick: 1 } : {}),
    ...(figure.range ? { range: figure.range } : {}),
  };
  let other = {
    ...grid, title: { text: figure.xTitle, font: small, standoff: 8 }, tickfont: small,
    // Between whole epochs or layers there is nothing.
    ...(last <= 12 ? { dtick: 1 } : {}),
  };
  if (figure.marks === "intervals") {
    const places = placesOf(figure);
    const long = Math.max(10, Math.floor(width / (figure.across ? 15 : 10 * Math.max(1, places.length) / 1.4)));
    // Names that begin alike are told apart by their ends.
    const half = Math.floor((long - 1) / 2);
    const cut = (text) => (text.length > long ? `${text.slice(0, half)}…${text.slice(-half)}` : text);
    const ends = [-0.6, places.length - 0.4];
    other = {
      ...other, dtick: undefined, tickmode: "array", tickvals: places.map((_, i) => i),
      ticktext: places.map((x) => escaped(cut(String(x)))),
      range: figure.across ? ends.reverse() : ends,
    };
  }
  return {
    margin: { l: 50, r: 14, t: 12, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--ink") },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--rule"), activecolor: css("--accent") },
    hovermode: figure.marks === "intervals" ? "closest" : "x unified", dragmode: touch ? false : "zoom",
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--rule"), font: { color: css("--ink"), size: 12 } },
    // Room is made on the left alone: made on all sides at once, it is sometimes never settled.
    xaxis: figure.across ? value : other, yaxis: { ...(figure.across ? other : value), automargin: "left" },
  };
}

const tracesOf = (figure, panel, shown) => (figure.marks === "intervals" ? intervals : curves)(figure, panel, shown);

function key(text, stroke, width, dashes, onToggle) {
  const button = make("button", { type: "button" });
  button.setAttribute("aria-pressed", "true");
  button.innerHTML = `<svg width="26" height="10" aria-hidden="true"><line x1="1" y1="5" x2="25" y2="5"/></svg>`;
  const line = button.querySelector("line");
  line.setAttribute("stroke-width", width);
  if (dashes) line.setAttribute("stroke-dasharray", dashes);
  const paint = () => line.setAttribute("stroke", stroke());
  paint();
  button.append(text);
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    onToggle(on);
  });
  return { button, paint };
}

function figureCsv(figure) {
  const head = ["panel", "line", figure.xTitle, "name", figure.yTitle, "low", "high"];
  const rows = figure.panels.flatMap((panel) => panel.lines.flatMap((line) => line.x.map((x, i) => [
    panel.title, nameOf(figure, line), x, line.labels?.[i], line.y[i], line.low?.[i], line.high?.[i],
  ])));
  saveCsv(figure.name, [head, ...rows]);
}

function startFigure(place) {
  const drawn = place.querySelector(".drawn");
  const figure = JSON.parse(drawn.querySelector("script").textContent);
  const shown = { colours: figure.colours.map(() => true), weights: figure.weights.map(() => true) };
  const rows = figure.across ? placesOf(figure).length : 0;
  const height = figure.across ? 90 + 26 * rows : figure.panels.length > 6 ? 210 : 304;
  const panels = make("div", { className: `panels ${figure.panels.length > 6 ? "many" : figure.panels.length > 2 ? "three" : ""}` });
  const plots = figure.panels.map((panel) => {
    const plot = make("div", { className: "plot" });
    plot.style.height = `${height}px`;
    panels.append(make("div", { className: "panel" }, ...(panel.title ? [make("h3", {}, panel.title)] : []), plot));
    return { panel, plot };
  });
  const drawOne = ({ panel, plot }) => Plotly.react(plot, tracesOf(figure, panel, shown), layoutOf(figure, plot.clientWidth), {
    responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
    // Named one by one: among plotly's own choice is a button that sends the chart to a server.
    modeBarButtons: [["zoom2d", "pan2d", "resetScale2d"]], plotlyServerURL: "",
  });
  const again = () => plots.filter(({ plot }) => plot.data).forEach(drawOne);
  const keys = [
    ...(figure.colours.length > 1 ? figure.colours : []).map((text, i) => key(text, () => colourOf(figure, i), 3, "", (on) => {
      shown.colours[i] = on;
      again();
    })),
    ...(figure.weights.length > 1 ? figure.weights : []).map((text, i) => key(text, () => css("--ink"), WIDTHS[i], i ? "" : "4 3", (on) => {
      shown.weights[i] = on;
      again();
    })),
  ];
  const light = () => inLight(() => plots.map(({ panel, plot }) => ({
    title: panel.title, data: tracesOf(figure, panel, shown), layout: layoutOf(figure, 640),
    height: figure.across ? height : 380,
  })));
  const legend = () => inLight(() => keys.map(({ button }, i) => {
    const colour = i < figure.colours.length && figure.colours.length > 1;
    const weight = i - (figure.colours.length > 1 ? figure.colours.length : 0);
    return {
      text: button.textContent, on: button.getAttribute("aria-pressed") === "true",
      colour: colour ? colourOf(figure, i) : css("--ink"), width: colour ? 3 : WIDTHS[weight], dashed: !colour && weight === 0,
    };
  }));
  drawn.append(
    make("div", { className: "legend" }, ...keys.map(({ button }) => button), make("span", { className: "space" }),
      tool("PNG", `Download ${figure.name} as PNG`, () => savePicture(figure.name, light(), legend())),
      tool("CSV", `Download the numbers of ${figure.name} as CSV`, () => figureCsv(figure))),
    panels,
  );
  plots.forEach((one) => register(one.plot, () => {
    keys.forEach(({ paint }) => paint());
    drawOne(one);
  }));
}

"use strict";
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const shades = 6;

  const colourOf = (figure, place) => {
    // Ordered colours are spread over the whole ramp, so that the ends are always its ends.
    const count = figure.colours.length;
    const step = figure.palette === "ordered" && count > 1 ? Math.round((place * (shades - 1)) / (count - 1)) : place;
    return css(`--${figure.palette === "ordered" ? "ordered" : "kind"}-${step % shades}`);
  };
  const faded = (colour, alpha) => {
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    return `rgba(${r},${g},${b},${alpha})`;
  };
  const dash = ["4px 3px", "solid"];
  const width = [1.4, 2.6];

  function tracesOf(figure, panel, shown) {
    const traces = [];
    for (const line of panel.lines) {
      const colour = colourOf(figure, line.colour);
      const visible = shown.colours[line.colour] && shown.weights[line.weight];
      if (line.low) {
        // A band is drawn only where it has both of its edges.
        const kept = line.x.map((_, i) => i).filter((i) => line.low[i] !== null && line.high[i] !== null);
        const back = kept.slice().reverse();
        traces.push({
          x: [...kept.map((i) => line.x[i]), ...back.map((i) => line.x[i])],
          y: [...kept.map((i) => line.high[i]), ...back.map((i) => line.low[i])],
          fill: "toself", fillcolor: faded(colour, line.weight ? 0.16 : 0.09), line: { width: 0 }, mode: "lines",
          hoverinfo: "skip", showlegend: false, visible,
        });
      }
      const name = `${figure.colours[line.colour]}, ${figure.weights[line.weight]}`;
      traces.push({
        x: line.x, y: line.y, name, mode: line.x.length > 1 ? "lines" : "markers", visible, showlegend: false,
        line: { color: colour, width: width[line.weight], dash: dash[line.weight] }, marker: { color: colour },
        text: line.labels || undefined,
        hovertemplate: `%{y:.3~g}${line.labels ? " (%{text})" : ""}<extra>${name.replace(/</g, "&lt;")}</extra>`,
      });
    }
    return traces;
  }

  function layoutOf(figure) {
    const axis = {
      gridcolor: css("--grid"), linecolor: css("--rule"), zeroline: false, automargin: true, ticks: "", fixedrange: touch,
    };
    const last = Math.max(0, ...figure.panels.flatMap((panel) => panel.lines.flatMap((line) => line.x)));
    const small = { size: 12.5, color: css("--soft") };
    return {
      margin: { l: 50, r: 14, t: 12, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--ink") },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--rule"), activecolor: css("--accent") },
      hovermode: "x unified", dragmode: touch ? false : "zoom",
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--rule"), font: { color: css("--ink"), size: 12 } },
      xaxis: {
        ...axis, title: { text: figure.xTitle, font: small, standoff: 8 }, tickfont: small,
        // Between whole epochs or layers there is nothing.
        ...(last <= 12 ? { dtick: 1 } : {}),
      },
      yaxis: {
        ...axis, title: { text: figure.yTitle, font: small, standoff: 6 }, tickfont: small,
        ...(figure.logY ? { type: "log", exponentformat: "power", dtick: 1 } : {}),
        ...(figure.range ? { range: figure.range } : {}),
      },
    };
  }

  function key(text, stroke, strokeWidth, dashes, onToggle) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.innerHTML = `<svg width="26" height="10" aria-hidden="true"><line x1="1" y1="5" x2="25" y2="5"/></svg>`;
    const line = button.querySelector("line");
    line.setAttribute("stroke-width", strokeWidth);
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

  // Figures that come as plotly has them take only the page's own colours and fonts.
  for (const place of document.querySelectorAll(".plotly")) {
    const figure = JSON.parse(place.querySelector("script").textContent);
    const plot = document.createElement("div");
    place.append(plot);
    const height = figure.layout.height || 420;
    plot.style.height = `${height}px`;
    const draw = () => {
      const ink = css("--ink");
      const lines = { gridcolor: css("--grid"), linecolor: css("--rule"), zerolinecolor: css("--rule"), automargin: true };
      const layout = JSON.parse(JSON.stringify(figure.layout));
      for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) Object.assign(layout[name], lines);
      for (const name of Object.keys(layout).filter((key) => /^scene/.test(key))) {
        for (const axis of ["xaxis", "yaxis", "zaxis"]) {
          layout[name][axis] = { ...layout[name][axis], gridcolor: css("--grid"), backgroundcolor: "rgba(0,0,0,0)" };
        }
      }
      // The caption and the heading stand beside the plot as text.
      delete layout.title;
      delete layout.width;
      Object.assign(layout, {
        height, autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
        margin: { l: 56, r: 16, t: 28, b: 48 },
        legend: { orientation: "h", x: 0, y: -0.18, yanchor: "top" },
        dragmode: touch ? false : layout.dragmode,
        modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--rule"), activecolor: css("--accent") },
      });
      Plotly.react(plot, figure.data, layout, {
        responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover", plotlyServerURL: "",
        modeBarButtonsToRemove: ["sendDataToCloud", "editInChartStudio", "lasso2d", "select2d"],
      });
    };
    draw();
    dark.addEventListener("change", draw);
  }

  for (const place of document.querySelectorAll(".figure")) {
    const figure = JSON.parse(place.querySelector("script").textContent);
    const shown = { colours: figure.colours.map(() => true), weights: [true, true] };
    const legend = document.createElement("div");
    legend.className = "legend";
    const panels = document.createElement("div");
    panels.className = "panels";
    place.append(legend, panels);
    const plots = figure.panels.map((panel) => {
      const box = document.createElement("div");
      box.className = "panel";
      const title = document.createElement("h3");
      title.textContent = panel.title;
      const plot = document.createElement("div");
      plot.className = "plot";
      box.append(title, plot);
      panels.append(box);
      return { panel, plot };
    });
    const draw = () => {
      for (const { panel, plot } of plots) {
        Plotly.react(plot, tracesOf(figure, panel, shown), layoutOf(figure), {
          responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
          // Named one by one: among plotly's own choice is a button that sends the chart to a server.
          modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], plotlyServerURL: "",
        });
      }
    };
    const keys = [
      ...figure.colours.map((text, i) => key(text, () => colourOf(figure, i), 3, "", (on) => {
        shown.colours[i] = on;
        draw();
      })),
      ...figure.weights.map((text, i) => key(text, () => css("--ink"), width[i], i ? "" : "4 3", (on) => {
        shown.weights[i] = on;
        draw();
      })),
    ];
    legend.append(...keys.map(({ button }) => button));
    draw();
    dark.addEventListener("change", () => {
      keys.forEach(({ paint }) => paint());
      draw();
    });
  }
})();

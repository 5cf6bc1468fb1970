// Draws every element with `data-chart`: a chart of plotly as JSON, whose colours are names of the style sheet.
"use strict";

(() => {
  const style = () => getComputedStyle(document.documentElement);

  const colour = (name) => {
    const value = style().getPropertyValue(name).trim();
    return /^[\d\s.]+$/.test(value) ? `rgb(${value.split(/\s+/).join(",")})` : value;
  };

  const coloured = (value) => {
    if (typeof value === "string") return value.startsWith("--") ? colour(value) : value;
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, coloured(each)]));
    return value;
  };

  // Names come from corpora, labels and tasks. plotly reads a little markup in texts; these have none.
  const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  const axis = (own) => ({
    gridcolor: colour("--edge"), linecolor: colour("--strong-edge"), zerolinecolor: colour("--edge"), automargin: true,
    ...own, title: { text: plain(own?.title?.text ?? ""), font: { size: 11, color: colour("--quiet") }, standoff: 6 },
  });

  const layout = (own) => ({
    ...own,
    xaxis: axis(own.xaxis), yaxis: axis(own.yaxis),
    margin: { l: 44, r: 8, t: 6, b: 34 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily || "system-ui, sans-serif", size: 11, color: colour("--quiet") },
    legend: { orientation: "h", y: 1.12, x: 0, font: { size: 11 } },
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--strong-edge"), font: { color: colour("--ink"), size: 12 } },
  });

  const texts = (values) => values.map((each) => (typeof each === "string" ? plain(each) : each));

  const escaped = (trace) => ({
    ...trace,
    ...Object.fromEntries(["x", "y", "text"].filter((key) => Array.isArray(trace[key])).map((key) => [key, texts(trace[key])])),
    ...(trace.name === undefined ? {} : { name: plain(trace.name) }),
    ...(trace.customdata === undefined ? {} : { customdata: trace.customdata.map(([link, ...rest]) => [link, ...texts(rest)]) }),
  });

  const draw = (element) => {
    const chart = JSON.parse(element.dataset.chart);
    const traces = chart.data.map((trace) => coloured(escaped(trace)));
    Plotly.react(element, traces, layout(coloured(chart.layout)), { displayModeBar: false, responsive: true });
    if (!element.dataset.drawn) {
      element.on("plotly_click", (event) => {
        const point = event.points[0];
        if (!point?.data.meta?.links || !point.customdata?.[0]) return;
        const link = new URL(point.customdata[0], location.href);
        if (link.protocol === location.protocol && link.host === location.host) location.assign(link);
      });
      element.dataset.drawn = "yes";
    }
  };

  const all = () => document.querySelectorAll("[data-chart]").forEach(draw);
  window.saekitCharts = { draw, all };
  if (window.Plotly) all();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
})();

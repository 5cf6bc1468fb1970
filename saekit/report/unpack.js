// Unpacks plotly, which the page carries compressed, and draws the charts. Its policy allows this script and that one.
(async () => {
  const packed = Uint8Array.from(atob(document.getElementById("packed-plotly").textContent), (sign) => sign.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  window.saekitCharts.all();
})();

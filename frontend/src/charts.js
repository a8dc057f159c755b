// Bars over time that the reader can point at: all charts of a page share one cursor. The drawing of the server stays
// for readers without this script, and its table for all.

import uPlot from "uplot";

const HEIGHT = 170;
const MOST_LABELS = 6;
const sync = uPlot.sync("time");
const charts = [];

/** Return the colour that a token has now. */
const colour = (element, token) => {
  element.style.color = `var(${token})`;
  const { color } = getComputedStyle(element);
  element.style.color = "";
  return color;
};

const written = (value, prefix, suffix) =>
  prefix + new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value) + suffix;

/** Draw the chart of `figure` from its data: times in seconds, values, and each value in words. */
export const draw = (figure) => {
  const { times, values, titles, labels, prefix, suffix } = JSON.parse(figure.dataset.chart);
  const words = figure.querySelector(".chart-value");
  const summary = words.textContent;
  const half = (times.length > 1 ? times[1] - times[0] : 3600) / 2;
  const every = Math.ceil(times.length / MOST_LABELS);
  const axis = {
    stroke: () => colour(figure, "--text-3"),
    grid: { stroke: () => colour(figure, "--line"), width: 1 },
    ticks: { show: false },
    font: `11px ${getComputedStyle(figure).fontFamily}`,
  };
  const chart = new uPlot(
    {
      width: figure.clientWidth,
      height: HEIGHT,
      padding: [null, 26, null, null],
      legend: { show: false },
      cursor: { sync: { key: sync.key }, y: false, points: { show: false }, drag: { x: false, y: false } },
      scales: { x: { time: false, range: [times[0] - half, times.at(-1) + half] }, y: { range: (_, low, high) => [0, high > 0 ? high * 1.08 : 1] } },
      series: [
        {},
        {
          fill: () => colour(figure, "--series-1"),
          width: 0,
          paths: uPlot.paths.bars({ size: [0.8, 40], radius: 0.15 }),
          points: { show: false },
        },
      ],
      axes: [
        {
          ...axis,
          grid: { show: false },
          size: 24,
          splits: () => times.filter((_, index) => index % every === 0),
          values: (_, ticks) => ticks.map((tick) => labels[times.indexOf(tick)]),
        },
        { ...axis, size: (_, texts) => 14 + 7 * Math.max(2, ...(texts ?? []).map((text) => text.length)), values: (_, ticks) => ticks.map((tick) => written(tick, prefix, suffix)) },
      ],
      hooks: {
        setCursor: [({ cursor }) => (words.textContent = cursor.idx == null ? summary : titles[cursor.idx])],
      },
    },
    [times, values],
    figure,
  );
  figure.querySelector("svg").remove();
  charts.push(chart);
  new ResizeObserver(() => chart.setSize({ width: figure.clientWidth, height: HEIGHT })).observe(figure);
};

const redraw = () => {
  for (const chart of charts) chart.redraw();
};
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });

import uPlot from "uplot";

/** Draw the chart of `figure` from the JSON in its `data-chart`. */
export const draw = (figure) => new uPlot(JSON.parse(figure.dataset.chart), [], figure);

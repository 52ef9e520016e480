/** The timeline of one rank: MLX's active memory and cache as areas, the footprint as a line. */

import uPlot from "uplot";
import { make } from "../dom";
import type { Mark } from "./messages";
import { type Columns, Ring, type Step } from "./samples";
import { bytes, clock, colour } from "./units";

const HEIGHT = 120;
const MARK = "#8a6fd1";
const STEPS = ["#1f6f7d", "#2b8796"]; // by turns
const ON_STEPS = "#ffffff";
const STEPS_HEIGHT = 12; // of their bands, at the foot
const LEAST_BAND = 3; // pixels
const LABEL = 70; // pixels from one to the next where not each has one
const WIDTHS = new Map<string, number>(); // of texts that were written
const ROWS = { cell: 1, mark: 12, step: 0 }; // where names begin, from the top; those of steps are in their bands

export interface Span {
  from: number;
  to: number;
}

/** What is laid over one another: two spans, by their beginnings. */
export interface Overlay {
  first: Span;
  second: Span;
  names: [string, string];
}

export class Chart {
  readonly element = make("section", { class: "mlxmem-chart" });
  readonly ring = new Ring();
  marks: Mark[] = [];
  private readonly title = make("div", { class: "mlxmem-chart-title" });
  private readonly holder = make("div");
  private plot: uPlot | null = null;
  private overlaid: Overlay | null = null;
  private drawn = ""; // names of what is laid over one another
  private shown: Span = { from: 0, to: 1 };
  private ink = "";
  private paper = "";
  width = 0; // of its place, when that was measured last

  constructor(
    private readonly rank: number,
    private readonly chosen: (span: Span | null) => void,
  ) {
    this.element.append(this.title, this.holder);
  }

  say(text: string): void {
    if (this.title.textContent !== text) this.title.textContent = text;
  }

  /** How much room there is now; a question that lets the browser lay out the page. */
  measure(): void {
    this.width = this.holder.clientWidth;
  }

  draw(span: Span, overlay: Overlay | null, ink: string, paper: string): void {
    const { width } = this;
    if (!width) return; // not in the page, or hidden
    const names = overlay ? `${overlay.names}` : "";
    if (!this.plot || this.drawn !== names || this.ink !== ink) {
      this.plot?.destroy();
      [this.drawn, this.ink, this.paper] = [names, ink, paper];
      this.overlaid = overlay;
      this.plot = this.make(width);
    }
    if (this.plot.width !== width) this.plot.setSize({ width, height: HEIGHT });
    this.shown = overlay ? { from: 0, to: Math.max(length(overlay.first), length(overlay.second)) } : span;
    const data = overlay ? this.over(overlay, width) : this.ring.between(span.from, span.to, width / 2);
    this.plot.batch(() => {
      this.plot!.setData(data as uPlot.AlignedData, false);
      this.plot!.setScale("x", { min: this.shown.from, max: this.shown.to });
    });
  }

  /** The selection was left, or is in another chart. */
  unselect(): void {
    this.plot?.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  }

  dispose(): void {
    this.plot?.destroy();
    this.plot = null;
  }

  /** Of each span the time since it began, and what was active. */
  private over(overlay: Overlay, width: number): unknown {
    const tables = [overlay.first, overlay.second].map((span) => {
      const [time, active] = this.ring.between(span.from, Math.min(span.to, this.ring.last), width / 2);
      return [time.map((each) => each - span.from), active] as uPlot.AlignedData;
    });
    return uPlot.join(tables);
  }

  private make(width: number): uPlot {
    const size = (_: uPlot, values: number[]) => values.map(bytes);
    const since = (_: uPlot, values: number[]) => values.map((value) => `${value} s`);
    const axis = { stroke: () => this.ink, grid: { stroke: "rgba(128, 128, 128, 0.25)", width: 1 }, ticks: { show: false } };
    const told = (_: uPlot, value: number | null) => (value === null || value === undefined ? "–" : bytes(value));
    const series: uPlot.Series[] = this.overlaid
      ? [
          { label: "after its beginning", value: (_, value) => (value === null ? "–" : `${value.toFixed(1)} s`) },
          { label: this.overlaid.names[0], stroke: colour("active", this.rank), width: 1.5, spanGaps: true, points: { show: false }, value: told },
          { label: this.overlaid.names[1], stroke: () => this.ink, width: 1.5, dash: [6, 4], spanGaps: true, points: { show: false }, value: told },
        ]
      : [
          { label: "time", value: (_, value) => (value === null ? "–" : clock(value)) },
          { label: "active", ...area("active", this.rank), value: told },
          { label: "with cache", ...area("cache", this.rank), value: told },
          { label: "footprint", stroke: () => this.ink, width: 1, points: { show: false }, value: told },
        ];
    return new uPlot(
      {
        width,
        height: HEIGHT,
        series,
        padding: [6, 28, 0, 0],
        scales: {
          x: { time: this.overlaid === null, auto: false, range: () => [this.shown.from, this.shown.to] },
          y: { range: (_, __, most) => [0, Math.max(most ?? 0, 1) * 1.08] },
        },
        axes: [
          { ...axis, size: 34, space: 76, values: this.overlaid ? since : (_, times) => times.map(clock) },
          { ...axis, size: 66, values: size },
        ],
        bands: this.overlaid ? [] : [{ series: [2, 1], fill: colour("cache", this.rank) }],
        legend: { live: true },
        cursor: {
          drag: { x: true, y: false, setScale: false, dist: 4 },
          sync: { key: "mlxmem", setSeries: false },
          points: { show: false },
        },
        hooks: {
          drawClear: [(plot) => this.bands(plot)],
          draw: [(plot) => this.names(plot)],
          setSelect: [(plot) => this.selected(plot)],
        },
      },
      [[], [], [], []].slice(0, series.length) as unknown as Columns,
      this.holder,
    );
  }

  private selected(plot: uPlot): void {
    if (this.overlaid || plot.select.width < 2) return;
    const from = plot.posToVal(plot.select.left, "x");
    const to = plot.posToVal(plot.select.left + plot.select.width, "x");
    this.chosen({ from, to });
  }

  /** Cells and marks behind the curves. */
  private bands(plot: uPlot): void {
    this.inside(plot, (ctx, box) => {
      this.spans(plot).forEach(({ mark, left, right }, place) => {
        const isCell = mark.kind === "cell";
        ctx.fillStyle = isCell ? `rgba(128, 128, 128, ${place % 2 ? 0.2 : 0.12})` : `${MARK}30`;
        ctx.fillRect(left, box.top, Math.max(right - left, devicePixelRatio), box.height);
      });
    });
  }

  /** Steps at the foot, by turns darker; one band for all where they are too narrow to be seen. */
  private stepBands(plot: uPlot, ctx: CanvasRenderingContext2D, box: uPlot.BBox): Step[] {
    const height = STEPS_HEIGHT * devicePixelRatio;
    const band = (begin: number, end: number, turn: number) => {
      const [left, right] = [begin, end].map((time) => plot.valToPos(time, "x", true));
      ctx.fillStyle = STEPS[turn];
      ctx.fillRect(left, box.top + box.height - height, right - left, height);
    };
    const { from, to } = this.shown;
    const width = box.width / devicePixelRatio;
    const steps = this.ring.steps(from, to, width / LEAST_BAND);
    for (const each of steps) band(each.from, each.to, each.step % 2);
    if (steps.length !== 1) return steps;
    const [{ from: begin, to: end }] = steps; // one, or all of them: written where there is room
    const apart = ((to - from) * LABEL) / width;
    const times = Array.from({ length: Math.ceil((end - begin) / apart) }, (_, count) => begin + count * apart);
    const labels = times.map((time) => ({ step: this.ring.stepAt(time), from: time, to: end, until: end }));
    return labels.filter((each, place) => !Number.isNaN(each.step) && each.step !== labels[place - 1]?.step);
  }

  /** Their names, and steps, before the curves. */
  private names(plot: uPlot): void {
    this.inside(plot, (ctx, box) => {
      const ratio = devicePixelRatio;
      ctx.font = `${10 * ratio}px sans-serif`;
      ctx.textBaseline = "top";
      ctx.textAlign = "left"; // uPlot leaves that of its axes
      ctx.lineJoin = "round";
      ctx.strokeStyle = this.paper;
      const ends: Record<string, number> = {}; // where the last text of a row ends
      const write = (row: keyof typeof ROWS, text: string, left: number, room: number) => {
        if (left < (ends[row] ?? Number.NEGATIVE_INFINITY)) return;
        const width = widthOf(ctx, text);
        if (room < (row === "step" ? 1 : 0.6) * width) return; // white, and so within its band
        ctx.fillStyle = { cell: this.ink, mark: MARK, step: ON_STEPS }[row];
        const top = row === "step" ? box.top + box.height - (STEPS_HEIGHT - 1) * ratio : box.top + ROWS[row] * ratio;
        ctx.lineWidth = 3 * ratio;
        if (row !== "step") ctx.strokeText(text, left + 3 * ratio, top); // apart from curves
        ctx.fillText(text, left + 3 * ratio, top);
        ends[row] = left + width + 10 * ratio;
      };
      for (const { mark, left, right } of this.spans(plot))
        write(mark.kind, mark.name, left, mark.kind === "cell" ? right - left : Number.POSITIVE_INFINITY);
      for (const { step, from, until } of this.stepBands(plot, ctx, box)) {
        const left = Math.max(plot.valToPos(from, "x", true), box.left);
        write("step", `step ${step}`, left, plot.valToPos(until, "x", true) - left);
      }
    });
  }

  private inside(plot: uPlot, draw: (ctx: CanvasRenderingContext2D, box: uPlot.BBox) => void): void {
    if (this.overlaid) return;
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    draw(ctx, bbox);
    ctx.restore();
  }

  /** The marks in sight, with where they begin and end, in pixels of the canvas. */
  private spans(plot: uPlot): { mark: Mark; left: number; right: number }[] {
    const { from, to } = this.shown;
    return this.marks
      .filter((mark) => (mark.end ?? to) >= from && mark.begin <= to)
      .map((mark) => ({
        mark,
        left: Math.max(plot.valToPos(mark.begin, "x", true), plot.bbox.left),
        right: plot.valToPos(Math.min(mark.end ?? to, to), "x", true),
      }));
  }
}

/** To measure texts takes a third of the time of drawing, and most are there again and again. */
function widthOf(ctx: CanvasRenderingContext2D, text: string): number {
  const key = `${ctx.font} ${text}`;
  const known = WIDTHS.get(key);
  if (known !== undefined) return known;
  if (WIDTHS.size > 5000) WIDTHS.clear();
  const { width } = ctx.measureText(text);
  WIDTHS.set(key, width);
  return width;
}

/** Without an outline, which takes most of the time of drawing. */
function area(kind: string, rank: number): uPlot.Series {
  return { stroke: colour(kind, rank), fill: colour(kind, rank), width: 0, points: { show: false } };
}

function length(span: Span): number {
  return span.to - span.from;
}

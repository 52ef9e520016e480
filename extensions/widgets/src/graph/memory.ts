/** The predicted memory while the graph is evaluated, under the graph; a click says what is alive. */

import { make } from "../dom";
import { clamp } from "./grid";
import type { Timeline } from "./messages";
import { css, readTheme } from "./palette";
import { float32, int32 } from "./scene";

const TOP = 16;
const BOTTOM = 4;
const STEP = 0.01; // of the whole, by an arrow key

export class MemoryStrip {
  readonly element = make("div", {
    class: "mlxgraph-memory", tabindex: "0", role: "slider", "aria-valuemin": "0",
    "aria-label": "Predicted memory in the order of evaluation: arrow keys move, Enter says what is alive",
    title: "Predicted memory in the order of evaluation: click to see what is alive",
  });
  private readonly canvas = make("canvas");
  private readonly said = make("span");
  private readonly at: Int32Array;
  private readonly bytes: Float32Array;
  private readonly end: number;
  private readonly highest: number;
  private pointed: number;
  private picked: number; // what the details are of, once one has been picked
  private readonly resized = new ResizeObserver(() => this.draw());
  private readonly themed = new MutationObserver(() => requestAnimationFrame(() => this.draw()));

  /** `onPick` is told a place in the order of evaluation. */
  constructor(
    private readonly timeline: Timeline,
    private readonly onPick: (at: number) => void,
  ) {
    this.at = int32(timeline.at);
    this.bytes = float32(timeline.bytes);
    this.end = Math.max(this.at[this.at.length - 1]!, 1);
    this.highest = Math.max(this.bytes[timeline.peak]!, 1);
    this.pointed = this.picked = timeline.peak;
    this.element.setAttribute("aria-valuemax", String(this.end));
    this.element.append(this.canvas, this.said);
    this.element.addEventListener("pointermove", (event) => this.point(this.nearest(event)));
    this.element.addEventListener("pointerleave", () => this.point(this.picked));
    this.element.addEventListener("click", (event) => {
      this.point(this.nearest(event));
      this.pick();
    });
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.resized.observe(this.element);
    this.themed.observe(document.body, { attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
    this.point(timeline.peak);
  }

  dispose(): void {
    this.resized.disconnect();
    this.themed.disconnect();
  }

  private nearest(event: MouseEvent): number {
    const { left, width } = this.element.getBoundingClientRect();
    const wanted = ((event.clientX - left) / Math.max(width, 1)) * this.end;
    // Near the peak one means the peak.
    if (Math.abs(wanted - this.at[this.timeline.peak]!) < (4 / Math.max(width, 1)) * this.end) return this.timeline.peak;
    let low = 0, high = this.at.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.at[middle]! < wanted) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  private key(event: KeyboardEvent): void {
    const by = Math.max(1, Math.round(this.at.length * STEP));
    if (event.key === "ArrowLeft") this.point(clamp(this.pointed - by, 0, this.at.length - 1));
    else if (event.key === "ArrowRight") this.point(clamp(this.pointed + by, 0, this.at.length - 1));
    else if (event.key === "Home") this.point(this.timeline.peak);
    else if (event.key === "Enter" || event.key === " ") this.pick();
    else return;
    event.preventDefault();
  }

  private pick(): void {
    this.picked = this.pointed;
    this.onPick(this.at[this.picked]!);
  }

  private point(to: number): void {
    this.pointed = to;
    const place = `operation ${(this.at[to]! + 1).toLocaleString("en")} of ${(this.end + 1).toLocaleString("en")}`;
    const amount = to === this.timeline.peak ? this.timeline.label : bytes(this.bytes[to]!);
    this.said.textContent = `memory: ${amount} more than now, at ${place} (predicted)`;
    this.element.setAttribute("aria-valuenow", String(this.at[to]));
    this.element.setAttribute("aria-valuetext", this.said.textContent);
    this.draw();
  }

  private draw(): void {
    const { clientWidth: width, clientHeight: height } = this.element;
    if (!width || !height) return;
    const ratio = Math.min(window.devicePixelRatio || 1, 2), theme = readTheme(this.element);
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const context = this.canvas.getContext("2d")!;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const x = (i: number) => (this.at[i]! / this.end) * width;
    const y = (i: number) => height - BOTTOM - (Math.max(this.bytes[i]!, 0) / this.highest) * (height - TOP - BOTTOM);
    context.beginPath();
    context.moveTo(0, height);
    for (let i = 0; i < this.at.length; i++) context.lineTo(x(i), y(i));
    context.lineTo(width, height);
    context.closePath();
    context.fillStyle = css(theme.accent, 0.22);
    context.fill();
    context.strokeStyle = css(theme.accent, 0.8);
    context.stroke();
    for (const [i, colour] of [[this.timeline.peak, theme.hit], [this.pointed, theme.text]] as const) {
      context.fillStyle = css(colour);
      context.fillRect(clamp(x(i) - 0.5, 0, width - 1), TOP - 4, 1, height);
      context.beginPath();
      context.arc(clamp(x(i), 3, width - 3), y(i), 3, 0, 2 * Math.PI);
      context.fill();
    }
  }
}

/** As `format_bytes` in mlxbench_kernel/units.py. */
function bytes(count: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  for (; Math.abs(count) >= 999.5 && power < units.length - 1; power++) count /= 1000;
  const digits = power === 0 || Math.abs(count) >= 99.95 ? 0 : Math.abs(count) >= 9.995 ? 1 : 2;
  return `${count.toFixed(digits)} ${units[power]}`;
}

/** One stacked bar for each pool of each host, with markers and what the system says. */

import { make } from "../dom";
import type { Bar, Model, Segment } from "./messages";
import { bytes, colour } from "./units";

const NAMES: Record<Segment["kind"], string> = {
  system: "system",
  others: "other programs",
  active: "MLX active",
  cache: "MLX cache",
  rest: "rest of footprint",
  held: "held until it died",
  free: "free",
};
const TRENDS: Record<string, string> = { "-1": "shrinking", "0": "steady", "1": "growing" };
const NEAR = 0.2; // of the width: labels of markers closer than that are put below each other

export class Bars {
  readonly element = make("div", { class: "mlxmem-bars" });
  private shapes = "";

  constructor(private readonly model: Model) {}

  /** Drawn anew only where other bars are there; else numbers and widths are changed in place. */
  show(): void {
    const bars = this.model.get("bars");
    const shapes = JSON.stringify(bars.map((bar) => [bar.host, bar.pool, bar.segments.map((s) => [s.kind, s.rank, s.state]), bar.markers.length]));
    if (shapes !== this.shapes) {
      this.shapes = shapes;
      this.element.replaceChildren(...bars.map(build));
    }
    bars.forEach((bar, place) => fill(this.element.children[place] as HTMLElement, bar));
    if (!bars.length) this.element.replaceChildren(make("div", { class: "mlxmem-note" }, "waiting for the first sample …"));
  }
}

function build(bar: Bar): HTMLElement {
  const stack = make("div", { class: "mlxmem-stack", role: "img" });
  for (const segment of bar.segments) {
    const part = make("div", { class: `mlxmem-part mlxmem-${segment.kind}${hatched(segment)}` });
    part.style.backgroundColor = colour(segment.kind, segment.rank);
    stack.append(part);
  }
  const markers = make("div", { class: "mlxmem-markers" });
  for (let count = 0; count < bar.markers.length; count++)
    markers.append(make("div", { class: "mlxmem-marker" }, make("span")));
  const legend = make("div", { class: "mlxmem-legend" });
  for (const segment of bar.segments) {
    const swatch = make("i", { class: hatched(segment).trim() });
    swatch.style.backgroundColor = colour(segment.kind, segment.rank);
    legend.append(make("span", { class: "mlxmem-key" }, swatch, make("b"), make("span")));
  }
  const title = make("div", { class: "mlxmem-title" }, make("b"), make("span"), make("em"));
  const lost = make("div", { class: "mlxmem-lost" });
  return make("section", { class: "mlxmem-bar" }, title, lost, make("div", { class: "mlxmem-frame" }, stack, markers), legend);
}

/** What is as it was last known is hatched. */
function hatched(segment: Segment): string {
  return segment.state && ` mlxmem-was-${segment.state}`;
}

function fill(element: HTMLElement, bar: Bar): void {
  element.classList.toggle("mlxmem-stale", bar.stale > 0);
  const [name, facts, pressure] = element.querySelector(".mlxmem-title")!.children;
  text(name, `${bar.host} · ${bar.pool}`);
  text(facts, said(bar));
  text(pressure, bar.pressure && `pressure ${bar.pressure}`);
  pressure.className = `mlxmem-pressure mlxmem-${bar.pressure || "none"}`;
  text(element.querySelector(".mlxmem-lost")!, bar.said.join("\n"));
  const stack = element.querySelector(".mlxmem-stack")!;
  const free = bar.segments.filter((each) => each.kind === "held" || each.kind === "free").reduce((sum, each) => sum + each.bytes, 0);
  const legend = element.querySelector(".mlxmem-legend")!;
  const told = bar.segments.some((each) => each.kind === "system");
  bar.segments.forEach((segment, place) => {
    const part = stack.children[place] as HTMLElement;
    const width = `${((100 * segment.bytes) / bar.total).toFixed(2)}%`;
    if (part.style.width !== width) part.style.width = width;
    const who = segment.rank < 0 ? "" : `rank ${segment.rank} `;
    const what = `${who}${segment.kind === "others" && !told ? `system and ${NAMES.others}` : NAMES[segment.kind]}`;
    part.title = `${what}: ${bytes(segment.bytes)}`;
    const key = legend.children[place];
    text(key.children[1], what);
    text(key.children[2], bytes(segment.kind === "free" ? free : segment.bytes));
  });
  stack.setAttribute("aria-label", bar.segments.map((s) => `${NAMES[s.kind]} ${bytes(s.bytes)}`).join(", "));
  const labels = element.querySelector(".mlxmem-markers")!;
  const rows: number[] = []; // of each row of labels, where its last one begins
  const sorted = [...bar.markers].sort((one, other) => one.at - other.at);
  sorted.forEach((each, place) => {
    const at = each.at / bar.total;
    const marker = labels.children[place] as HTMLElement;
    let row = rows.findIndex((last) => at - last > NEAR);
    if (row < 0) row = rows.length;
    rows[row] = at;
    marker.style.left = `${(100 * at).toFixed(2)}%`;
    marker.style.setProperty("--row", String(row));
    marker.classList.toggle("mlxmem-left", at > 0.8);
    text(marker.children[0], `${each.name} ${bytes(each.bytes)}`);
  });
  labels.parentElement!.style.setProperty("--rows", String(rows.length));
}

function said(bar: Bar): string {
  const swap = bar.swap === null ? "" : `swap ${bytes(bar.swap)}, ${TRENDS[bar.swap_trend]}`;
  const unknown = bar.unknown.length ? `${bar.unknown.join(", ")}: unknown here` : "";
  const stale = bar.stale > 0 ? `as it was ${Math.round(bar.stale)} s ago` : "";
  return [bytes(bar.total), swap, unknown, stale].filter(Boolean).join(" · ");
}

function text(element: Element, value: string): void {
  if (element.textContent !== value) element.textContent = value;
}

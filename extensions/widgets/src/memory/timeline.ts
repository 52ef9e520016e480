/** The timelines of all ranks: one window of time, one selection, pause, zoom, pan, overlay. */

import { button, make } from "../dom";
import { Chart, type Overlay, type Span } from "./chart";
import { ACTIVE, CACHE, FOOTPRINT, type Mark, type Marks, type Model, type Samples } from "./messages";
import { clock, duration, signed } from "./units";

const WINDOWS: [string, number][] = [
  ["1 min", 60],
  ["5 min", 300],
  ["20 min", 1200],
  ["1 h", 3600],
];
const SHORTEST = 1; // second on the whole width
const NONE = "–";

/** What a mark of one rank is among those of another: each counts for itself, and names may come
 * again. They are the same if no other of that name is nearer in time, seen from either. */
function same(mark: Mark, own: Mark[], others: Mark[]): Mark | null {
  if (own === others) return mark;
  const found = nearest(mark, others);
  return found && nearest(found, own) === mark ? found : null;
}

function nearest(mark: Mark, among: Mark[]): Mark | null {
  const alike = among.filter((each) => each.kind === mark.kind && each.name === mark.name);
  const apart = (each: Mark) => Math.abs(each.begin - mark.begin);
  return alike.reduce<Mark | null>((best, each) => (best && apart(best) <= apart(each) ? best : each), null);
}

export class Timeline {
  readonly element = make("div", { class: "mlxmem-timeline" });
  private readonly charts = new Map<number, Chart>();
  private readonly holder = make("div");
  private readonly said = make("div", { class: "mlxmem-selection", "aria-live": "polite" });
  private readonly pauseButton: HTMLButtonElement;
  private readonly choices: [HTMLSelectElement, HTMLSelectElement];
  private span: Span | null = null; // where it stands still; else it follows
  private seconds = 60;
  private selection: Span | null = null;
  private stale = true;
  private other = true; // than samples
  private drawn: Span = { from: 0, to: 0 };
  private drawnLast = Number.NaN; // sample that all charts had then
  private offered = ""; // to be laid over one another

  constructor(private readonly model: Model) {
    this.pauseButton = button("Pause", "stand still, or follow", () => this.pause(this.span === null));
    const windows = WINDOWS.map(([name, seconds]) =>
      button(name, `show the last ${name}`, () => {
        this.seconds = seconds;
        this.pause(false);
      }),
    );
    this.choices = [this.choice("overlay"), this.choice("on")];
    const compare = make("label", { class: "mlxmem-overlay" }, "overlay ", this.choices[0], " on ", this.choices[1]);
    const tools = make("div", { class: "mlxmem-tools" }, this.pauseButton, ...windows, compare);
    const hint = "drag: select a span · wheel: zoom · shift and drag: move · double click: follow";
    this.element.append(tools, this.said, this.holder, make("div", { class: "mlxmem-note" }, hint));
    this.holder.addEventListener("wheel", (event) => this.zoom(event), { passive: false });
    this.holder.addEventListener("mousedown", (event) => this.move(event), { capture: true });
    this.holder.addEventListener("dblclick", () => this.pause(false));
  }

  take(message: Samples | Marks, buffers: DataView[]): void {
    if (message.kind === "samples") {
      message.parts.forEach(({ rank, first }, place) => {
        const { buffer, byteOffset, byteLength } = buffers[place];
        const rows = new Float64Array(buffer.slice(byteOffset, byteOffset + byteLength) as ArrayBuffer);
        this.chart(rank).ring.put(first, rows);
      });
    } else {
      this.chart(message.rank).marks = message.marks;
      this.offer();
      this.other = true;
    }
    this.stale = true;
  }

  /** Something beside samples is another. */
  changed(): void {
    this.stale = this.other = true;
  }

  /** There may be more or less room. */
  resized(): void {
    for (const chart of this.charts.values()) chart.measure();
    this.draw(true);
  }

  /** Draw what is new; called before the browser paints. */
  draw(force = false): void {
    if (!force && !this.stale) return;
    const span = this.window();
    if (!force && !this.other && this.isAsDrawn(span)) return;
    this.stale = this.other = false;
    this.drawn = span;
    this.drawnLast = Math.min(...[...this.charts.values()].map((chart) => chart.ring.last));
    const style = getComputedStyle(this.element);
    const paper = style.getPropertyValue("--jp-layout-color0") || "white";
    const ranks = this.model.get("ranks");
    for (const { rank, host, said } of ranks) {
      this.chart(rank).say(`rank ${rank} · ${host}${said ? ` · ${said}` : ""}`);
      this.chart(rank).element.classList.toggle("mlxmem-gone", said !== "");
    }
    for (const [rank, chart] of this.charts)
      if (!ranks.some((each) => each.rank === rank)) {
        chart.dispose();
        chart.element.remove();
        this.charts.delete(rank);
      }
    for (const [rank, chart] of this.charts) chart.draw(span, this.overlay(rank), style.color, paper);
    this.tell();
  }

  /** Whether what is new would change nothing in sight, or move it by less than a pixel (and no
   * longer than a second). */
  private isAsDrawn(span: Span): boolean {
    if (this.span) return span === this.drawn && this.drawnLast >= span.to;
    const moved = span.to - this.drawn.to;
    const pixel = (span.to - span.from) / Math.max([...this.charts.values()][0]?.width ?? 1, 1);
    return moved >= 0 && moved < Math.min(pixel, 1);
  }

  dispose(): void {
    for (const chart of this.charts.values()) chart.dispose();
  }

  private chart(rank: number): Chart {
    let chart = this.charts.get(rank);
    if (!chart) {
      const made = new Chart(rank, (span) => this.select(made, span));
      chart = made;
      const after = [...this.charts].filter(([other]) => other > rank).sort(([one], [other]) => one - other)[0];
      this.charts.set(rank, made);
      this.holder.insertBefore(made.element, after ? after[1].element : null);
      made.measure();
    }
    return chart;
  }

  private window(): Span {
    if (this.span) return this.span;
    const last = Math.max(...[...this.charts.values()].map((chart) => chart.ring.last).filter((time) => !Number.isNaN(time)));
    const to = Number.isFinite(last) ? last : Date.now() / 1000;
    return { from: to - this.seconds, to };
  }

  private pause(pause: boolean): void {
    this.span = pause ? this.window() : null;
    this.pauseButton.textContent = pause ? "Follow" : "Pause";
    this.selection = null;
    for (const chart of this.charts.values()) chart.unselect();
    this.draw(true);
  }

  private stand(span: Span): void {
    this.span = span;
    this.pauseButton.textContent = "Follow";
    for (const chart of this.charts.values()) chart.unselect();
    this.draw(true);
  }

  private zoom(event: WheelEvent): void {
    const area = (event.target as HTMLElement).closest(".u-over");
    if (!area || event.ctrlKey) return;
    event.preventDefault();
    const box = area.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    const { from, to } = this.window();
    const at = from + share * (to - from);
    const length = Math.max((to - from) * Math.exp(0.0015 * event.deltaY), SHORTEST);
    this.stand({ from: at - share * length, to: at + (1 - share) * length });
  }

  private move(event: MouseEvent): void {
    const area = (event.target as HTMLElement).closest(".u-over");
    if (!area || !event.shiftKey) return;
    event.preventDefault();
    event.stopPropagation();
    const begun = this.window();
    const moved = (now: MouseEvent) => {
      const by = ((event.clientX - now.clientX) / area.clientWidth) * (begun.to - begun.from);
      this.stand({ from: begun.from + by, to: begun.to + by });
    };
    const done = () => {
      removeEventListener("mousemove", moved);
      removeEventListener("mouseup", done);
    };
    addEventListener("mousemove", moved);
    addEventListener("mouseup", done);
  }

  private select(from: Chart, span: Span | null): void {
    for (const chart of this.charts.values()) if (chart !== from) chart.unselect();
    this.selection = span;
    if (!this.span) {
      this.span = this.window(); // a selection that runs away cannot be read
      this.pauseButton.textContent = "Follow";
    }
    this.tell();
  }

  /** What changed from one end of the selection to the other, rank by rank. */
  private tell(): void {
    const span = this.selection;
    if (!span) {
      if (this.said.childNodes.length) this.said.replaceChildren();
      return;
    }
    const lines = [...this.charts].map(([rank, chart]) => {
      const { ring } = chart;
      const [first, last] = [ring.find(span.from), Math.min(ring.find(span.to), ring.count - 1)];
      if (first >= last) return `rank ${rank}: no samples there`;
      const change = (field: number) => signed(ring.at(last, field) - ring.at(first, field));
      return `rank ${rank}: active ${change(ACTIVE)}, cache ${change(CACHE)}, footprint ${change(FOOTPRINT)}`;
    });
    const head = `${clock(span.from)} to ${clock(span.to)} (${duration(span.to - span.from)})`;
    const zoom = button("Zoom to it", "show this span", () => {
      this.selection = null;
      this.stand(span);
    });
    this.said.replaceChildren(make("b", {}, head), " ", zoom, ...lines.map((line) => make("div", {}, line)));
  }

  private choice(label: string): HTMLSelectElement {
    const select = make("select", { "aria-label": label });
    select.addEventListener("change", () => this.draw(true));
    return select;
  }

  /** The cells and marks that can be laid over one another: the last ones of the first rank. */
  private offer(): void {
    const marks = [...this.charts.values()][0]?.marks ?? [];
    const options = [[NONE, NONE], ...marks.slice(-40).map((mark) => [String(mark.number), `${mark.name} (${clock(mark.begin)})`])];
    const offered = options.join();
    if (offered === this.offered) return;
    this.offered = offered;
    for (const select of this.choices) {
      const kept = select.value;
      select.replaceChildren(...options.map(([value, name]) => make("option", { value }, name)));
      select.value = options.some(([value]) => value === kept) ? kept : NONE;
    }
  }

  private overlay(rank: number): Overlay | null {
    const [second, first] = this.choices.map((select) => this.spanOf(rank, select.value));
    const [over, under] = this.choices.map((select) => select.selectedOptions[0]?.textContent ?? "");
    return first && second ? { first, second, names: [under, over] } : null;
  }

  /** Where a mark of the first rank, by its number, is in the timeline of a rank. */
  private spanOf(rank: number, number: string): Span | null {
    const offered = [...this.charts.values()][0]?.marks ?? [];
    const chosen = offered.find((each) => String(each.number) === number);
    const { marks, ring } = this.chart(rank);
    const mark = chosen && same(chosen, offered, marks);
    return mark ? { from: mark.begin, to: mark.end ?? ring.last } : null;
  }
}


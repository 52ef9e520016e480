/** The drawn graph: canvases, camera, colours, and when to draw. */

import { Camera } from "./camera";
import { CanvasPainter } from "./canvas_painter";
import { make } from "../dom";
import { GlPainter } from "./gl_painter";
import { Grid } from "./grid";
import { Labels } from "./labels";
import { Minimap } from "./minimap";
import type { Marks, Painter } from "./painter";
import { type Poster, poster } from "./poster";
import { type Swatch, type Theme, css, readTheme, swatches } from "./palette";
import { type Bounds, Kind, type Scene } from "./scene";

/** At which a box's title can be read. */
export const LEGIBLE = 0.75;

export class Stage {
  readonly element = make("div", {
    class: "mlxgraph-stage", tabindex: "0", role: "application", "aria-roledescription": "graph",
    "aria-label": "Graph: arrow keys follow edges, Enter opens a group, / searches",
  });
  readonly camera = new Camera();
  scene!: Scene;
  grid!: Grid;
  private readonly tooltip = make("div", { class: "mlxgraph-tip", "aria-hidden": "true" });
  private readonly labels: Labels;
  private readonly minimap: Minimap;
  readonly legend = make("div", { class: "mlxgraph-legend", "aria-label": "Legend" });
  private painter: Painter;
  private theme: Theme;
  private colours: Swatch[] = [];
  private marks: Marks = { boxes: new Map(), lines: [] };
  private frame = 0;
  private ratio = 1;
  private fitted = false;
  /** Whether somebody has moved what is seen. */
  moved = false;
  /** The box that is in the middle until then, where not all can be seen; -1 for the top. */
  private home = -1;
  private readonly resized = new ResizeObserver(() => this.resize());
  private readonly themed = new MutationObserver(() => this.retheme());

  constructor() {
    const canvas = make("canvas");
    const painter = GlPainter.make(canvas);
    this.painter = painter ?? this.plain();
    canvas.addEventListener("webglcontextlost", () => this.fallBack());
    this.labels = new Labels(make("canvas"));
    this.minimap = new Minimap((x, y) => {
      this.camera.x = x - this.camera.width / 2 / this.camera.zoom;
      this.camera.y = y - this.camera.height / 2 / this.camera.zoom;
      this.moved = true;
      this.request();
    });
    this.tooltip.hidden = true;
    this.element.append(this.painter.canvas, this.labels.canvas, this.minimap.canvas, this.tooltip);
    this.theme = readTheme(this.element);
  }

  /** Once it is in the page: only there are sizes and colours known. */
  connect(): void {
    this.resized.observe(this.element);
    this.themed.observe(document.body, {
      attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"],
    });
    this.retheme();
    this.resize();
  }

  setScene(scene: Scene): void {
    this.scene = scene;
    this.grid = new Grid(scene);
    this.painter.setScene(scene);
    this.recolour();
    if (this.fitted) this.camera.limit(scene.bounds);
    else this.resize();
    this.request();
  }

  setMarks(marks: Marks): void {
    this.marks = marks;
    this.painter.setMarks(marks);
    this.request();
  }

  boundsOf(box: number): Bounds {
    const { x, y, width, height } = this.scene;
    return {
      left: x[box]!,
      top: y[box]!,
      right: x[box]! + width[box]!,
      bottom: y[box]! + height[box]!,
    };
  }

  request(): void {
    if (!this.frame) this.frame = requestAnimationFrame((now) => this.draw(now));
  }

  /** Say what a box is while its label is too small to be read. */
  tip(box: number, px: number, py: number): void {
    const { scene, camera, tooltip } = this;
    tooltip.hidden = box < 0 || camera.zoom >= LEGIBLE || scene.kind[box] === Kind.Frame;
    if (tooltip.hidden) return;
    const note = scene.note[box] ? make("span", {}, scene.note[box]!) : "";
    tooltip.replaceChildren(scene.title[box] ?? "", note);
    const left = px > camera.width / 2 ? px - tooltip.offsetWidth - 12 : px + 14;
    const top = py > camera.height - 50 ? py - 40 : py + 14;
    tooltip.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
  }

  /** All that is open as a picture. */
  async poster(title: string): Promise<Poster> {
    const { scene, grid, painter, labels, theme, colours } = this;
    const family = getComputedStyle(this.element).fontFamily;
    const made = poster({ scene, grid, painter, labels, theme, swatches: colours, title, family });
    this.resize();
    return made;
  }

  /** Where the minimap stands: in an element beside the graph, or in a corner over it. */
  standMinimap(beside: HTMLElement | undefined): void {
    this.minimap.stand(beside ?? this.element, beside !== undefined);
    this.request();
  }

  dispose(): void {
    cancelAnimationFrame(this.frame);
    this.frame = -1;
    this.resized.disconnect();
    this.themed.disconnect();
    this.painter.dispose();
  }

  private plain(): Painter {
    return new CanvasPainter(make("canvas"), () => this.grid);
  }

  private fallBack(): void {
    if (this.frame < 0) return;
    const lost = this.painter;
    this.painter = this.plain();
    lost.canvas.replaceWith(this.painter.canvas);
    this.painter.setScene(this.scene);
    this.painter.setColours(this.theme, this.colours);
    this.painter.setMarks(this.marks);
    this.resize();
  }

  private resize(): void {
    const { clientWidth: width, clientHeight: height } = this.element;
    if (!width || !height || !this.scene) return;
    this.ratio = Math.min(window.devicePixelRatio || 1, 2);
    this.camera.width = width;
    this.camera.height = height;
    for (const canvas of [this.painter.canvas, this.labels.canvas]) {
      canvas.width = Math.round(width * this.ratio);
      canvas.height = Math.round(height * this.ratio);
    }
    this.camera.limit(this.scene.bounds);
    // Until somebody moves it, it stays at the beginning, also while its place is still growing.
    this.fitted = true;
    if (!this.moved) this.begin();
    this.request();
  }

  /** Until somebody moves it, a box is in sight. */
  beginAt(box: number): void {
    this.home = box;
    if (!this.moved && this.fitted) this.begin();
    this.request();
  }

  private begin(): void {
    const { scene, home } = this;
    const middle = home >= 0 ? this.boundsOf(home) : undefined;
    this.camera.beginning(scene.bounds, middle ?? this.middleOfTop(), LEGIBLE);
  }

  /** Where the uppermost boxes are, from left to right. */
  private middleOfTop(): number {
    const { scene, camera } = this;
    const end = scene.bounds.top + camera.height / LEGIBLE;
    let sum = 0, count = 0;
    for (let box = scene.frames; box < scene.count; box++) {
      if (scene.y[box]! > end) continue;
      sum += scene.x[box]! + scene.width[box]! / 2;
      count++;
    }
    return count ? sum / count : (scene.bounds.left + scene.bounds.right) / 2;
  }

  private retheme(): void {
    this.theme = readTheme(this.element);
    this.labels.setFont(getComputedStyle(this.element).fontFamily);
    this.recolour();
    // JupyterLab changes the attribute and the style sheet one after the other.
    requestAnimationFrame(() => {
      if (this.frame < 0) return;
      this.theme = readTheme(this.element);
      this.recolour();
    });
  }

  private recolour(): void {
    if (!this.scene) return;
    this.colours = swatches(this.scene.palette, this.theme);
    this.painter.setColours(this.theme, this.colours);
    this.minimap.paint(this.scene, this.theme, this.colours);
    this.legend.replaceChildren(
      ...this.scene.legend.map(([text, swatch]) => {
        const spot = make("i");
        const { fill, mark } = this.colours[swatch % this.colours.length]!;
        spot.style.background = css(this.scene.palette === "sequential" ? fill : mark);
        return make("span", {}, spot, text);
      }),
    );
    this.request();
  }

  private draw(now: number): void {
    this.frame = 0;
    if (!this.scene || !this.fitted) return;
    const more = this.camera.advance(now);
    this.painter.draw(this.camera, this.ratio);
    this.drawLabels();
    this.minimap.draw(this.camera, this.scene.bounds, this.theme, this.grid);
    if (more) this.request();
  }

  private drawLabels(): void {
    const { scene, grid, camera, ratio, theme, colours } = this;
    this.labels.draw(scene, grid, camera, ratio, theme, colours);
  }
}

/** The whole scene in a corner, with what is seen of it; dragging moves there. */

import type { Camera } from "./camera";
import type { Grid } from "./grid";
import { type Swatch, type Theme, css } from "./palette";
import { type Bounds, Kind, type Scene } from "./scene";

const WIDTH = 168;
const HEIGHT = 116;
const EDGE = 8;

export class Minimap {
  readonly canvas = document.createElement("canvas");
  private readonly context = this.canvas.getContext("2d")!;
  private image?: ImageData;
  private scale = 1;
  private docked = false;
  private left = 0;
  private top = 0;

  constructor(private readonly onMove: (x: number, y: number) => void) {
    this.canvas.className = "mlxgraph-minimap";
    this.canvas.width = WIDTH;
    this.canvas.height = HEIGHT;
    this.canvas.setAttribute("aria-hidden", "true");
    this.canvas.addEventListener("pointerdown", (event) => {
      event.stopPropagation();
      this.canvas.setPointerCapture(event.pointerId);
      this.move(event);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (this.canvas.hasPointerCapture(event.pointerId)) this.move(event);
    });
  }

  /** Stand in an element beside the graph, or in a corner over it. */
  stand(place: HTMLElement, docked: boolean): void {
    this.docked = docked;
    place.append(this.canvas);
  }

  /** Pixels are set one by one: a hundred thousand rectangles would take longer than the frame. */
  paint(scene: Scene, theme: Theme, swatches: Swatch[]): void {
    const { bounds } = scene;
    const width = Math.max(bounds.right - bounds.left, 1);
    const height = Math.max(bounds.bottom - bounds.top, 1);
    this.scale = Math.min((WIDTH - 8) / width, (HEIGHT - 8) / height);
    this.left = bounds.left - (WIDTH / this.scale - width) / 2;
    this.top = bounds.top - (HEIGHT / this.scale - height) / 2;
    const image = this.context.createImageData(WIDTH, HEIGHT);
    const pixels = new Uint32Array(image.data.buffer);
    const packed = ([r, g, b]: Swatch["fill"]) =>
      (255 << 24) | (Math.round(b * 255) << 16) | (Math.round(g * 255) << 8) | Math.round(r * 255);
    pixels.fill(packed(theme.surface));
    const marks = swatches.map((swatch) => packed(swatch.mark)), frame = packed(theme.frame);
    for (let box = 0; box < scene.count; box++) {
      const x = Math.floor((scene.x[box]! - this.left) * this.scale);
      const y = Math.floor((scene.y[box]! - this.top) * this.scale);
      const right = x + Math.max(1, Math.round(scene.width[box]! * this.scale));
      const bottom = y + Math.max(1, Math.round(scene.height[box]! * this.scale));
      const ink = scene.kind[box] === Kind.Frame ? frame : marks[scene.swatch[box]! % marks.length]!;
      for (let row = y; row < bottom; row++) pixels.fill(ink, row * WIDTH + x, row * WIDTH + right);
    }
    this.image = image;
  }

  /** Only while some of the scene is out of sight. */
  draw(camera: Camera, bounds: Bounds, theme: Theme, grid: Grid): void {
    const { left, top, right, bottom } = camera.area, context = this.context;
    const all = left <= bounds.left && top <= bounds.top && right >= bounds.right && bottom >= bounds.bottom;
    this.canvas.hidden = all;
    if (!this.image || all) return;
    // Over the graph it fades where it would hide boxes, until somebody points at it.
    const corner = camera.toScene(camera.width - WIDTH - EDGE, camera.height - HEIGHT - EDGE);
    const under = { left: corner[0], top: corner[1], right, bottom };
    this.canvas.classList.toggle("mlxgraph-covering", !this.docked && grid.touches(under));
    context.putImageData(this.image, 0, 0);
    context.fillStyle = css(theme.accent, 0.1);
    context.strokeStyle = css(theme.accent);
    context.lineWidth = 1.5;
    const x = (left - this.left) * this.scale, y = (top - this.top) * this.scale;
    const wide = Math.max((right - left) * this.scale, 3), high = Math.max((bottom - top) * this.scale, 3);
    context.fillRect(x, y, wide, high);
    context.strokeRect(x, y, wide, high);
  }

  private move(event: PointerEvent): void {
    const { left, top } = this.canvas.getBoundingClientRect();
    this.onMove(
      (event.clientX - left) / this.scale + this.left,
      (event.clientY - top) / this.scale + this.top,
    );
  }
}

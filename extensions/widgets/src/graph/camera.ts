/** Which part of the scene is seen: pan, zoom, and short flights to a box. */

import { clamp } from "./grid";
import type { Bounds } from "./scene";

const CLOSEST = 4;
const MARGIN = 24;
const STILL_LEGIBLE = 0.7; // of what is easily read: better all of it than half
const FLIGHT_MS = 180;

export class Camera {
  /** Of the scene, at the upper left corner of the view. */
  x = 0;
  y = 0;
  zoom = 1;
  /** Of the view, in CSS pixels. */
  width = 1;
  height = 1;
  private farthest = 0.01;
  private flight?: { from: [number, number, number]; to: [number, number, number]; begin: number };

  get area(): Bounds {
    return {
      left: this.x,
      top: this.y,
      right: this.x + this.width / this.zoom,
      bottom: this.y + this.height / this.zoom,
    };
  }

  /** From the view to the scene. */
  toScene(px: number, py: number): [number, number] {
    return [this.x + px / this.zoom, this.y + py / this.zoom];
  }

  panBy(dx: number, dy: number): void {
    this.flight = undefined;
    this.x -= dx / this.zoom;
    this.y -= dy / this.zoom;
  }

  /** Zoom by a factor; what is under the point (px, py) stays there. */
  zoomBy(factor: number, px = this.width / 2, py = this.height / 2): void {
    this.flight = undefined;
    const [x, y] = this.toScene(px, py);
    this.zoom = clamp(this.zoom * factor, this.farthest, CLOSEST);
    this.x = x - px / this.zoom;
    this.y = y - py / this.zoom;
  }

  /** Where one sees all of it, but nothing larger than life. */
  private fitted(bounds: Bounds): [number, number, number] {
    const width = bounds.right - bounds.left, height = bounds.bottom - bounds.top;
    const zoom = Math.min(
      1,
      Math.max(this.width - 2 * MARGIN, 20) / Math.max(width, 1),
      Math.max(this.height - 2 * MARGIN, 20) / Math.max(height, 1),
    );
    return [
      (bounds.left + bounds.right) / 2 - this.width / 2 / zoom,
      (bounds.top + bounds.bottom) / 2 - this.height / 2 / zoom,
      zoom,
    ];
  }

  /** How far one may go away: twice as far as to see everything. */
  limit(bounds: Bounds): void {
    this.farthest = Math.min(0.5, this.fitted(bounds)[2] / 2);
  }

  fit(bounds: Bounds, fly = true): void {
    this.go(this.fitted(bounds), fly);
  }

  /** All of it; where it is too large to be read so, a box, or its top with `middle` in the middle. */
  beginning(bounds: Bounds, middle: number | Bounds, legible: number): void {
    const all = this.fitted(bounds);
    if (all[2] >= legible * STILL_LEGIBLE) return this.go(all, false);
    if (typeof middle === "number") {
      const x = middle - this.width / 2 / legible;
      return this.go([x, bounds.top - MARGIN / legible, legible], false);
    }
    this.go(
      [
        (middle.left + middle.right) / 2 - this.width / 2 / legible,
        (middle.top + middle.bottom) / 2 - this.height / 2 / legible,
        legible,
      ],
      false,
    );
  }

  /** Bring a box into the middle, legible, unless it is in full sight already. */
  show(bounds: Bounds, legible: number, always = false): void {
    const area = this.area, edge = MARGIN / this.zoom;
    const inSight =
      bounds.left >= area.left + edge && bounds.right <= area.right - edge &&
      bounds.top >= area.top + edge && bounds.bottom <= area.bottom - edge;
    if (inSight && !always && this.zoom >= legible) return;
    const fitting = this.fitted(bounds)[2];
    const zoom = Math.min(Math.max(this.zoom, legible), fitting < legible ? fitting : CLOSEST);
    this.go(
      [
        (bounds.left + bounds.right) / 2 - this.width / 2 / zoom,
        (bounds.top + bounds.bottom) / 2 - this.height / 2 / zoom,
        zoom,
      ],
      true,
    );
  }

  /** Move on in a flight; whether there is more to come. */
  advance(now: number): boolean {
    if (!this.flight) return false;
    const { from, to, begin } = this.flight;
    const t = clamp((now - begin) / FLIGHT_MS, 0, 1), eased = 1 - (1 - t) ** 3;
    // The zoom changes by a factor, and what is in the middle moves evenly.
    this.zoom = from[2] * (to[2] / from[2]) ** eased;
    const middle = (k: 0 | 1, size: number) => {
      const a = from[k] + size / 2 / from[2], b = to[k] + size / 2 / to[2];
      return a + (b - a) * eased - size / 2 / this.zoom;
    };
    this.x = middle(0, this.width);
    this.y = middle(1, this.height);
    if (t === 1) this.flight = undefined;
    return t < 1;
  }

  private go(to: [number, number, number], fly: boolean): void {
    const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (fly && !still) {
      this.flight = { from: [this.x, this.y, this.zoom], to, begin: performance.now() };
      return;
    }
    this.flight = undefined;
    [this.x, this.y, this.zoom] = to;
  }
}

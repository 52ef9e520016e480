/** What stands on boxes: only where it can be read, and cut off with … where it does not fit. */

import type { Camera } from "./camera";
import type { Grid } from "./grid";
import { type Swatch, type Theme, css, luminance } from "./palette";
import { Kind, type Scene } from "./scene";

export const MOST_LABELS = 600;
export const HEADER = 22; // of a frame, in units of the scene
const LEAST_HEIGHT = 11;
const LEAST_HEADER = 7;
const SMALLEST = 8; // pixels
const TWO_LINES = 27;
const MEASURED = 100;

export class Labels {
  private readonly context: CanvasRenderingContext2D;
  private widths = new Map<string, number>();
  private family = "sans-serif";

  constructor(readonly canvas: HTMLCanvasElement) {
    this.context = canvas.getContext("2d")!;
  }

  setFont(family: string): void {
    this.family = family || "sans-serif";
    this.widths.clear();
  }

  draw(
    scene: Scene, grid: Grid, camera: Camera, ratio: number, theme: Theme, swatches: Swatch[],
    onto = this.context, place: readonly [number, number] = [0, 0], most = MOST_LABELS,
  ): number {
    onto.setTransform(ratio, 0, 0, ratio, ...place);
    if (onto === this.context) onto.clearRect(0, 0, camera.width, camera.height);
    onto.textBaseline = "middle";
    if (this.widths.size > 20_000) this.widths.clear();
    const { zoom } = camera;
    const boxes = grid.within(camera.area).filter((box) => {
      const frame = scene.kind[box] === Kind.Frame;
      const high = (frame ? HEADER : scene.height[box]!) * zoom;
      return high >= (frame ? LEAST_HEADER : LEAST_HEIGHT) && scene.width[box]! * zoom >= 24;
    });
    // Where there are too many, groups come first.
    if (boxes.length > most) boxes.sort((a, b) => scene.kind[b]! - scene.kind[a]!);
    const shown = boxes.slice(0, most);
    for (const box of shown) {
      const x = (scene.x[box]! - camera.x) * zoom, y = (scene.y[box]! - camera.y) * zoom;
      const wide = scene.width[box]! * zoom, high = scene.height[box]! * zoom;
      const kind = scene.kind[box];
      if (kind === Kind.Frame) {
        const size = Math.min(12, Math.max(HEADER * zoom * 0.62, SMALLEST));
        onto.fillStyle = css(theme.faint);
        this.text(onto, `▾ ${scene.title[box]}`, x + 8, y + (HEADER * zoom) / 2 + 1, wide - 14, size, 600);
        continue;
      }
      const { text, fill } = swatches[scene.swatch[box]! % swatches.length]!;
      onto.fillStyle = css(text);
      const inset = Math.min(10, 4 * zoom + 5), room = wide - inset - 5;
      const title = kind === Kind.Group ? `▸ ${scene.title[box]}` : (scene.title[box] ?? "");
      const note = scene.note[box];
      const weight = kind === Kind.Group || kind === Kind.Collective ? 600 : 500;
      if (note && high >= TWO_LINES) {
        const size = Math.min(14, high * 0.33);
        this.text(onto, title, x + inset, y + high * 0.33, room, size, weight);
        // On a strong colour a translucent text would be too faint.
        onto.globalAlpha = Math.abs(luminance(fill) - luminance(text)) > 0.6 ? 0.78 : 1;
        this.text(onto, note, x + inset, y + high * 0.7, room, Math.min(12, high * 0.28), 400);
        onto.globalAlpha = 1;
      } else {
        this.text(onto, title, x + inset, y + high / 2, room, Math.min(14, high * 0.66), weight);
      }
    }
    return shown.length;
  }

  private text(
    onto: CanvasRenderingContext2D, text: string, x: number, y: number, room: number,
    size: number, weight: number,
  ): void {
    if (room < size) return;
    // A smaller text is better than half of one.
    const fitting = (room * MEASURED) / this.width(text, weight);
    const rounded = Math.floor(Math.min(size, Math.max(fitting, SMALLEST)) * 2) / 2;
    const full = (this.width(text, weight) * rounded) / MEASURED;
    let shown = text;
    if (full > room) {
      const dots = rounded * 0.9;
      shown = `${text.slice(0, Math.max(1, Math.floor((text.length * (room - dots)) / full)))}…`;
      if ((this.width(shown, weight) * rounded) / MEASURED > room) shown = `${shown.slice(0, -2)}…`;
    }
    onto.font = `${weight} ${rounded}px ${this.family}`;
    onto.fillText(shown, x, y, room);
  }

  private width(text: string, weight: number): number {
    const key = `${weight}${text}`;
    let width = this.widths.get(key);
    if (width === undefined) {
      this.context.font = `${weight} ${MEASURED}px ${this.family}`;
      width = this.context.measureText(text).width;
      this.widths.set(key, width);
    }
    return width;
  }
}

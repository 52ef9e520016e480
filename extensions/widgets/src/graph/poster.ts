/** All that is open as a picture, with title and legend, drawn tile by tile. */

import { Camera } from "./camera";
import { make } from "../dom";
import type { Grid } from "./grid";
import type { Labels } from "./labels";
import type { Painter } from "./painter";
import { type Swatch, type Theme, css } from "./palette";
import type { Scene } from "./scene";

/** Pixels of a side. Browsers make no larger canvas everywhere, and few programs open one. */
export const LARGEST = 8192;
const SHARPEST = 2; // pixels per unit of the scene
const TILE = 1024;
const MARGIN = 24;
const HEAD = 58;
const LEGEND_STEP = 14;

export interface Poster {
  picture: Blob | null;
  /** Pixels per unit of the scene. */
  scale: number;
}

export interface Drawing {
  scene: Scene;
  grid: Grid;
  painter: Painter;
  labels: Labels;
  theme: Theme;
  swatches: Swatch[];
  title: string;
  family: string;
}

/** The painter's canvas has another size afterwards. */
export async function poster(drawing: Drawing): Promise<Poster> {
  const { scene, grid, painter, labels, theme, swatches } = drawing;
  const { left, top, right, bottom } = scene.bounds;
  const across = Math.max(right - left + 2 * MARGIN, 480), down = bottom - top + 2 * MARGIN;
  const scale = Math.min(SHARPEST, LARGEST / across, (LARGEST - HEAD * SHARPEST) / down);
  // Lines, edges and the title are as on a screen of that many pixels, not thinner where it is scaled down.
  const ratio = Math.max(1, scale), head = Math.ceil(HEAD * ratio);
  const picture = make("canvas");
  picture.width = Math.min(LARGEST, Math.ceil(across * scale));
  picture.height = Math.min(LARGEST, head + Math.ceil(down * scale));
  const context = picture.getContext("2d")!;
  context.fillStyle = css(theme.surface);
  context.fillRect(0, 0, picture.width, picture.height);
  const { canvas } = painter, camera = new Camera();
  canvas.width = canvas.height = TILE;
  camera.zoom = scale / ratio;
  camera.width = camera.height = TILE / ratio;
  const x0 = (left + right - across) / 2, y0 = top - MARGIN;
  for (let y = head; y < picture.height; y += TILE) {
    for (let x = 0; x < picture.width; x += TILE) {
      camera.x = x0 + x / scale;
      camera.y = y0 + (y - head) / scale;
      painter.draw(camera, ratio);
      context.save();
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.beginPath();
      context.rect(x, y, TILE, TILE);
      context.clip();
      context.drawImage(canvas, x, y);
      labels.draw(scene, grid, camera, ratio, theme, swatches, context, [x, y], Infinity);
      context.restore();
    }
  }
  headline(context, drawing, ratio);
  const blob = new Promise<Blob | null>((resolve) => picture.toBlob(resolve, "image/png"));
  return { picture: await blob, scale };
}

function headline(context: CanvasRenderingContext2D, drawing: Drawing, scale: number): void {
  const { scene, theme, swatches, title, family } = drawing;
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.textBaseline = "middle";
  context.fillStyle = css(theme.text);
  context.font = `600 16px ${family}`;
  context.fillText(title, MARGIN, 22);
  context.font = `400 11px ${family}`;
  let x = MARGIN;
  for (const [text, swatch] of scene.legend) {
    const { fill, mark } = swatches[swatch % swatches.length]!;
    context.fillStyle = css(scene.palette === "sequential" ? fill : mark);
    context.fillRect(x, 40, 10, 10);
    context.fillStyle = css(theme.faint);
    context.fillText(text, x + 15, 45);
    x += 15 + context.measureText(text).width + LEGEND_STEP;
  }
}

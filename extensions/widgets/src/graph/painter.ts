/** What draws boxes and lines; labels are not its business. */

import type { Camera } from "./camera";
import type { Swatch, Theme } from "./palette";
import type { Scene } from "./scene";

/** Why a box stands out; larger ones win. */
export const enum Mark {
  Hit = 1,
  Neighbour = 2,
  Path = 3,
  Hovered = 4,
  Selected = 5,
}

export interface Marks {
  boxes: Map<number, Mark>;
  /** Lines that light up, stubs among them. */
  lines: number[];
}

export interface Painter {
  readonly canvas: HTMLCanvasElement;
  setScene(scene: Scene): void;
  setColours(theme: Theme, swatches: Swatch[]): void;
  setMarks(marks: Marks): void;
  /** `ratio` is that of the screen's pixels to those of CSS. */
  draw(camera: Camera, ratio: number): void;
  dispose(): void;
}

export const STUB_LENGTH = 14;

/** Both ends of a line, in the scene: out of the lower edge of a box, into the upper edge of another. */
export function ends(scene: Scene, line: number): [number, number, number, number] {
  const a = scene.source[line]!, b = scene.target[line]!;
  return [
    scene.x[a]! + scene.width[a]! / 2,
    scene.y[a]! + scene.height[a]!,
    scene.x[b]! + scene.width[b]! / 2,
    scene.y[b]!,
  ];
}

export function bend(y1: number, y2: number): number {
  return Math.max(Math.abs(y2 - y1) * 0.45, 8);
}

export function markColour(mark: Mark, theme: Theme): readonly [number, number, number] {
  if (mark === Mark.Hit) return theme.hit;
  return mark === Mark.Neighbour || mark === Mark.Hovered ? theme.faint : theme.accent;
}

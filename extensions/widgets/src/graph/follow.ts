/** Where the arrow keys lead. */

import type { Scene } from "./scene";

/** The uppermost box that is no frame. */
export function first(scene: Scene): number {
  let best = -1;
  for (let box = scene.frames; box < scene.count; box++) {
    if (best < 0 || scene.y[box]! < scene.y[best]!) best = box;
  }
  return best;
}

/** Up and down follow a line, left and right go to the nearest box that shares an end with one. */
export function next(scene: Scene, from: number, key: string): number {
  const joined = (box: number, up: boolean): number[] => {
    const rows = up ? scene.into : scene.outOf, ends = up ? scene.source : scene.target;
    return Array.from(rows.values.subarray(rows.start[box]!, rows.start[box + 1]!), (line) => ends[line]!);
  };
  const x = scene.x[from]! + scene.width[from]! / 2;
  const away = (box: number) => scene.x[box]! + scene.width[box]! / 2 - x;
  const nearest = (boxes: number[]) =>
    boxes.reduce((a, b) => (a < 0 || Math.abs(away(b)) < Math.abs(away(a)) ? b : a), -1);
  if (key === "ArrowUp" || key === "ArrowDown") return nearest(joined(from, key === "ArrowUp"));
  const beside = [...joined(from, true).flatMap((box) => joined(box, false)),
    ...joined(from, false).flatMap((box) => joined(box, true))];
  const right = key === "ArrowRight";
  return nearest(beside.filter((box) => box !== from && (right ? away(box) > 0 : away(box) < 0)));
}

/** Where the arrow keys lead, and what else the scene alone can tell. */

import type { Answer, Link } from "./messages";
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

/** What a box is joined to in the scene: what is known of it without a kernel. */
export function beside(scene: Scene, box: number): Answer {
  const links = (rows: Scene["into"], ends: Int32Array): Link[] => {
    const boxes = new Set<number>();
    for (let i = rows.start[box]!; i < rows.start[box + 1]!; i++) boxes.add(ends[rows.values[i]!]!);
    return Array.from(boxes, (each) => ({ item: scene.item[each]!, label: scene.title[each] ?? "" }));
  };
  return {
    answer: 0,
    rows: scene.note[box] ? [["", scene.note[box]!]] : [],
    inputs: links(scene.into, scene.source),
    outputs: links(scene.outOf, scene.target),
  };
}

/** The items whose boxes have all words of a text on them. */
export function among(scene: Scene, text: string): Int32Array {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const found: number[] = [];
  for (let box = 0; box < scene.count; box++) {
    const said = `${scene.title[box]} ${scene.note[box]}`.toLowerCase();
    if (words.every((word) => said.includes(word))) found.push(scene.item[box]!);
  }
  return Int32Array.from(found);
}

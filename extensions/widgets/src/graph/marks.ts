/** What stands out: hits, a path, the selected box and what it is joined to. */

import type { Link } from "./messages";
import { Mark, type Marks } from "./painter";
import { Kind, type Scene } from "./scene";

export interface Attention {
  /** Items. */
  hits: Int32Array;
  path: Link[];
  selected: number;
  /** A box; -1 for none. */
  hovered: number;
}

export function marksOf(scene: Scene, { hits, path, selected, hovered }: Attention): Marks {
  const boxes = new Map<number, Mark>(), lines: number[] = [];
  for (const item of hits) {
    const box = scene.box(item);
    if (box >= 0) boxes.set(box, Mark.Hit);
  }
  const light = (box: number) => {
    for (const [rows, ends] of [[scene.into, scene.source], [scene.outOf, scene.target]] as const) {
      for (let i = rows.start[box]!; i < rows.start[box + 1]!; i++) {
        lines.push(rows.values[i]!);
        const end = ends[rows.values[i]!]!;
        if (!boxes.has(end)) boxes.set(end, Mark.Neighbour);
      }
    }
  };
  const box = scene.box(selected);
  if (path.length) {
    const on = new Set(path.map(({ item }) => scene.box(item)));
    on.delete(-1);
    for (const each of on) {
      boxes.set(each, Mark.Path);
      for (let i = scene.into.start[each]!; i < scene.into.start[each + 1]!; i++) {
        if (on.has(scene.source[scene.into.values[i]!]!)) lines.push(scene.into.values[i]!);
      }
    }
  } else if (box >= 0) light(box);
  if (hovered >= 0 && hovered !== box) {
    if (scene.kind[hovered] !== Kind.Frame) light(hovered);
    boxes.set(hovered, Mark.Hovered);
  }
  if (box >= 0) boxes.set(box, Mark.Selected);
  return { boxes, lines };
}

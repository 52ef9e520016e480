/** Boxes by where they stand, so that neither a click nor a label looks at all of them. */

import type { Bounds, Scene } from "./scene";

const BOXES_PER_CELL = 4;
const MOST_CELLS = 1 << 16;

export class Grid {
  private readonly columns: number;
  private readonly rows: number;
  private readonly cellWidth: number;
  private readonly cellHeight: number;
  private readonly start: Uint32Array;
  private readonly boxes: Uint32Array;
  private readonly seen: Uint32Array;
  private look = 0;

  constructor(private readonly scene: Scene) {
    const { left, top, right, bottom } = scene.bounds;
    const width = Math.max(right - left, 1), height = Math.max(bottom - top, 1);
    const cells = Math.min(MOST_CELLS, Math.max(1, Math.ceil(scene.count / BOXES_PER_CELL)));
    this.columns = clamp(Math.round(Math.sqrt((cells * width) / height)), 1, cells);
    this.rows = Math.max(1, Math.round(cells / this.columns));
    this.cellWidth = width / this.columns;
    this.cellHeight = height / this.rows;
    this.start = new Uint32Array(this.columns * this.rows + 1);
    this.eachCell((cell) => this.start[cell + 1]!++);
    for (let cell = 0; cell < this.columns * this.rows; cell++) {
      this.start[cell + 1]! += this.start[cell]!;
    }
    this.boxes = new Uint32Array(this.start[this.columns * this.rows]!);
    const free = this.start.slice();
    this.eachCell((cell, box) => (this.boxes[free[cell]!++] = box));
    this.seen = new Uint32Array(scene.count);
  }

  /** The box at a point that is drawn last; -1 where there is none. */
  at(x: number, y: number): number {
    const { bounds } = this.scene;
    if (x < bounds.left || x > bounds.right || y < bounds.top || y > bounds.bottom) return -1;
    const cell = this.row(y) * this.columns + this.column(x);
    const scene = this.scene;
    for (let i = this.start[cell + 1]! - 1; i >= this.start[cell]!; i--) {
      const box = this.boxes[i]!;
      const dx = x - scene.x[box]!, dy = y - scene.y[box]!;
      if (dx >= 0 && dx <= scene.width[box]! && dy >= 0 && dy <= scene.height[box]!) return box;
    }
    return -1;
  }

  /** The boxes that touch a rectangle, each once, in no order; those of cells around it may be among them. */
  within(area: Bounds): number[] {
    const found: number[] = [];
    const look = ++this.look;
    const last = this.column(area.right), end = this.row(area.bottom);
    for (let row = this.row(area.top); row <= end; row++) {
      for (let column = this.column(area.left); column <= last; column++) {
        const cell = row * this.columns + column;
        for (let i = this.start[cell]!; i < this.start[cell + 1]!; i++) {
          const box = this.boxes[i]!;
          if (this.seen[box] === look) continue;
          this.seen[box] = look;
          found.push(box);
        }
      }
    }
    return found;
  }

  /** Whether a box that is no frame touches a rectangle. */
  touches(area: Bounds): boolean {
    const { x, y, width, height, frames } = this.scene;
    return this.within(area).some((box) =>
      box >= frames && x[box]! < area.right && x[box]! + width[box]! > area.left &&
      y[box]! < area.bottom && y[box]! + height[box]! > area.top);
  }

  private column(x: number): number {
    return clamp(Math.floor((x - this.scene.bounds.left) / this.cellWidth), 0, this.columns - 1);
  }

  private row(y: number): number {
    return clamp(Math.floor((y - this.scene.bounds.top) / this.cellHeight), 0, this.rows - 1);
  }

  private eachCell(visit: (cell: number, box: number) => void): void {
    const { x, y, width, height, count } = this.scene;
    for (let box = 0; box < count; box++) {
      const first = this.column(x[box]!), last = this.column(x[box]! + width[box]!);
      const end = this.row(y[box]! + height[box]!);
      for (let row = this.row(y[box]!); row <= end; row++) {
        for (let column = first; column <= last; column++) visit(row * this.columns + column, box);
      }
    }
  }
}

export function clamp(value: number, least: number, most: number): number {
  return Math.max(least, Math.min(most, value));
}

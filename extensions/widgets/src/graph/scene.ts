/** A scene as it came from the kernel, with what makes it quick to ask: who is joined to whom. */

import type { SceneState } from "./messages";

export const enum Kind {
  Node = 0,
  Input = 1,
  Collective = 2,
  Group = 3,
  Frame = 4,
}

export interface Bounds {
  left: number;
  top: number;
  right: number;
  bottom: number;
}

/** Rows of numbers of different lengths: those of row r are values[start[r]] to values[start[r + 1] - 1]. */
export interface Rows {
  start: Uint32Array;
  values: Uint32Array;
}

export class Scene {
  readonly item: Int32Array;
  readonly kind: Uint8Array;
  readonly x: Float32Array;
  readonly y: Float32Array;
  readonly width: Float32Array;
  readonly height: Float32Array;
  readonly swatch: Uint8Array;
  readonly frame: Int32Array;
  readonly source: Int32Array;
  readonly target: Int32Array;
  readonly stub: Uint8Array;
  readonly title: string[];
  readonly note: string[];
  readonly palette: "categorical" | "sequential";
  readonly legend: [string, number][];
  readonly bounds: Bounds;
  /** How many boxes are frames; they stand first. */
  readonly frames: number;
  private boxes?: Map<number, number>;
  private joined?: { into: Rows; outOf: Rows };

  constructor(state: SceneState) {
    this.item = int32(state.item);
    this.kind = bytes(state.kind);
    this.x = float32(state.x);
    this.y = float32(state.y);
    this.width = float32(state.width);
    this.height = float32(state.height);
    this.swatch = bytes(state.swatch);
    this.frame = int32(state.frame);
    this.source = int32(state.source);
    this.target = int32(state.target);
    this.stub = bytes(state.stub);
    this.title = state.titles.split("\n");
    this.note = state.notes.split("\n");
    this.palette = state.palette;
    this.legend = state.legend;
    let frames = 0;
    while (frames < this.count && this.kind[frames] === Kind.Frame) frames++;
    this.frames = frames;
    this.bounds = this.measure();
  }

  get count(): number {
    return this.item.length;
  }

  get lines(): number {
    return this.source.length;
  }

  /** The box of an item; -1 where it is in a closed group. */
  box(item: number): number {
    this.boxes ??= new Map(Array.from(this.item, (each, box) => [each, box]));
    return this.boxes.get(item) ?? -1;
  }

  /** Lines that end at each box. */
  get into(): Rows {
    return this.join().into;
  }

  /** Lines that begin at each box. */
  get outOf(): Rows {
    return this.join().outOf;
  }

  private join(): { into: Rows; outOf: Rows } {
    this.joined ??= {
      into: group(this.target, this.count),
      outOf: group(this.source, this.count),
    };
    return this.joined;
  }

  private measure(): Bounds {
    if (!this.count) return { left: 0, top: 0, right: 1, bottom: 1 };
    let left = Infinity, top = Infinity, right = -Infinity, bottom = -Infinity;
    for (let box = 0; box < this.count; box++) {
      const x = this.x[box]!, y = this.y[box]!;
      left = Math.min(left, x);
      top = Math.min(top, y);
      right = Math.max(right, x + this.width[box]!);
      bottom = Math.max(bottom, y + this.height[box]!);
    }
    return { left, top, right, bottom };
  }
}

/** Which places of `keys` hold each key, by counting. */
export function group(keys: ArrayLike<number>, count: number): Rows {
  const start = new Uint32Array(count + 1);
  for (let i = 0; i < keys.length; i++) start[keys[i]! + 1]!++;
  for (let key = 0; key < count; key++) start[key + 1]! += start[key]!;
  const free = start.slice();
  const values = new Uint32Array(keys.length);
  for (let i = 0; i < keys.length; i++) values[free[keys[i]!]!++] = i;
  return { start, values };
}

/** Messages do not align their buffers as typed arrays need it. */
function aligned(view: DataView): ArrayBuffer {
  return view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength) as ArrayBuffer;
}

function bytes(view: DataView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

export function int32(view: DataView): Int32Array {
  return new Int32Array(aligned(view));
}

export function float32(view: DataView): Float32Array {
  return new Float32Array(aligned(view));
}

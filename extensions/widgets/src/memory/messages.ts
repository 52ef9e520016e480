/** What the view and the kernel say to each other; as in mlxbench_kernel/widgets/memory_live.py. */

export interface Segment {
  kind: "system" | "others" | "active" | "cache" | "rest" | "held" | "free";
  bytes: number;
  rank: number;
  /** Of the rank, where this is as it was last known. */
  state: "" | "late" | "gone";
}

export interface Bar {
  host: string;
  pool: string;
  total: number;
  segments: Segment[];
  markers: { name: string; bytes: number; at: number }[];
  pressure: string;
  swap: number | null;
  swap_trend: number;
  unknown: string[];
  stale: number;
  /** Of ranks that are gone or late, a line each. */
  said: string[];
}

export interface RankState {
  rank: number;
  host: string;
  said: string;
}

export interface Mark {
  /** No other's of this rank. */
  number: number;
  kind: "cell" | "mark";
  name: string;
  begin: number;
  end: number | null;
}

/** A buffer for each part: samples of a rank, float64 [count, FIELDS]; `first` counts them. */
export interface Samples {
  kind: "samples";
  parts: { rank: number; first: number }[];
}

export interface Marks {
  kind: "marks";
  rank: number;
  marks: Mark[];
}

/** Whether anybody shows it: who does answers. */
export interface Who {
  kind: "who";
}

export type Message = Samples | Marks | Who;

/** Columns of a sample. */
export const FIELDS = 6;
export const [TIME, ACTIVE, CACHE, PEAK, FOOTPRINT, STEP] = [0, 1, 2, 3, 4, 5];

interface State {
  bars: Bar[];
  ranks: RankState[];
  height: number;
}

export interface Model {
  get<K extends keyof State>(name: K): State[K];
  on(event: "msg:custom", handler: (message: Message, buffers: DataView[]) => void): void;
  on(event: string, handler: () => void): void;
  off(event: string, handler?: unknown): void;
  send(message: { kind: "ready" | "here" | "gone" }): void;
}

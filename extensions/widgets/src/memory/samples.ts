/** The samples of one rank in the browser: an hour at 10 Hz at most, in a ring. */

import { ACTIVE, CACHE, FIELDS, FOOTPRINT, STEP, TIME } from "./messages";

const MOST = 36_000;

/** Cumulative heights of the stack, as uPlot takes them. */
export type Columns = [number[], number[], number[], number[]];

/** A step of training, from when to when it went, and until when others followed at once. */
export interface Step {
  step: number;
  from: number;
  to: number;
  until: number;
}

export class Ring {
  private rows = new Float64Array(0);
  private begin = 0; // row of the oldest
  count = 0;
  next = 0; // number of the first sample that is not here
  private hasSteps = false;

  put(first: number, rows: Float64Array): void {
    const skip = Math.max(this.next - first, 0);
    const added = rows.length / FIELDS;
    if (skip >= added) return;
    if (!this.rows.length) this.rows = new Float64Array(MOST * FIELDS);
    for (let row = skip; row < added; row++) {
      const place = (this.begin + this.count) % MOST;
      this.rows.set(rows.subarray(row * FIELDS, (row + 1) * FIELDS), place * FIELDS);
      this.hasSteps ||= !Number.isNaN(rows[row * FIELDS + STEP]);
      if (this.count < MOST) this.count++;
      else this.begin = (this.begin + 1) % MOST;
    }
    this.next = first + added;
  }

  /** A value of a sample by its age; 0 is the oldest. */
  at(index: number, field: number): number {
    return this.rows[((this.begin + index) % MOST) * FIELDS + field];
  }

  /** The first sample at or after a time. */
  find(time: number): number {
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.at(middle, TIME) < time) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  get last(): number {
    return this.count ? this.at(this.count - 1, TIME) : Number.NaN;
  }

  get oldest(): number {
    return this.count ? this.at(0, TIME) : Number.NaN;
  }

  /** What is between two times, for so many pixels: of each the lowest and the highest. */
  between(from: number, to: number, pixels: number): Columns {
    const first = Math.max(this.find(from) - 1, 0);
    const end = Math.min(this.find(to) + 1, this.count);
    const found: Columns = [[], [], [], []];
    const per = Math.max((end - first) / Math.max(pixels, 1), 1);
    for (let begin = first; begin < end; ) {
      const stop = Math.min(Math.max(Math.floor(begin + per), begin + 1), end);
      let low = begin;
      let high = begin;
      for (let index = begin + 1; index < stop; index++) {
        const size = this.height(index);
        if (size < this.height(low)) low = index;
        if (size > this.height(high)) high = index;
      }
      this.push(found, Math.min(low, high));
      if (low !== high) this.push(found, Math.max(low, high));
      begin = stop;
    }
    return found;
  }

  /** Steps of training in sight, one after another. */
  steps(from: number, to: number): Step[] {
    const found: Step[] = [];
    if (!this.hasSteps) return found;
    const end = Math.min(this.find(to) + 1, this.count);
    let before = Number.NaN;
    for (let index = this.find(from); index < end; index++) {
      const step = this.at(index, STEP);
      if (step === before) continue;
      const time = this.at(index, TIME);
      if (!Number.isNaN(before)) found.at(-1)!.to = time;
      if (!Number.isNaN(step)) found.push({ step, from: time, to, until: to });
      before = step;
    }
    for (let place = found.length - 2; place >= 0; place--)
      found[place].until = found[place].to < found[place + 1].from ? found[place].to : found[place + 1].until;
    return found;
  }

  private height(index: number): number {
    return Math.max(this.at(index, FOOTPRINT), this.at(index, ACTIVE) + this.at(index, CACHE));
  }

  private push(columns: Columns, index: number): void {
    const active = this.at(index, ACTIVE);
    columns[0].push(this.at(index, TIME));
    columns[1].push(active);
    columns[2].push(active + this.at(index, CACHE));
    columns[3].push(this.at(index, FOOTPRINT));
  }
}

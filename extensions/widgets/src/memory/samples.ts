/** The samples of one rank in the browser: an hour at 10 Hz at most, in a ring. */

import { ACTIVE, CACHE, FIELDS, FOOTPRINT, STEP, TIME } from "./messages";

const MOST = 36_000;

const GAP = 2; // seconds without a sample, in which nobody measured …
const OTHERS = 5; // … where the samples before were that much closer to one another

/** Cumulative heights of the stack, as uPlot takes them; null between samples that are far apart. */
export type Columns = [number[], ...(number | null)[][]];

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

  /** What is between two times, in so many pieces: of each the lowest and the highest. Where nothing
   * was measured, as while a rank was dead, there is a gap. */
  between(from: number, to: number, pieces: number): Columns {
    const first = Math.max(this.find(from) - 1, 0);
    const end = Math.min(this.find(to) + 1, this.count);
    const found: Columns = [[], [], [], []];
    const per = Math.max((end - first) / Math.max(pieces, 1), 1);
    const { rows } = this;
    let place = ((this.begin + first) % MOST) * FIELDS;
    let [last, apart] = [Number.NaN, Number.NaN]; // time of the sample before, and how far from its own
    for (let begin = first; begin < end; ) {
      let stop = Math.min(Math.max(Math.floor(begin + per), begin + 1), end);
      let low = begin;
      let high = begin;
      let least = Number.POSITIVE_INFINITY;
      let most = Number.NEGATIVE_INFINITY;
      for (let index = begin; index < stop; index++) {
        const time = rows[place + TIME];
        const isFar = time - last > GAP && time - last > OTHERS * apart;
        if (isFar && index > begin) {
          stop = index; // and the gap comes before the next piece
          break;
        }
        if (isFar) gap(found, last, time);
        [last, apart] = [time, isFar ? Number.NaN : time - last];
        const ours = rows[place + ACTIVE] + rows[place + CACHE];
        const footprint = rows[place + FOOTPRINT]; // NaN where it is not known
        const size = footprint > ours ? footprint : ours;
        if (size < least) [least, low] = [size, index];
        if (size > most) [most, high] = [size, index];
        place += FIELDS;
        if (place === MOST * FIELDS) place = 0;
      }
      this.push(found, Math.min(low, high));
      if (low !== high) this.push(found, Math.max(low, high));
      begin = stop;
    }
    return found;
  }

  /** Steps of training in sight, one after another; of more than `most` there is one for all. */
  steps(from: number, to: number, most: number): Step[] {
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
      if (found.length > most) return [{ ...found[0], to: this.lastOfSteps(end) }];
      before = step;
    }
    for (let place = found.length - 2; place >= 0; place--)
      found[place].until = found[place].to < found[place + 1].from ? found[place].to : found[place + 1].until;
    return found;
  }

  /** The step at a time; NaN outside of any. */
  stepAt(time: number): number {
    return this.at(Math.min(this.find(time), this.count - 1), STEP);
  }

  private lastOfSteps(end: number): number {
    let index = end - 1;
    while (Number.isNaN(this.at(index, STEP))) index--;
    return this.at(index, TIME);
  }

  private push(columns: Columns, index: number): void {
    const active = this.at(index, ACTIVE);
    columns[0].push(this.at(index, TIME));
    columns[1].push(active);
    columns[2].push(active + this.at(index, CACHE));
    columns[3].push(this.at(index, FOOTPRINT));
  }
}

function gap(columns: Columns, last: number, next: number): void {
  columns[0].push((last + next) / 2);
  for (const column of columns.slice(1)) column.push(null as never);
}

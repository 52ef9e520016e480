/** Questions to the kernel, which may be busy for minutes. */

import type { Answer, Arguments, Ask, Model, Request } from "./messages";

export const PATIENCE_MS = 500;

export interface Reply extends Answer {
  buffers: DataView[];
}

export class Kernel {
  private next = 1;
  private readonly open = new Map<number, { asked: number; resolve: (reply: Reply) => void }>();
  private timer = 0;

  /** `onWaiting` is told when the kernel keeps somebody waiting, and when it has answered. */
  constructor(
    private readonly model: Model,
    private readonly onWaiting: (waiting: boolean) => void,
  ) {
    model.on("msg:custom", this.receive);
  }

  ask(ask: Ask, args: Arguments = {}): Promise<Reply> {
    const request: Request = { id: this.next++, ask, ...args };
    return new Promise((resolve) => {
      this.open.set(request.id, { asked: performance.now(), resolve });
      this.watch();
      this.model.send(request);
    });
  }

  dispose(): void {
    this.model.off("msg:custom", this.receive);
    window.clearTimeout(this.timer);
    this.open.clear();
  }

  private readonly receive = (content: unknown, buffers: DataView[]): void => {
    const answer = content as Answer;
    const asked = this.open.get(answer.answer);
    if (!asked) return; // of another view of the same widget
    this.open.delete(answer.answer);
    this.watch();
    asked.resolve({ ...answer, buffers: buffers ?? [] });
  };

  private watch(): void {
    window.clearTimeout(this.timer);
    let oldest = Infinity;
    for (const { asked } of this.open.values()) oldest = Math.min(oldest, asked);
    const left = oldest + PATIENCE_MS - performance.now();
    this.onWaiting(left <= 0);
    if (left > 0 && left < Infinity) this.timer = window.setTimeout(() => this.watch(), left + 1);
  }
}

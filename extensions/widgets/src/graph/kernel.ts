/** Questions to the kernel, which may be busy for minutes, or gone. */

import type { Answer, Arguments, Ask, KernelConnection, Model, Request } from "./messages";

export const PATIENCE_MS = 500;
export const GONE = "the kernel is gone: run the cell again to open groups, search and export";

/** Statuses of a kernel that knows nothing any more of what was asked, nor of the view. */
const ENDED = new Set(["restarting", "autorestarting", "terminating", "dead"]);
/** Which ipywidgets puts on a view whose model has no kernel. */
const DISCONNECTED = "jupyter-widgets-disconnected";

export type Condition = "answers" | "waits" | "gone";

export interface Reply extends Answer {
  buffers: DataView[];
}

interface Question {
  asked: number;
  resolve: (reply: Reply) => void;
}

export class Kernel {
  private next = 1;
  private readonly open = new Map<number, Question>();
  private timer = 0;
  private ended = false;
  private readonly connection?: KernelConnection | null;

  /** `onChange` is told when the kernel keeps somebody waiting, has answered, or is gone. */
  constructor(
    private readonly model: Model,
    private readonly element: HTMLElement,
    private readonly onChange: (condition: Condition) => void,
  ) {
    model.on("msg:custom", this.receive);
    model.on("comm_live_update", this.look);
    this.connection = model.widget_manager?.kernel;
    this.connection?.statusChanged?.connect(this.status);
    this.connection?.disposed?.connect(this.end);
    this.look();
  }

  get gone(): boolean {
    return this.ended;
  }

  ask(ask: Ask, args: Arguments = {}): Promise<Reply> {
    const request: Request = { id: this.next++, ask, ...args };
    return new Promise((resolve) => {
      this.open.set(request.id, { asked: performance.now(), resolve });
      if (this.ended) return this.end();
      try {
        this.model.send(request);
      } catch {
        return this.end(); // the comm ended with its kernel
      }
      this.watch();
    });
  }

  dispose(): void {
    this.model.off("msg:custom", this.receive);
    this.model.off("comm_live_update", this.look);
    this.connection?.statusChanged?.disconnect(this.status);
    this.connection?.disposed?.disconnect(this.end);
    window.clearTimeout(this.timer);
    this.open.clear();
  }

  private readonly receive = (content: unknown, buffers: DataView[]): void => {
    const answer = content as Answer;
    const question = this.open.get(answer.answer);
    if (!question) return; // of another view of the same widget
    this.open.delete(answer.answer);
    this.watch();
    question.resolve({ ...answer, buffers: buffers ?? [] });
  };

  private readonly look = (): void => {
    if (this.element.classList.contains(DISCONNECTED)) this.end();
  };

  private readonly status = (_: unknown, status: string | undefined): void => {
    if (status !== undefined && ENDED.has(status)) this.end();
  };

  /** Nobody is left waiting for an answer that cannot come. */
  private readonly end = (): void => {
    this.ended = true;
    window.clearTimeout(this.timer);
    this.onChange("gone");
    const questions = [...this.open];
    this.open.clear();
    for (const [answer, { resolve }] of questions) resolve({ answer, error: GONE, buffers: [] });
  };

  private watch(): void {
    window.clearTimeout(this.timer);
    if (this.ended) return;
    let oldest = Infinity;
    for (const { asked } of this.open.values()) oldest = Math.min(oldest, asked);
    const left = oldest + PATIENCE_MS - performance.now();
    this.onChange(left <= 0 ? "waits" : "answers");
    if (left > 0 && left < Infinity) this.timer = window.setTimeout(() => this.watch(), left + 1);
  }
}

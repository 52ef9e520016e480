/** Mouse, touch and keys on the graph, turned into what they mean. */

export interface Gestures {
  pan(dx: number, dy: number): void;
  zoom(factor: number, px?: number, py?: number): void;
  hover(px: number, py: number): void;
  leave(): void;
  click(px: number, py: number, shift: boolean): void;
  doubleClick(px: number, py: number): void;
  key(key: string, shift: boolean): boolean;
}

const DRAG_PIXELS = 4;
const SCROLLING_MS = 250;
const STEP = 1.25;

const EDITING = new Set(["a", "c", "v", "x", "y", "z"]);
/** By which JupyterLab leaves the keys of an element alone. */
const SUPPRESSED = "data-lm-suppress-shortcuts";

/**
 * Keep keys from the notebook, which has shortcuts for most of them, but not those with Ctrl or
 * Cmd, as to save it; returns how to stop.
 */
export function keepKeys(root: HTMLElement): () => void {
  const stop = new AbortController();
  const { signal } = stop;
  const ours = (event: KeyboardEvent) =>
    !(event.ctrlKey || event.metaKey) ||
    (event.target instanceof HTMLInputElement && EDITING.has(event.key.toLowerCase()));
  // Notebook 7 looks at keys before they get here, and at the attribute of the element with the
  // focus before that of those around: many of its shortcuts are for whatever has the focus.
  window.addEventListener("keydown", (event) => {
    const [target] = event.composedPath();
    if (target instanceof Element && root.contains(target)) target.toggleAttribute(SUPPRESSED, ours(event));
  }, { signal, capture: true });
  root.addEventListener("keydown", (event) => {
    if (ours(event)) event.stopPropagation();
  }, { signal });
  return () => stop.abort();
}

/** Listen on `stage`; returns how to stop. */
export function listen(stage: HTMLElement, gestures: Gestures): () => void {
  const stop = new AbortController();
  const { signal } = stop;
  let down: { x: number; y: number; dragging: boolean } | undefined;
  let scrolled = -Infinity;

  const at = (event: MouseEvent): [number, number] => {
    const { left, top } = stage.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button > 1) return;
    stage.focus({ preventScroll: true });
    down = { x: event.clientX, y: event.clientY, dragging: false };
    stage.setPointerCapture(event.pointerId);
  }, { signal });
  stage.addEventListener("pointermove", (event) => {
    if (!down) return gestures.hover(...at(event));
    const dx = event.clientX - down.x, dy = event.clientY - down.y;
    if (!down.dragging && Math.hypot(dx, dy) < DRAG_PIXELS) return;
    down = { x: event.clientX, y: event.clientY, dragging: true };
    stage.classList.add("mlxgraph-dragging");
    gestures.pan(dx, dy);
  }, { signal });
  const up = (event: PointerEvent) => {
    const clicked = down && !down.dragging && event.type === "pointerup";
    down = undefined;
    stage.classList.remove("mlxgraph-dragging");
    if (clicked) gestures.click(...at(event), event.shiftKey);
  };
  stage.addEventListener("pointerup", up, { signal });
  stage.addEventListener("pointercancel", up, { signal });
  stage.addEventListener("pointerleave", () => gestures.leave(), { signal });
  stage.addEventListener("dblclick", (event) => gestures.doubleClick(...at(event)), { signal });

  // Who scrolls through the notebook is not caught by a graph that passes under the pointer.
  document.addEventListener("wheel", (event) => {
    if (!event.composedPath().includes(stage)) scrolled = event.timeStamp;
  }, { signal, capture: true, passive: true });
  stage.addEventListener("wheel", (event) => {
    if (event.timeStamp - scrolled < SCROLLING_MS) {
      scrolled = event.timeStamp;
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    const pixels = event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 33 : 1);
    gestures.zoom(Math.exp(-Math.max(-240, Math.min(240, pixels)) / 420), ...at(event));
  }, { signal, passive: false });

  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    let done = true;
    if (event.key === "+" || event.key === "=") gestures.zoom(STEP);
    else if (event.key === "-") gestures.zoom(1 / STEP);
    else done = gestures.key(event.key, event.shiftKey);
    if (!done) return;
    event.preventDefault();
    event.stopPropagation();
  }, { signal });
  return () => stop.abort();
}

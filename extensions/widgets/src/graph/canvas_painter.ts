/** Boxes and lines on a plain canvas, for browsers without WebGL 2. */

import type { Camera } from "./camera";
import { type Grid, clamp } from "./grid";
import { Mark, type Marks, type Painter, STUB_LENGTH, bend, ends, markColour } from "./painter";
import { type Swatch, type Theme, css, mix } from "./palette";
import { Kind, type Scene } from "./scene";

export class CanvasPainter implements Painter {
  private readonly context: CanvasRenderingContext2D;
  private scene?: Scene;
  private theme?: Theme;
  private swatches: Swatch[] = [];
  private marks: Marks = { boxes: new Map(), lines: [] };

  constructor(
    readonly canvas: HTMLCanvasElement,
    private readonly grid: () => Grid,
  ) {
    this.context = canvas.getContext("2d", { alpha: false })!;
  }

  setScene(scene: Scene): void {
    this.scene = scene;
    this.marks = { boxes: new Map(), lines: [] };
  }

  setColours(theme: Theme, swatches: Swatch[]): void {
    this.theme = theme;
    this.swatches = swatches;
  }

  setMarks(marks: Marks): void {
    this.marks = marks;
  }

  draw(camera: Camera, ratio: number): void {
    const { context, scene, theme } = this;
    if (!scene || !theme) return;
    const scale = camera.zoom * ratio;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = css(theme.surface);
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.setTransform(scale, 0, 0, scale, -camera.x * scale, -camera.y * scale);
    context.lineWidth = 1.2 / camera.zoom;
    const boxes = this.grid().within(camera.area).sort((a, b) => a - b);
    const frames = boxes.filter((box) => box < scene.frames);
    for (const box of frames) this.box(scene, box, theme.frame, mix(theme.surface, theme.text, 0.22));
    context.strokeStyle = css(theme.line, 0.9);
    context.beginPath();
    const drawn = new Set<number>();
    for (const box of boxes) {
      for (const { start, values } of [scene.into, scene.outOf]) {
        for (let i = start[box]!; i < start[box + 1]!; i++) drawn.add(values[i]!);
      }
    }
    for (const line of drawn) this.line(scene, line, scene.stub[line] === 1);
    context.stroke();
    context.strokeStyle = css(theme.accent);
    context.beginPath();
    for (const line of this.marks.lines) this.line(scene, line, false);
    context.stroke();
    for (const box of boxes) {
      if (box < scene.frames) continue;
      const { fill, mark } = this.swatches[scene.swatch[box]! % this.swatches.length]!;
      this.box(scene, box, scene.height[box]! * camera.zoom < 8 ? mark : fill, mark);
    }
    for (const [box, mark] of this.marks.boxes) {
      const small = Math.min(scene.width[box]!, scene.height[box]!) * camera.zoom;
      context.lineWidth = (2.5 / camera.zoom) * clamp(small / 26, mark >= Mark.Hovered ? 0.6 : 0.2, 1);
      context.strokeStyle = css([...markColour(mark, theme)]);
      const { x, y, width, height } = scene;
      context.strokeRect(x[box]!, y[box]!, width[box]!, height[box]!);
    }
  }

  dispose(): void {
    this.scene = undefined;
  }

  private box(scene: Scene, box: number, fill: Swatch["fill"], edge: Swatch["fill"]): void {
    const height = scene.height[box]!;
    this.context.fillStyle = css(fill);
    this.context.strokeStyle = css(edge);
    this.context.beginPath();
    const radius = scene.kind[box] === Kind.Input ? height / 2 : 5;
    this.context.roundRect(scene.x[box]!, scene.y[box]!, scene.width[box]!, height, radius);
    this.context.fill();
    this.context.stroke();
  }

  private line(scene: Scene, line: number, stub: boolean): void {
    const [x1, y1, x2, y2] = ends(scene, line), context = this.context;
    context.moveTo(x1, y1);
    if (stub) {
      context.lineTo(x1, y1 + STUB_LENGTH);
      context.moveTo(x2, y2);
      context.lineTo(x2, y2 - STUB_LENGTH);
      return;
    }
    const far = bend(y1, y2);
    context.bezierCurveTo(x1, y1 + far, x2, y2 - far, x2, y2);
  }
}

/** Boxes and lines by WebGL 2. */

import * as twgl from "twgl.js";

import { Batch } from "./batch";
import type { Camera } from "./camera";
import { clamp } from "./grid";
import { type Marks, type Painter, STUB_LENGTH, ends, markColour } from "./painter";
import { type Swatch, type Theme, mix } from "./palette";
import { type Scene, group } from "./scene";
import { BOX_FRAGMENT, BOX_VERTEX, LINE_FRAGMENT, LINE_VERTEX } from "./shaders";

const SEGMENTS = 12;
const TILES = 64;
const CURVES_FROM_ZOOM = 0.3;

export class GlPainter implements Painter {
  private readonly boxProgram: twgl.ProgramInfo;
  private readonly lineProgram: twgl.ProgramInfo;
  private readonly boxes: Batch;
  private readonly lines: Batch;
  private readonly rings: Batch;
  private readonly lit: Batch;
  private scene?: Scene;
  private theme?: Theme;
  private colours: Record<string, unknown> = {};

  /** Undefined where the browser has no WebGL 2. */
  static make(canvas: HTMLCanvasElement): GlPainter | undefined {
    const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false });
    return gl ? new GlPainter(canvas, gl) : undefined;
  }

  private constructor(
    readonly canvas: HTMLCanvasElement,
    private readonly gl: WebGL2RenderingContext,
  ) {
    this.boxProgram = twgl.createProgramInfo(gl, [BOX_VERTEX, BOX_FRAGMENT]);
    this.lineProgram = twgl.createProgramInfo(gl, [LINE_VERTEX, LINE_FRAGMENT]);
    this.boxes = new Batch(gl);
    this.rings = new Batch(gl);
    this.lines = new Batch(gl);
    this.lit = new Batch(gl);
  }

  setScene(scene: Scene): void {
    this.scene = scene;
    const all = Uint32Array.from({ length: scene.count }, (_, box) => box);
    this.fillBoxes(this.boxes, all, () => 0);
    const places = new Float32Array(8 * scene.lines), looks = new Uint8Array(8 * scene.lines);
    let at = 0;
    for (const line of nearby(scene)) {
      const [x1, y1, x2, y2] = ends(scene, line), first = at * 4;
      places[first] = x1;
      places[first + 1] = y1;
      places[first + 2] = scene.stub[line] ? x1 : x2;
      places[first + 3] = scene.stub[line] ? y1 + STUB_LENGTH : y2;
      at++;
      if (!scene.stub[line]) continue;
      places[first + 4] = places[first + 6] = x2;
      places[first + 5] = y2;
      places[first + 7] = y2 - STUB_LENGTH;
      looks[first] = looks[first + 4] = 1;
      at++;
    }
    this.lines.fill(places.subarray(0, at * 4), looks.subarray(0, at * 4), false);
    this.setMarks({ boxes: new Map(), lines: [] });
  }

  setMarks({ boxes, lines }: Marks): void {
    if (!this.scene) return;
    const ordered = [...boxes].sort((a, b) => a[1] - b[1]);
    this.fillBoxes(this.rings, ordered.map(([box]) => box), (box) => boxes.get(box)!);
    const places = new Float32Array(lines.length * 4);
    lines.forEach((line, i) => places.set(ends(this.scene!, line), i * 4));
    this.lit.fill(places, new Uint8Array(lines.length * 4), false);
  }

  setColours(theme: Theme, swatches: Swatch[]): void {
    this.theme = theme;
    const flat = (pick: (swatch: Swatch) => readonly number[]) =>
      Array.from({ length: 16 }, (_, i) => pick(swatches[i % swatches.length]!)).flat();
    this.colours = {
      uFill: flat((swatch) => swatch.fill),
      uMark: flat((swatch) => swatch.mark),
      uRing: [0, 1, 2, 3, 4, 5].flatMap((mark) => markColour(mark, theme)),
      uFrame: theme.frame,
      uFrameEdge: mix(theme.surface, theme.text, 0.22),
    };
  }

  draw(camera: Camera, ratio: number): void {
    const { gl, scene, theme } = this;
    if (!scene || !theme) return;
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.clearColor(...theme.surface, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
    const area = camera.area;
    const common = {
      uOrigin: [camera.x, camera.y],
      uView: [this.canvas.width, this.canvas.height],
      uScale: camera.zoom * ratio,
    };
    const startBoxes = (marking: number) => {
      gl.useProgram(this.boxProgram.program);
      const uniforms = { ...common, ...this.colours, uRatio: ratio, uMarking: marking };
      twgl.setUniforms(this.boxProgram, uniforms);
    };
    startBoxes(0);
    this.boxes.draw(this.boxProgram, area, 6, 0, scene.frames);
    const segments = camera.zoom < CURVES_FROM_ZOOM ? 1 : SEGMENTS;
    gl.useProgram(this.lineProgram.program);
    twgl.setUniforms(this.lineProgram, {
      ...common,
      uSegments: segments,
      uHalf: 0.6 * ratio,
      uColour: [...theme.line, clamp(camera.zoom * 1.4, 0.12, 0.9)],
    });
    this.lines.draw(this.lineProgram, area, 6 * segments);
    if (this.lit.count) {
      const strong = { uSegments: 24, uHalf: 1.1 * ratio, uColour: [...theme.accent, 1] };
      twgl.setUniforms(this.lineProgram, strong);
      this.lit.draw(this.lineProgram, area, 6 * 24);
    }
    startBoxes(0);
    this.boxes.draw(this.boxProgram, area, 6, scene.frames);
    if (this.rings.count) {
      startBoxes(1);
      this.rings.draw(this.boxProgram, area, 6);
    }
  }

  dispose(): void {
    for (const batch of [this.boxes, this.lines, this.rings, this.lit]) batch.dispose();
    // Browsers keep few contexts; a notebook with many views would lose the oldest.
    this.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }

  private fillBoxes(batch: Batch, boxes: ArrayLike<number>, mark: (box: number) => number): void {
    const scene = this.scene!;
    const places = new Float32Array(boxes.length * 4), styles = new Uint8Array(boxes.length * 4);
    for (let i = 0; i < boxes.length; i++) {
      const box = boxes[i]!;
      places[i * 4] = scene.x[box]!;
      places[i * 4 + 1] = scene.y[box]!;
      places[i * 4 + 2] = scene.width[box]!;
      places[i * 4 + 3] = scene.height[box]!;
      styles[i * 4] = scene.swatch[box]!;
      styles[i * 4 + 1] = scene.kind[box]!;
      styles[i * 4 + 2] = mark(box);
    }
    batch.fill(places, styles, true);
  }
}

/** Lines by the tile that their middle is in, so that those out of sight stand together. */
function nearby(scene: Scene): Uint32Array {
  const { left, top, right, bottom } = scene.bounds;
  const across = TILES / Math.max(right - left, 1), down = TILES / Math.max(bottom - top, 1);
  const tile = (value: number) => clamp(Math.floor(value), 0, TILES - 1);
  const tiles = new Uint16Array(scene.lines);
  for (let line = 0; line < scene.lines; line++) {
    const a = scene.source[line]!, b = scene.target[line]!;
    const column = tile(((scene.x[a]! + scene.x[b]!) / 2 - left) * across);
    tiles[line] = tile(((scene.y[a]! + scene.y[b]!) / 2 - top) * down) * TILES + column;
  }
  return group(tiles, TILES * TILES).values;
}

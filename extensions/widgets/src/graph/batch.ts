/** Many boxes or lines in textures; runs of them that are out of sight are left out. */

import * as twgl from "twgl.js";

import type { Bounds } from "./scene";
import { TEXTURE_WIDTH } from "./shaders";

const RUN = 64;

export class Batch {
  private readonly places: WebGLTexture;
  private readonly styles: WebGLTexture;
  private runs = new Float32Array();
  count = 0;

  constructor(private readonly gl: WebGL2RenderingContext) {
    this.places = gl.createTexture()!;
    this.styles = gl.createTexture()!;
  }

  /** Four numbers each; `boxes` says whether places are x, y, width, height or two points. */
  fill(places: Float32Array, styles: Uint8Array, boxes: boolean): void {
    const gl = this.gl;
    this.count = places.length / 4;
    const height = Math.max(1, Math.ceil(this.count / TEXTURE_WIDTH));
    const padded = new Float32Array(height * TEXTURE_WIDTH * 4);
    padded.set(places);
    const paddedStyles = new Uint8Array(height * TEXTURE_WIDTH * 4);
    paddedStyles.set(styles);
    const upload = (texture: WebGLTexture, inside: number, format: number, type: number,
      data: ArrayBufferView) => {
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
      gl.texImage2D(gl.TEXTURE_2D, 0, inside, TEXTURE_WIDTH, height, 0, format, type, data);
    };
    upload(this.places, gl.RGBA32F, gl.RGBA, gl.FLOAT, padded);
    upload(this.styles, gl.RGBA8UI, gl.RGBA_INTEGER, gl.UNSIGNED_BYTE, paddedStyles);
    this.runs = new Float32Array(Math.ceil(this.count / RUN) * 4);
    for (let run = 0; run * RUN < this.count; run++) {
      let left = Infinity, top = Infinity, right = -Infinity, bottom = -Infinity;
      for (let i = run * RUN * 4; i < Math.min((run + 1) * RUN, this.count) * 4; i += 4) {
        const x = places[i]!, y = places[i + 1]!;
        const u = places[i + 2]! + (boxes ? x : 0), v = places[i + 3]! + (boxes ? y : 0);
        left = Math.min(left, x, u);
        right = Math.max(right, x, u);
        top = Math.min(top, y, v);
        bottom = Math.max(bottom, y, v);
      }
      this.runs.set([left, top, right, bottom], run * 4);
    }
  }

  /** Draw from `first` to before `end`, as far as it may be in `area`; the program is in use. */
  draw(program: twgl.ProgramInfo, area: Bounds, vertices: number, first = 0, end = this.count): void {
    twgl.setUniforms(program, { uPlaces: this.places, uStyles: this.styles });
    const some = (from: number, to: number) =>
      this.gl.drawArrays(this.gl.TRIANGLES, from * vertices, (to - from) * vertices);
    let begin = -1;
    for (let run = Math.floor(first / RUN); run * RUN < end; run++) {
      const i = run * 4;
      const seen =
        this.runs[i]! <= area.right && this.runs[i + 2]! >= area.left &&
        this.runs[i + 1]! <= area.bottom && this.runs[i + 3]! >= area.top;
      if (seen && begin < 0) begin = Math.max(run * RUN, first);
      if (!seen && begin >= 0) {
        some(begin, run * RUN);
        begin = -1;
      }
    }
    if (begin >= 0) some(begin, end);
  }

  dispose(): void {
    this.gl.deleteTexture(this.places);
    this.gl.deleteTexture(this.styles);
  }
}

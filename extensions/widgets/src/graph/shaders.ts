/**
 * WebGL 2 shaders: one quad per box, one ribbon per line.
 *
 * Vertices find their box or line in textures, by their number, instead of by instancing: drawing
 * by software (SwiftShader), each instance costs as much as a draw call of its own.
 */

export const TEXTURE_WIDTH = 1024;

const CAMERA = `#version 300 es
uniform vec2 uOrigin;   // of the scene, at the upper left corner
uniform vec2 uView;     // pixels
uniform float uScale;   // pixels per unit of the scene
uniform highp sampler2D uPlaces;
uniform highp usampler2D uStyles;
ivec2 texel(int number) {
  return ivec2(number % ${TEXTURE_WIDTH}, number / ${TEXTURE_WIDTH});
}
// Corners of the two triangles of a quad: 0 1 2, 2 1 3.
int corner(int vertex) {
  int n = vertex % 6;
  return n < 3 ? n : n == 3 ? 2 : n == 4 ? 1 : 3;
}
vec4 place(vec2 pixels) {
  return vec4(pixels.x / uView.x * 2.0 - 1.0, 1.0 - pixels.y / uView.y * 2.0, 0.0, 1.0);
}
`;

export const BOX_VERTEX = `${CAMERA}
uniform float uMarking; // 1 when only the ring around a box is drawn
uniform float uRatio;
out vec2 vAt;
flat out float vRing;
flat out vec2 vSize;
flat out vec4 vStyle;
void main() {
  vec4 rect = texelFetch(uPlaces, texel(gl_VertexID / 6), 0);
  // Swatch, kind, mark.
  vec4 style = vec4(texelFetch(uStyles, texel(gl_VertexID / 6), 0));
  vec2 at = vec2(corner(gl_VertexID) & 1, corner(gl_VertexID) >> 1);
  vec2 size = max(rect.zw * uScale, vec2(1.0));
  // Around a small box a ring is thin: many hits would hide all else. The selected one is seen.
  float least = style.z >= 4.0 ? 0.6 : 0.2;
  vRing = uMarking * uRatio * clamp(min(size.x, size.y) / (26.0 * uRatio), least, 1.0);
  vec2 grow = vec2(3.0 * vRing);
  vAt = at * (size + 2.0 * grow) - grow;
  vSize = size;
  vStyle = style;
  gl_Position = place((rect.xy - uOrigin) * uScale + vAt);
}`;

export const BOX_FRAGMENT = `#version 300 es
precision highp float;
in vec2 vAt;
flat in vec2 vSize;
flat in vec4 vStyle;
flat in float vRing;
uniform vec3 uFill[16];
uniform vec3 uMark[16];
uniform vec3 uRing[6];
uniform vec3 uFrame;
uniform vec3 uFrameEdge;
uniform float uScale, uRatio, uMarking;
out vec4 colour;
void main() {
  int swatch = int(vStyle.x + 0.5), kind = int(vStyle.y + 0.5), mark = int(vStyle.z + 0.5);
  float radius = kind == 1 ? vSize.y * 0.5 : min(5.0 * uScale, vSize.y * 0.3);
  radius = min(radius, vSize.x * 0.5);
  vec2 q = abs(vAt - vSize * 0.5) - vSize * 0.5 + radius;
  float edge = length(max(q, 0.0)) + min(max(q.x, q.y), 0.0) - radius; // < 0 inside
  if (uMarking > 0.5) {
    float wide = (mark >= 4 || mark == 1 ? 2.5 : 1.8) * vRing, out_ = 3.0 * vRing;
    if (edge > out_ || edge < out_ - wide - 1.0) discard;
    colour = vec4(uRing[mark], clamp(edge - out_ + wide + 1.0, 0.0, 1.0));
    return;
  }
  if (edge > 0.5) discard;
  float cover = vSize.y < 4.0 ? 1.0 : clamp(0.5 - edge, 0.0, 1.0);
  float line = clamp(edge + (kind == 2 ? 2.2 : 1.2) * uRatio + 0.5, 0.0, 1.0);
  if (kind == 4) {
    colour = vec4(mix(uFrame, uFrameEdge, line), cover * mix(0.9, 1.0, line));
    return;
  }
  // The smaller a box is, the more of it has the strong colour: a pale dot says nothing.
  float strong = clamp((14.0 * uRatio - vSize.y) / (10.0 * uRatio), 0.0, 1.0) * 0.85;
  if (kind != 1 && vAt.x < 4.0 * uScale) strong = max(strong, 1.0);
  float rim = line * clamp(vSize.y / (10.0 * uRatio), 0.0, 1.0);
  // A closed group looks like a pile: a second edge inside the first.
  if (kind == 3 && vSize.y > 12.0 * uRatio) {
    rim = max(rim, 0.6 * (1.0 - clamp(abs(edge + 4.0 * uRatio) - 0.5 * uRatio, 0.0, 1.0)));
  }
  float share = max(strong, rim * (kind == 0 ? 0.55 : 0.9));
  colour = vec4(mix(uFill[swatch], uMark[swatch], share), cover);
}`;

export const LINE_VERTEX = `${CAMERA}
uniform float uHalf;
uniform int uSegments;
out float vAcross;
out float vFade;
void main() {
  int line = gl_VertexID / (6 * uSegments), segment = gl_VertexID / 6 % uSegments;
  int quarter = corner(gl_VertexID);
  vec4 ends = texelFetch(uPlaces, texel(line), 0);
  bool fades = texelFetch(uStyles, texel(line), 0).x > 0u; // away from its beginning: half a stub
  float t = float(segment + (quarter >> 1)) / float(uSegments);
  float side = float(quarter & 1) * 2.0 - 1.0;
  vec2 a = (ends.xy - uOrigin) * uScale, b = (ends.zw - uOrigin) * uScale;
  vec2 at, along;
  if (fades || uSegments == 1) {
    at = mix(a, b, t);
    along = b - a;
  } else {
    vec2 c = a + vec2(0.0, max(abs(b.y - a.y) * 0.45, 8.0 * uScale));
    vec2 d = b - vec2(0.0, max(abs(b.y - a.y) * 0.45, 8.0 * uScale));
    t = t * t * (3.0 - 2.0 * t); // most corners where it bends most: at its ends
    float s = 1.0 - t;
    at = s * s * s * a + 3.0 * s * s * t * c + 3.0 * s * t * t * d + t * t * t * b;
    along = 3.0 * s * s * (c - a) + 6.0 * s * t * (d - c) + 3.0 * t * t * (b - d);
  }
  float size = length(along);
  vec2 across = size > 0.0 ? vec2(-along.y, along.x) / size : vec2(1.0, 0.0);
  vAcross = side * (uHalf + 0.5);
  vFade = fades ? 1.0 - t : 1.0;
  gl_Position = place(at + across * vAcross);
}`;

export const LINE_FRAGMENT = `#version 300 es
precision highp float;
in float vAcross;
in float vFade;
uniform vec4 uColour;
uniform float uHalf;
out vec4 colour;
void main() {
  colour = vec4(uColour.rgb, uColour.a * vFade * clamp(uHalf + 0.5 - abs(vAcross), 0.0, 1.0));
}`;

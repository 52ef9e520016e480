/** Colours: those of the page's theme, and two palettes that colour-blind readers can tell apart. */

export type Rgb = [number, number, number];

export interface Theme {
  dark: boolean;
  surface: Rgb;
  frame: Rgb;
  text: Rgb;
  faint: Rgb;
  line: Rgb;
  accent: Rgb;
  hit: Rgb;
}

// As in mlxbench_kernel/graph/picture.py; the last is grey. After Okabe & Ito (2008) and Paul Tol's "muted"; neighbours differ in lightness too.
const CATEGORICAL = [
  "#4e79a7", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00",
  "#a0693a", "#332288", "#b5a900", "#882255", "#44aa99", "#8a8d91",
];
// ColorBrewer's YlGnBu; its lightness falls evenly.
const SEQUENTIAL = [
  "#ffffd9", "#edf8b1", "#c7e9b4", "#7fcdbb", "#41b6c4", "#1d91c0", "#225ea8", "#253494", "#081d58",
];
const STEPS = 16;

export interface Swatch {
  /** Of the box. */
  fill: Rgb;
  /** Of its edge, of the bar at its left side, and of the whole box where it is tiny. */
  mark: Rgb;
  /** What stands on it. */
  text: Rgb;
}

export function parse(colour: string): Rgb | undefined {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  if (!context || !CSS.supports("color", colour.trim())) return undefined;
  context.fillStyle = colour.trim();
  context.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
  return a ? [r! / 255, g! / 255, b! / 255] : undefined;
}

export function css([r, g, b]: Rgb, alpha = 1): string {
  return `rgba(${Math.round(r * 255)}, ${Math.round(g * 255)}, ${Math.round(b * 255)}, ${alpha})`;
}

export function mix(a: Rgb, b: Rgb, share: number): Rgb {
  return [0, 1, 2].map((i) => a[i]! + (b[i]! - a[i]!) * share) as Rgb;
}

/** WCAG 2's relative luminance. */
export function luminance(colour: Rgb): number {
  const [r, g, b] = colour.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r! + 0.7152 * g! + 0.0722 * b!;
}

export function contrast(a: Rgb, b: Rgb): number {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high! + 0.05) / (low! + 0.05);
}

/** What the page says; JupyterLab's variables, or values that go with a page that has none. */
export function readTheme(element: Element): Theme {
  const style = getComputedStyle(element);
  const said = document.body.dataset.jpThemeLight;
  const dark = said ? said === "false" : document.body.classList.contains("vscode-dark");
  const named = (name: string, light: string, night: string) =>
    parse(style.getPropertyValue(name)) ?? parse(dark ? night : light)!;
  const surface = named("--jp-layout-color0", "#ffffff", "#111111");
  const text = named("--jp-content-font-color1", "#212121", "#e6e6e6");
  return {
    dark,
    surface,
    text,
    frame: mix(surface, text, dark ? 0.06 : 0.035),
    faint: mix(surface, text, 0.62),
    line: mix(surface, text, dark ? 0.36 : 0.34),
    accent: named("--jp-brand-color1", "#1976d2", "#64b5f6"),
    hit: parse(dark ? "#ffb74d" : "#e65100")!,
  };
}

export function swatches(palette: "categorical" | "sequential", theme: Theme): Swatch[] {
  if (palette === "categorical") {
    return CATEGORICAL.map((each) => {
      const mark = theme.dark ? mix(parse(each)!, [1, 1, 1], 0.18) : parse(each)!;
      const fill = mix(theme.surface, mark, theme.dark ? 0.3 : 0.2);
      return { fill, mark, text: legible(fill, theme) };
    });
  }
  const anchors = SEQUENTIAL.map((each) => parse(each)!);
  // Much stands out from the page: dark on a light one, bright on a dark one.
  if (theme.dark) anchors.reverse();
  return Array.from({ length: STEPS }, (_, step) => {
    const place = (step / (STEPS - 1)) * (anchors.length - 1), low = Math.floor(place);
    const fill = mix(anchors[low]!, anchors[Math.min(low + 1, anchors.length - 1)]!, place - low);
    return { fill, mark: mix(fill, theme.text, 0.25), text: legible(fill, theme) };
  });
}

function legible(fill: Rgb, theme: Theme): Rgb {
  if (contrast(fill, theme.text) >= 7) return theme.text;
  // One of these has a contrast of 4.5 to any colour; of a dark grey and white, neither may.
  const ink: Rgb = [0, 0, 0], paper: Rgb = [1, 1, 1];
  return contrast(fill, ink) >= contrast(fill, paper) ? ink : paper;
}

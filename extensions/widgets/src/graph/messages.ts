/** What the view and the kernel say to each other; as in mlxbench_kernel/widgets/graph_messages.py. */

export interface SceneState {
  item: DataView;
  kind: DataView;
  x: DataView;
  y: DataView;
  width: DataView;
  height: DataView;
  swatch: DataView;
  frame: DataView;
  source: DataView;
  target: DataView;
  stub: DataView;
  titles: string;
  notes: string;
  palette: "categorical" | "sequential";
  legend: [string, number][];
}

/** Memory in the order of evaluation, above what there is before. */
export interface Timeline {
  at: DataView;
  bytes: DataView;
  peak: number;
  label: string;
}

export type Ask =
  | "toggle"
  | "open_all"
  | "close_all"
  | "reveal"
  | "details"
  | "search"
  | "colour"
  | "path"
  | "text"
  | "export"
  | "alive";

export interface Arguments {
  item?: number | null;
  other?: number;
  text?: string;
}

export interface Request extends Arguments {
  id: number;
  ask: Ask;
}

export interface Link {
  item: number;
  label: string;
}

export interface Answer {
  answer: number;
  error?: string;
  rows?: [string, string][];
  inputs?: Link[];
  outputs?: Link[];
  path?: Link[];
  /** How many links were left out. */
  more?: { inputs: number; outputs: number };
  text?: string;
  item?: number;
}

export interface State {
  title: string;
  summary: string;
  height: number;
  colours: string[];
  scene: SceneState;
  /** Empty where shapes are not known. */
  timeline: Partial<Timeline>;
  /** A node that is selected at first. */
  focus: number | null;
  /** The id of the picture that stands in for the view. */
  picture: string;
}

/** The part of anywidget's model that is used here. */
export interface Model {
  get<K extends keyof State>(name: K): State[K];
  on(event: string, callback: (...args: any[]) => void): void;
  off(event: string, callback: (...args: any[]) => void): void;
  send(content: unknown): void;
  /** JupyterLab's knows the kernel. */
  widget_manager?: { kernel?: KernelConnection | null };
}

/** The part of JupyterLab's kernel connection that is used here. */
export interface KernelConnection {
  statusChanged?: KernelSignal;
  disposed?: KernelSignal;
}

export interface KernelSignal {
  connect(slot: (sender: unknown, status: string | undefined) => void): boolean;
  disconnect(slot: (sender: unknown, status: string | undefined) => void): boolean;
}

/** Numbers as a person reads them. */

const UNITS = ["B", "kB", "MB", "GB", "TB"];

/** As `mlxbench_kernel.units.format_bytes`: decimal, three digits. */
export function bytes(value: number | null): string {
  if (value === null || Number.isNaN(value)) return "unknown";
  let power = 0;
  while (power < UNITS.length - 1 && Math.abs(value) >= 999.5 * 1000 ** power) power++;
  const number = value / 1000 ** power;
  const digits = power === 0 || Math.abs(number) >= 99.95 ? 0 : Math.abs(number) >= 9.995 ? 1 : 2;
  return `${number.toFixed(digits)} ${UNITS[power]}`;
}

export function signed(value: number): string {
  return (value > 0 ? "+" : "") + bytes(value);
}

export function duration(seconds: number): string {
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  return `${minutes} min ${Math.round(seconds - 60 * minutes)} s`;
}

const CLOCK = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });

export function clock(time: number): string {
  return CLOCK.format(time * 1000);
}

/** Colours of ranks, to be seen on white and on black. */
const RANKS = ["#3b82c4", "#e0702a", "#2a9d5c", "#c2559d", "#8a6fd1", "#a98500", "#2a9fb0", "#d14b4b"];
const SHARES = { active: "ff", cache: "8c", rest: "40", held: "40" };

export function colour(kind: string, rank: number): string {
  if (kind === "system") return "#757575";
  if (kind === "others") return "#a89f91";
  if (kind === "free") return "transparent";
  return RANKS[rank % RANKS.length] + SHARES[kind as keyof typeof SHARES];
}

/** The picture that stands in for a view where no widget can run: an output of its own, under that of the view. */

import { make } from "../dom";

/**
 * Hide it; returns how to show it again.
 *
 * Every page has its own element for an SVG output: JupyterLab and nbconvert an image with all of
 * it in its address, others the element itself. They have the beginning in common.
 */
export function hideStandIn(name: string): () => void {
  if (!name) return () => undefined;
  const beginning = `<svg id="${name}"`;
  const encoded = btoa(beginning.slice(0, beginning.length - (beginning.length % 3)));
  const images = [
    `img[src^="data:image/svg+xml,${encodeURIComponent(beginning)}"]`,
    `img[src^="data:image/svg+xml;base64,${encoded}"]`,
  ];
  const outputs = images.map((image) => `.jp-OutputArea-child:has(> * > ${image})`);
  const style = make("style", {}, `${[...outputs, ...images, `svg#${name}`].join(",")} { display: none !important; }`);
  document.head.append(style);
  return () => style.remove();
}

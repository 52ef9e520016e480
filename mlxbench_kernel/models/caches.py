"""KV caches of generations, kept from one prompt to the next that begins alike."""

from __future__ import annotations

from typing import Any

from mlxbench_kernel.models.part import Part


class KVCaches:
    """The caches of all layers for one generation, and of the draft model's after them.

    Parameters
    ----------
    part
        Whose.
    name
        Under which they are kept; "" for no longer than the generation.
    max_kv_size
        Tokens that a cache holds at most; None for all.
    """

    def __init__(self, part: Part, name: str = "", max_kv_size: int | None = None) -> None:
        self._part, self._name, self._most = part, name, max_kv_size
        self.caches: list[Any] = []

    def take(self, tokens: list[int]) -> int:
        """Have caches for a prompt; how many of its tokens are in them already.

        What was kept is not kept any more until `keep`: a generation that is broken off may leave
        it half changed.
        """
        from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

        self._part.see_weights()
        kept, caches = self._part.caches.pop(self._name, ([], []))
        common = 0
        for ours, its in zip(tokens[:-1], kept, strict=False):  # one has to be left to read
            if ours != its:
                break
            common += 1
        if caches and common and common < len(kept) and can_trim_prompt_cache(caches):
            trim_prompt_cache(caches, len(kept) - common)
        elif not caches or common < len(kept) or not common:
            caches, common = self._made(), 0
        self.caches = caches
        return common

    def keep(self, tokens: list[int]) -> None:
        """Keep them, with what was read into them: the first of these tokens."""
        from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

        counts = [getattr(cache, "offset", None) for cache in self.caches]
        whole = [count for count in counts if isinstance(count, int)]
        if not self._name or not whole:
            return
        count = min(whole)
        if count < max(whole):  # a draft model's may be a token behind
            if not can_trim_prompt_cache(self.caches):
                return
            for cache, longer in zip(self.caches, counts, strict=True):
                trim_prompt_cache([cache], (longer or count) - count)
        self._part.caches[self._name] = (tokens[:count], self.caches)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them on this rank."""
        return sum(getattr(cache, "nbytes", 0) for cache in self.caches)

    def _made(self) -> list[Any]:
        from mlx_lm.models.cache import make_prompt_cache

        made: list[Any] = list(make_prompt_cache(self._part.model, self._most))
        if self._part.draft is not None:
            made += make_prompt_cache(self._part.draft, self._most)
        return made

"""How bits of a scale are drawn: guidance, temperature, nucleus."""

from __future__ import annotations

from dataclasses import dataclass

from ...samplers.protocols import SearchError
from .transformer import Guidance


@dataclass(frozen=True)
class ScaleSampling:
    """How bits are drawn.

    Attributes:
        cfg, tau: guidance scale and temperature, one number or one per scale.
        top_p: nucleus of two outcomes, 0 = off; a bit whose less likely value has at most ``1 - top_p`` is certain.
        layers: where guidance is mixed, see ``Guidance``.
    """

    cfg: float | tuple[float, ...] = 3.0
    tau: float | tuple[float, ...] = 0.5
    top_p: float = 0.97
    layers: tuple[int, ...] = (0,)

    def check(self, scales: int, depth: int) -> None:
        """Raise SearchError for settings that cannot work on ``scales`` scales of a network of ``depth`` blocks."""
        for name, value in (("cfg", self.cfg), ("tau", self.tau)):
            if isinstance(value, tuple) and len(value) != scales:
                raise SearchError(f"{name} has {len(value)} numbers for {scales} scales: give one number or {scales}")
        taus = self.tau if isinstance(self.tau, tuple) else (self.tau,)
        if not all(tau > 0 for tau in taus):
            raise SearchError(f"tau is {self.tau}: it must be > 0")
        if not 0 <= self.top_p <= 1:
            raise SearchError(f"top_p is {self.top_p}: it must lie between 0 (off) and 1")
        if not self.layers or any(not -depth < layer <= 0 for layer in self.layers):
            raise SearchError(
                f"cfg layers are {self.layers}: use 0 (logits), or -1 .. -{depth - 1} (block counted from the end)"
            )

    def at(self, scale: int) -> tuple[Guidance, float]:
        """Guidance and temperature of a scale."""
        cfg, tau = (value[scale] if isinstance(value, tuple) else value for value in (self.cfg, self.tau))
        return Guidance(cfg, self.layers), tau

    @property
    def guided(self) -> bool:
        """Whether any scale needs the unconditional branch."""
        return any(cfg != 1 for cfg in (self.cfg if isinstance(self.cfg, tuple) else (self.cfg,)))

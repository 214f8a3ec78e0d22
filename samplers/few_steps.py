"""What a search does where the model makes an image in few steps, and what it does when nobody said how.

Every default that depends on the number of steps or on the kind of model is here; explicit settings win over all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .movers import END, PAUSES, native_of
from .processes.kernel import Interpolant, Noise
from .processes.stock import AtLevels
from .protocols import Outline, SearchError

if TYPE_CHECKING:
    from .method import SearchMethod
    from .movers import StockSampler

MANY = 12
"""Steps from which on a model counts as slow: below, decision points come from ``points``."""
HIGH = 0.8
"""Share of noise in a state, ``b^2 / (a^2 + b^2)``, above which its preview says little."""
UNDISTILLED, DISTILLED, RENOISING = "undistilled", "step-distilled", "re-noising"


@dataclass(frozen=True)
class Setting:
    """What a host knows of the model that it runs.

    Attributes:
        cfg: guidance scale, None where that is not known.
        samples_as_lcm: the model was distilled to have its noise drawn anew at every step.
    """

    cfg: float | None = None
    samples_as_lcm: bool = False


def kind_of(sampler: str | None, steps: int, setting: Setting) -> str:
    """``UNDISTILLED``, ``DISTILLED`` or ``RENOISING``, from how a model is run."""
    if setting.samples_as_lcm or sampler == "lcm" or (sampler or "").endswith("_ancestral"):
        return RENOISING
    return DISTILLED if steps <= 9 and setting.cfg == 1.0 else UNDISTILLED


def points(steps: int) -> list[int]:
    """Steps at which a population is resampled on a short schedule, none below 3 steps: 1, 2 of 4; 2, 4, 6 of 8."""
    if steps < 3:
        return []
    if steps < 5:
        return list(range(1, steps - 1))
    count = 2 if steps == 5 else 3
    return [round(steps * j / (count + 1)) for j in range(1, count + 1)]


def branching(steps: int) -> list[int]:
    """Steps at which candidates are drawn on a short schedule: not the first, not the last move."""
    return list(range(1, steps - 1))


def chosen(short: list[int], window: tuple[float, float] | None, steps: int) -> list[int]:
    """Those of ``short`` within a window that somebody gave, as fractions of the steps; all where nobody did."""
    return [step for step in short if window is None or window[0] * steps <= step <= window[1] * steps]


def joints(steps: int) -> list[int]:
    """Those of ``points`` that a run of an ODE sampler is parted at: 2 of 4; 2, 4 of 8."""
    return [step for step in points(steps) if 2 <= step <= steps / 2]


def auto_moves(
    method: SearchMethod, sampler: str | StockSampler | None, outline: Outline, setting: Setting
) -> tuple[float | Noise, str]:
    """(moves, a line that says what was chosen and why) where nobody gave an eta.

    Noise costs an image its last digits, so it is drawn where a method needs it: by the sampler's own rule, or 1 (0.5
    below 12 steps); on a model that was distilled to few steps 0.5, and only where candidates are chosen.
    """
    native, steps = native_of(sampler), outline.steps
    name = None if native is None else native.name
    kind = kind_of(name, steps, setting)
    about = f"{kind} model, {steps} steps"
    if native is not None and native.stochastic:
        return native, f"eta auto: {about}: the noise of {name} itself"
    noise: float | Noise = 0.0
    said = "0"
    if "can_branch" in method.needs:
        at = method.decisions(outline)
        if kind == DISTILLED and at:
            noise = AtLevels(0.5, tuple(float(outline.sigmas[step]) for step in at))
            said = f"0.5 at steps {', '.join(map(str, at))}, 0 elsewhere"
        else:
            noise = 1.0 if steps >= MANY or kind == RENOISING else 0.5
            said = f"{noise:g}"
        said += f", so that clones in {method.title} separate"
    else:
        said += f", {method.title} needs no noise in its moves"
    return (noise if native is None else native.with_noise(noise)), f"eta auto: {about}: {said}"


def check_points(method: SearchMethod, outline: Outline, interpolant: Interpolant | None) -> str | None:
    """A warning where a method that chooses on the way hardly can, None where all is well.

    Raises:
        SearchError: a schedule of one or two steps, where there is no way to choose on.
    """
    if method.decides == END or method.population == 1:
        return None
    steps = outline.steps
    if steps <= 2 and "can_branch" in method.needs:
        raise SearchError(
            f"steps is {steps}: {method.title} chooses on the way from noise to image, and there is none; use Best-of-N"
        )
    if method.decides != PAUSES or "can_branch" not in method.needs:
        return None
    at = method.decisions(outline)
    if len(at) < 2:
        times = "once" if at else "never"
        return f"{method.title} decides {times} in {steps} steps: Best-of-N costs the same"
    if interpolant is not None and all(_noisy(interpolant, outline.sigmas[step]) for step in at):
        return (
            f"{method.title} decides above {HIGH:.0%} noise only, where previews say little: decide later, or Best-of-N"
        )
    return None


def _noisy(interpolant: Interpolant, sigma: float) -> bool:
    a, b = interpolant.coefficients(float(sigma))
    return b * b > HIGH * (a * a + b * b)


def tempered(at: Sequence[int], steps: int) -> list[float]:
    """lambda of every step, raised at decision points alone: ``2^(j / K) - 1`` at the j-th of K, 1 at the last step."""
    values, j = [], 0
    for step in range(steps):
        j += step in at
        values.append(2.0 ** (j / len(at)) - 1.0 if at else 0.0)
    return [*values[:-1], 1.0]

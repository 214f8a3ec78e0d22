"""``Capabilities``: what a process can do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Capabilities:
    """What a process can do; a method's ``needs`` are names of these.

    Attributes:
        kind: of model, as a person says it: "diffusion", "flow", "next-scale".
        has_initial_noise: an image grows from one noise, which can be searched.
        can_branch: moves draw noise, so that clones of a particle separate.
        can_renoise: particles can go to any noise level, up or down, on schedules of their own.
        can_join: populations can be put together from states of several selections.
        can_differentiate: gradients of a score reach the states.
        can_reprompt: particles can have prompts of their own.
        can_choose_noise: the noise of a move is Gaussian and can be given.
        can_resize: previews can be decoded at other sizes.
        has_code_maps: states are the image's own codes, coarse to fine (next-scale models).
        ends_clean: the last move leads to the clean estimate itself, which is then judged only once.
        whole_first: candidates are so dear that each is finished before the next is begun, where the method allows it.
    """

    kind: str = "diffusion"
    has_initial_noise: bool = True
    can_branch: bool = True
    can_renoise: bool = True
    can_join: bool = True
    can_differentiate: bool = True
    can_reprompt: bool = False
    can_choose_noise: bool = True
    can_resize: bool = False
    has_code_maps: bool = False
    ends_clean: bool = True
    whole_first: bool = False

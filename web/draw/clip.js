// Clips: a still picture that plays where somebody asks for it. Nothing moves by itself where less motion is wished.

import { element } from "./dom.js";
import { say } from "./texts.js";

/** Whether pictures may move without being asked to. */
export const mayMove = () => !window.matchMedia?.("(prefers-reduced-motion: reduce)").matches;

/**
 * Lets an image play: `clip` is the address of the moving one, which is fetched when it is first wanted. It plays while
 * the pointer or the focus is on `owner`. Returns {playing, play(), stop()}.
 */
export function setInMotion(image, clip, owner) {
  const still = image.src;
  const state = {
    playing: false,
    play() {
      state.playing = true;
      image.src = clip;
    },
    stop() {
      state.playing = false;
      image.src = still;
    },
  };
  image.addEventListener("error", () => state.playing && state.stop()); // the server has forgotten the run
  if (owner) {
    for (const name of ["pointerenter", "focusin"]) owner.addEventListener(name, () => mayMove() && state.play());
    for (const name of ["pointerleave", "focusout"]) owner.addEventListener(name, () => state.stop());
  }
  return state;
}

/** A button that plays and stops a clip; the space bar presses it. */
export function playButton(motion) {
  const button = element("button", "testtime-play");
  button.type = "button";
  const name = () => {
    button.textContent = say(motion.playing ? "stopClip" : "playClip");
    button.setAttribute("aria-pressed", String(motion.playing));
  };
  button.addEventListener("click", () => {
    if (motion.playing) motion.stop();
    else motion.play();
    name();
  });
  name();
  return button;
}

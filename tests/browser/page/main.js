"use strict";
// Runs the guest frame by frame, and puts on the canvas what each frame has changed.

const FRAME = 160_000; // ticks of the guest's clock
const FRAME_TIME = FRAME / 10_000; // milliseconds
const MEAN_OF = 60; // frames, for the line of figures
/** The guest's keys by the PC's scan code set 1. */
const KEYS = { ArrowUp: 0x48, ArrowLeft: 0x4b, ArrowRight: 0x4d, ArrowDown: 0x50 };
const FULL = -4; // what the module answers if the guest has no room for a key

const canvas = document.querySelector("canvas");
const context = canvas.getContext("2d", { alpha: false });
/** Sums over all frames; `running` is the time in the guest, in milliseconds. */
const figures = { frames: 0, keys: 0, instructions: 0, running: 0, lines: 0, pages: 0, pixels: 0 };
const keysDown = new Set();
const unsent = []; // keys, and whether they are down, for which the guest had no room
let vm; // what the module exports
let image; // its pixels

function checked(result) {
  if (result < 0) throw new Error(`the machine answers with error ${result}`);
  return result;
}

/** Hands keys to the guest as far as it has room: a release that is lost is a key that is stuck. */
function send() {
  for (; unsent.length > 0; unsent.shift()) {
    const result = vm.key(...unsent[0]);
    if (result === FULL) return;
    checked(result);
  }
}

function key(code, isDown) {
  unsent.push([code, isDown ? 1 : 0]);
  send();
  keysDown[isDown ? "add" : "delete"](code);
  figures.keys += 1;
}

function onKey(event) {
  const code = KEYS[event.code];
  // With these a key is the browser's: "back" is Alt and an arrow.
  const isOurs = !(event.altKey || event.ctrlKey || event.metaKey) || event.type === "keyup";
  if (code === undefined || !isOurs) return;
  event.preventDefault();
  if (!event.repeat) key(code, event.type === "keydown");
}

/** The module's pixels, without a copy: a view that ends when memory grows or the mode changes. */
function pixels() {
  const [buffer, start, width, height] = [vm.memory.buffer, vm.pixels(), vm.width(), vm.height()];
  const data = image?.data;
  const isSame = data?.buffer === buffer && data.byteOffset === start;
  if (!isSame || image.width !== width || image.height !== height) {
    image = new ImageData(new Uint8ClampedArray(buffer, start, width * height * 4), width, height);
    const isResized = canvas.width !== width || canvas.height !== height;
    // Which clears it: all of a picture of another size is damaged.
    if (isResized) Object.assign(canvas, { width, height });
  }
  return image;
}

function frame() {
  send();
  const begin = performance.now();
  checked(vm.run(FRAME));
  figures.running += performance.now() - begin;
  const count = checked(vm.refresh());
  for (let n = 0; n < count; n += 1) {
    const area = new Uint32Array(vm.memory.buffer, vm.damage() + 16 * n, 4);
    context.putImageData(pixels(), 0, 0, ...area);
    figures.pixels += area[2] * area[3];
  }
  figures.frames += 1;
  figures.instructions = vm.instructions();
  figures.lines += vm.lines();
  figures.pages += vm.pages();
}

let shown = { time: performance.now(), ...figures };
function show() {
  const now = { time: performance.now(), ...figures };
  const per = (name, unit, scale = 1) =>
    (scale * (now[name] - shown[name]) / (now[unit] - shown[unit])).toFixed(0);
  const redrawn = ["lines", "pages", "pixels"].map(name => `${per(name, "frames")} ${name}`);
  document.querySelector("#figures").textContent =
    `${per("frames", "time", 1000)} frames a second, ` +
    `${per("instructions", "running", 1e-3)} million instructions a second; a frame executes ` +
    `${per("instructions", "frames", 1e-3)} thousand, and redraws ${redrawn.join(", ")}`;
  shown = now;
}

/** Runs so many frames, no faster than the guest's clock; then the machine stands still. */
function go(frames) {
  let due = 0;
  return new Promise((resolve, reject) => requestAnimationFrame(function next(now) {
    try {
      if (frames <= 0) return resolve();
      if (now >= due) {
        due = Math.max(due, now - FRAME_TIME) + FRAME_TIME;
        frame();
        frames -= 1;
        if (figures.frames % MEAN_OF === 0) show();
      }
      requestAnimationFrame(next);
    } catch (error) {
      reject(error);
    }
  }));
}

async function start() {
  vm = (await WebAssembly.instantiateStreaming(fetch("browser.wasm"))).instance.exports;
  checked(vm.boot());
  for (const name of ["keydown", "keyup"]) addEventListener(name, onKey);
  // Without the focus a page is not told of keys that are released.
  addEventListener("blur", () => [...keysDown].forEach(code => key(code, false)));
  await go(Number(new URLSearchParams(location.search).get("frames") ?? Infinity));
}

start().catch(error => { document.querySelector("#figures").textContent = error; });

// What the tests share: where relayd is, and models whose names tell the test provider what to do.
import assert from "node:assert/strict";
import { deflateSync } from "node:zlib";

export const baseURL = process.env.RELAYD_BASE_URL;
// Of a daemon that fills a tenth of a second of silence.
export const beatingURL = process.env.RELAYD_BEATING_BASE_URL;
export const apiKey = process.env.RELAYD_KEY;
export const WORDS = process.env.RELAYD_WORDS;
// The provider is silent for the time of three heartbeats before its first token.
export const HEARTBEATS = "first_ms=350";

let number = 0;

/** A model that no other request names, with these words of a script and no pauses. */
export function model(words = "") {
  return `demo:id=node-${process.pid}-${number++},interval_ms=0${words && ","}${words}`;
}

export const BROKEN = ["cut_mid", "cut_fin", "end_early", "bad_json", "error_event"];
export const PHASES = [0, 3, 1000];

/** The pixel of a PNG as a data URL. */
export const PICTURE = `data:image/png;base64,${process.env.RELAYD_PNG}`;
export const AUDIO = deflateSync(Buffer.from("sound".repeat(10)), { level: 0 });

/** What is given out before it throws; fails where it does not throw. */
export async function broken(iterate) {
  const got = [];
  await assert.rejects(async () => {
    for await (const event of await iterate()) got.push(event);
  });
  return got;
}

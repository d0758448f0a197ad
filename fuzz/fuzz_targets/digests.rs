#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| slipway_fuzz::image::archive::fuzzing::digests_json(input));
